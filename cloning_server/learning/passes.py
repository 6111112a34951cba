"""Passes of the base model over packed examples, for training: each student's examples with that student's adapter.

Prompts are computed first, and the keys and values that replies attend to are stored; replies are computed next.
Gradients go back through replies alone: in a prompt they reach the adapter's updates of each layer's keys and values,
and end there, so that most tokens have no backward pass (see docs/adr/0014). Nothing is stored for gradients of the
base model's weights, which are frozen.

Knows nothing of losses, optimizers or students.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cloning_server.compute.adapted_map import Adapter
from cloning_server.compute.kernels import token_nats, token_nats_and_gradient
from cloning_server.compute.layers import AdapterSpan, Attention, Layers, PassInput
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packed_attention import PromptAttention, ReplyAttention
from cloning_server.learning.packing import Pack

# Reply tokens whose logits are in memory at a time.
_BLOCK_TOKENS = 64


class Passes:
    """A base model's passes over packed examples; the model may be used elsewhere in between.

    Owns the model's layers: build it once per base model.

    Raises:
        BaseModelUnavailable: The model has an unsupported architecture.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = Layers(model)
        self.device = self.layers.device

    @torch.no_grad()
    def nats(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors | None]) -> list[Tensor]:
        """Negative log-likelihood of each pack's reply tokens with its adapter, or with the base model alone.

        Returns:
            For each pack the nats of its tokens, [M] in fp32.
        """
        nats_M = token_nats(self._run(packs, adapters), self.layers.head_VH, _targets(packs))
        return list(nats_M.split([len(pack.targets_M) for pack in packs]))

    @torch.no_grad()
    def logits(self, pack: Pack, adapter: LoraFactors | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the logits that predict reply tokens, [B, vocabulary] in fp32, and of these tokens, [B]."""
        x_MH = self._run([pack], [adapter])
        for x_BH, targets_B in zip(x_MH.split(_BLOCK_TOKENS), pack.targets_M.split(_BLOCK_TOKENS), strict=True):
            yield F.linear(x_BH, self.layers.head_VH).float(), targets_B

    @torch.no_grad()
    def add_gradients(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors]) -> list[float]:
        """Adds the gradient of each pack's loss to its adapter's; the loss is the mean nats per reply token.

        Returns:
            The loss of each pack.
        """
        learning = [Adapter.of(factors, self.layers.dtype, learns=True) for factors in adapters]
        shape, like = self.layers.shape, self.layers.head_VH
        prompts = PromptAttention(packs, shape=shape, like=like)
        prompt_backwards = self.layers.run_context(_prompts(packs, learning, prompts))
        replies = ReplyAttention(packs, prompts, shape=shape, like=like, prompt_backwards=prompt_backwards)
        x_MH, norm_back, backwards = self.layers.run_with_backward(_replies(packs, learning, replies))
        sizes = [len(pack.targets_M) for pack in packs]
        shares_M = torch.cat([torch.full((size,), 1 / size, device=self.device) for size in sizes])
        nats_M, grad_MH = token_nats_and_gradient(x_MH, self.layers.head_VH, _targets(packs), shares_M)
        grad_MH = norm_back(grad_MH)
        while backwards:
            # Popping frees what the layer has stored.
            grad_MH = backwards.pop()(grad_MH)
        return [float(nats.mean()) for nats in nats_M.split(sizes)]

    def _run(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors | None]) -> Tensor:
        """The hidden states that predict the reply tokens, [M, hidden]."""
        in_use = [None if factors is None else Adapter.of(factors, self.layers.dtype) for factors in adapters]
        shape, like = self.layers.shape, self.layers.head_VH
        prompts = PromptAttention(packs, shape=shape, like=like)
        self.layers.run(_prompts(packs, in_use, prompts))
        return self.layers.run(_replies(packs, in_use, ReplyAttention(packs, prompts, shape=shape, like=like)))


def _prompts(packs: Sequence[Pack], adapters: Sequence[Adapter | None], attend: Attention) -> PassInput:
    tokens_N = torch.cat([pack.prompts_N for pack in packs])
    return PassInput(
        tokens_N=tokens_N,
        positions_N=torch.cat([pack.prompt_positions_N for pack in packs]),
        spans=[
            AdapterSpan(tokens=len(pack.prompts_N), outputs=0, adapter=adapter)
            for pack, adapter in zip(packs, adapters, strict=True)
        ],
        attend=attend,
        outputs_M=tokens_N.new_empty(0),
    )


def _replies(packs: Sequence[Pack], adapters: Sequence[Adapter | None], attend: Attention) -> PassInput:
    return PassInput(
        tokens_N=torch.cat([pack.replies_M for pack in packs]),
        positions_N=torch.cat([pack.reply_positions_M for pack in packs]),
        spans=[
            AdapterSpan(tokens=len(pack.replies_M), outputs=len(pack.replies_M), adapter=adapter)
            for pack, adapter in zip(packs, adapters, strict=True)
        ],
        attend=attend,
        outputs_M=None,
    )


def _targets(packs: Sequence[Pack]) -> Tensor:
    return torch.cat([pack.targets_M for pack in packs])
