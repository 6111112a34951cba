"""The base model's forward pass over packed examples, each student's with their own adapter, for training.

Prompts are read first, and what replies see of them is kept; replies are read next to it. Gradients go back through
replies alone: of a prompt they reach what the adapter adds to the keys and values of each layer, and end there. So most
tokens are never gone back through; see docs/adr/0014. Nothing is kept for gradients of weights, which are frozen.

Knows nothing of losses, optimizers or students.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cloning_server.compute.kernels import token_nats, token_nats_and_gradient
from cloning_server.compute.layers import Adapter, Attention, Pass, Stretch, layers_of
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packed_attention import PromptAttention, ReplyAttention
from cloning_server.learning.packing import Pack


class Forward:
    """A base model's forward pass, and the way back; the model may be used elsewhere in turns.

    Raises:
        BaseModelUnavailable: The model is of another architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = layers_of(model)
        self.device = self.layers.device

    @torch.no_grad()
    def nats(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors | None]) -> list[Tensor]:
        """How unlikely each pack's reply tokens are under its adapter, or the base model where there is none.

        Returns:
            For each pack its tokens' nats, [M] in fp32.
        """
        nats_M = token_nats(self._read(packs, adapters), self.layers.head_VH, _targets(packs))
        return list(nats_M.split([len(pack.targets_M) for pack in packs]))

    @torch.no_grad()
    def logits(self, pack: Pack, adapter: LoraFactors | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the logits of reply tokens, [B, vocabulary] in fp32, and of the tokens themselves, [B]."""
        x_MH = self._read([pack], [adapter])
        for x_BH, targets_B in zip(x_MH.split(64), pack.targets_M.split(64), strict=True):
            yield F.linear(x_BH, self.layers.head_VH).float(), targets_B

    @torch.no_grad()
    def learn(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors]) -> list[float]:
        """Adds to the gradients of each adapter that of its pack's mean nats a reply token; returns these means."""
        taken = [Adapter.of(one, self.layers.dtype, learns=True) for one in adapters]
        shape, like = self.layers.shape, self.layers.head_VH
        prompts = PromptAttention(packs, shape=shape, like=like)
        seen = self.layers.read_to_be_seen(_prompts(packs, taken, prompts))
        replies = ReplyAttention(packs, prompts, shape=shape, like=like, seen=seen)
        x_MH, head_back, backs = self.layers.read_to_learn(_replies(packs, taken, replies))
        sizes = [len(pack.targets_M) for pack in packs]
        shares_M = torch.cat([torch.full((size,), 1 / size, device=self.device) for size in sizes])
        nats_M, grad_MH = token_nats_and_gradient(x_MH, self.layers.head_VH, _targets(packs), shares_M)
        grad_MH = head_back(grad_MH)
        while backs:
            # What a layer has kept is let go of on the way.
            grad_MH = backs.pop()(grad_MH)
        return [float(some.mean()) for some in nats_M.split(sizes)]

    def _read(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors | None]) -> Tensor:
        """What the head reads to say each reply token, [M, hidden]."""
        taken = [None if one is None else Adapter.of(one, self.layers.dtype) for one in adapters]
        shape, like = self.layers.shape, self.layers.head_VH
        prompts = PromptAttention(packs, shape=shape, like=like)
        self.layers.read(_prompts(packs, taken, prompts))
        return self.layers.read(_replies(packs, taken, ReplyAttention(packs, prompts, shape=shape, like=like)))


def _prompts(packs: Sequence[Pack], adapters: Sequence[Adapter | None], attend: Attention) -> Pass:
    tokens_N = torch.cat([pack.prompts_N for pack in packs])
    return Pass(
        tokens_N=tokens_N,
        positions_N=torch.cat([pack.prompt_positions_N for pack in packs]),
        stretches=[
            Stretch(tokens=len(pack.prompts_N), wanted=0, adapter=adapter)
            for pack, adapter in zip(packs, adapters, strict=True)
        ],
        attend=attend,
        wanted_M=tokens_N.new_empty(0),
    )


def _replies(packs: Sequence[Pack], adapters: Sequence[Adapter | None], attend: Attention) -> Pass:
    return Pass(
        tokens_N=torch.cat([pack.replies_M for pack in packs]),
        positions_N=torch.cat([pack.reply_positions_M for pack in packs]),
        stretches=[
            Stretch(tokens=len(pack.replies_M), wanted=len(pack.replies_M), adapter=adapter)
            for pack, adapter in zip(packs, adapters, strict=True)
        ],
        attend=attend,
        wanted_M=None,
    )


def _targets(packs: Sequence[Pack]) -> Tensor:
    return torch.cat([pack.targets_M for pack in packs])
