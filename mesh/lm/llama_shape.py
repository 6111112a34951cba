"""The models that training and serving compute themselves: the names of their modules and their sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from mesh.errors import BaseModelUnavailable

# Architectures with exactly this arithmetic.
_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2"})
# Position tables that do not depend on the sequence length.
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})

# Linear modules that share an input, by group name, in the order of their outputs: keys beside queries, since both are
# rotated, and queries beside values, since most adapters have these two.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "kqv": ("k_proj", "q_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        """Reads a model's configuration."""
        config = model.config
        heads = int(config.num_attention_heads)
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            intermediate=int(config.intermediate_size),
            vocabulary=int(config.vocab_size),
        )

    def widths(self, module: str) -> tuple[int, int]:
        """Returns the input and output width of a linear module."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }[module]


def require_supported(model: PreTrainedModel, *, advice: str) -> None:
    """Checks that AIVO's own forward passes compute this model.

    Args:
        model: The base model.
        advice: What an operator can do if they do not; ends the error's message.

    Raises:
        BaseModelUnavailable: They do not: another architecture, or other positions.
    """
    config = model.config
    if config.model_type not in _MODEL_TYPES:
        supported = ", ".join(sorted(_MODEL_TYPES))
        raise BaseModelUnavailable(f"AIVO computes {supported} models, not {config.model_type}; {advice}")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _ROPE_TYPES:
        raise BaseModelUnavailable(f"AIVO does not compute {rope} positions; {advice}")
