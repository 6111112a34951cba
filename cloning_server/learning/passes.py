"""Passes of the base model over packed examples, for training: each student's examples with that student's adapter.

Prompts are computed first, and the keys and values that replies attend to are stored; replies are computed next.
Gradients go back through replies alone: in a prompt they reach the adapter's updates of each layer's keys and values,
and end there, so that most tokens have no backward pass (see docs/adr/0014). Nothing is stored for gradients of the
base model's weights, which are frozen.

Knows nothing of losses, optimizers or students.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

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

# The first token of a reply decides whether it explains, checks, praises or corrects, and is one of about forty. Four
# clones took a bare question for an answer, or the reverse, in 27 of 74 replies with a weight of 1, in 9 with 5, and in
# 4 with 15, at held-out losses of 0.65, 0.67 and 0.76. The token behind the first sentence decides whether a reply says
# anything before its advice: two clones of 12 responses said nothing in 16 of 48 explanations without a weight on it,
# and in 6 with 5.
DECIDING_WEIGHT = 5.0
# Computes a loss from the hidden states that predict targets, [S, hidden]: the nats of each, [S], and the gradient of
# the loss with respect to the states.
Loss: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

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

    def add_gradients(self, packs: Sequence[Pack], adapters: Sequence[LoraFactors]) -> list[float]:
        """Adds the gradient of each pack's loss to its adapter's.

        The loss is the mean nats per reply token. In the gradient, the tokens that decide what a reply does
        count `DECIDING_WEIGHT` times.

        Returns:
            The loss of each pack.
        """
        sizes = [len(pack.targets_M) for pack in packs]
        shares_M = torch.cat([_shares_of(pack) for pack in packs])

        def loss(x_MH: Tensor) -> tuple[Tensor, Tensor]:
            return token_nats_and_gradient(x_MH, self.layers.head_VH, _targets(packs), shares_M)

        nats_M = self.add_gradients_of(loss, packs, adapters)
        return [float(nats.mean()) for nats in nats_M.split(sizes)]

    @torch.no_grad()
    def add_gradients_of(
        self, loss: Loss, packs: Sequence[Pack], adapters: Sequence[LoraFactors], *, scored_M: Tensor | None = None
    ) -> Tensor:
        """Adds the gradient of any loss of the packs' last hidden states to their adapters'.

        Args:
            loss: The loss.
            packs: The examples.
            adapters: The adapter of each pack.
            scored_M: Indices of the reply tokens whose hidden states the loss takes; None for all.

        Returns:
            The nats that the loss computed.
        """
        learning = [Adapter.of(factors, self.layers.dtype, learns=True) for factors in adapters]
        shape, like = self.layers.shape, self.layers.head_VH
        prompts = PromptAttention(packs, shape=shape, like=like)
        prompt_backwards = self.layers.run_context(_prompts(packs, learning, prompts))
        replies = ReplyAttention(packs, prompts, shape=shape, like=like, prompt_backwards=prompt_backwards)
        x_MH, norm_back, backwards = self.layers.run_with_backward(_replies(packs, learning, replies))
        if scored_M is None:
            nats, grad_MH = loss(x_MH)
        else:
            nats, grad_SH = loss(x_MH[scored_M])
            grad_MH = torch.zeros_like(x_MH).index_copy_(0, scored_M, grad_SH)
        grad_MH = norm_back(grad_MH)
        while backwards:
            # Popping frees what the layer has stored.
            grad_MH = backwards.pop()(grad_MH)
        return nats

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


def _shares_of(pack: Pack) -> Tensor:
    """The weight of each reply token in the gradient, [M] in fp32."""
    size = len(pack.targets_M)
    shares_M = torch.full((size,), 1 / size)
    shares_M[pack.deciding] *= DECIDING_WEIGHT
    return shares_M.to(pack.targets_M.device)


def _targets(packs: Sequence[Pack]) -> Tensor:
    return torch.cat([pack.targets_M for pack in packs])
