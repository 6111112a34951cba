"""How much a model decodes at the same time, and how long a context fits the memory for it."""

from dataclasses import dataclass

from mesh.lm.llama_shape import Shape
from mesh.lm.lora import LoraSpec
from mesh.main_brain.base import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much is decoded at the same time.

    Attributes:
        rows: Number of replies.
        guard_rows: Number of sequences beside them that the guard reads.
        slots: Number of adapters, at least as many as rows.
        cache_bytes: Size of the replies' key-value cache. A row's share bounds a prompt with its reply. The guard's
            rows are as long and come on top, so that replies have as much room with a guard as without.
        adapters: The highest rank and all target modules that an adapter may have.
    """

    rows: int
    guard_rows: int
    slots: int
    cache_bytes: int
    adapters: LoraSpec

    def context_tokens(self, base: BaseModel) -> int:
        """Returns the length of a row in tokens: as much as its share of the cache holds, at most the model's limit."""
        config, shape = base.model.config, Shape.of(base.model)
        token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_width * base.dtype.itemsize
        limits = [int(config.max_position_embeddings), self.cache_bytes // self.rows // token_bytes]
        # Within its window, attention in a sliding window is full attention.
        if window := getattr(config, "sliding_window", None):
            limits.append(int(window))
        return min(limits)
