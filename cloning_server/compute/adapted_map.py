"""Adapters in one pass, and the linear maps that they change.

Knows nothing of layers, attention or which tokens are whose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cloning_server.compute.kernels import Backward
from cloning_server.compute.lora_factors import LoraFactors, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The state of one adapter in one pass, by module name.

    Attributes:
        pairs: Its factors, in the base model's dtype.
        scaling: Multiplies every update.
        gradients: Accumulators of the factors' gradients; None if the pass has no backward pass.
    """

    pairs: Mapping[str, Pair]
    scaling: float
    gradients: Mapping[str, Pair] | None = None

    @classmethod
    def of(cls, factors: LoraFactors, dtype: torch.dtype, *, learns: bool = False) -> Self:
        """Copies the factors in a dtype; with `learns`, the backward pass adds to their gradients."""
        gradients = factors.gradients() if learns else None
        return cls(pairs=factors.pairs(dtype), scaling=factors.scaling, gradients=gradients)


class AdaptedMap:
    """One application of a frozen map, with the updates of the adapters that change it."""

    __slots__ = ("_back", "_updates", "_x_NI")

    def __init__(self, back: Backward, x_NI: Tensor) -> None:
        self._back = back
        self._x_NI = x_NI
        self._updates: list[tuple[slice, Pair, Pair | None, float, Tensor]] = []

    @property
    def is_changed(self) -> bool:
        """Whether any adapter changes the map."""
        return bool(self._updates)

    def add(self, out_NO: Tensor, rows: slice, adapter: Adapter, name: str) -> None:
        """Adds an adapter's update to the map's outputs, if the adapter has one for this module."""
        pair = adapter.pairs.get(name)
        if pair is None:
            return
        narrow_SR = self._x_NI[rows] @ pair.a_RI.t()
        out_NO[rows].addmm_(narrow_SR, pair.b_OR.t(), alpha=adapter.scaling)
        gradients = None if adapter.gradients is None else adapter.gradients[name]
        self._updates.append((rows, pair, gradients, adapter.scaling, narrow_SR))

    def learn(self, grad_NO: Tensor) -> list[tuple[slice, Pair, Tensor]]:
        """Adds to the gradients of the factors; returns the gradients of the low-rank activations, by rows."""
        low_rank = []
        for rows, pair, gradients, scaling, narrow_SR in self._updates:
            grad_SO = grad_NO[rows]
            to_narrow_SR = (grad_SO @ pair.b_OR).mul_(scaling)
            if gradients is not None:
                gradients.b_OR.add_(grad_SO.t() @ narrow_SR, alpha=scaling)
                gradients.a_RI.add_(to_narrow_SR.t() @ self._x_NI[rows])
            low_rank.append((rows, pair, to_narrow_SR))
        return low_rank

    def back(self, grad_NO: Tensor) -> Tensor:
        """Returns the gradient of the inputs; adds to the gradients of the factors."""
        grad_NI = self._back(grad_NO)
        for rows, pair, to_narrow_SR in self.learn(grad_NO):
            grad_NI[rows].addmm_(to_narrow_SR, pair.a_RI)
        return grad_NI
