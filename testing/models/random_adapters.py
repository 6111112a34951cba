"""Adapters for tests and benchmarks: random LoRA weights that change a base model's replies, with recipes."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor
from transformers import PretrainedConfig

from mesh.adapters.blobs import Blobs
from mesh.adapters.manifest import Examples, Lora, Manifest, Metrics, Profile, Recipe, Serving
from mesh.adapters.pointer import ActiveAdapter, Pointer
from mesh.adapters.ref import AdapterRef, StudentKeys
from mesh.lm.lora import LoraSpec, to_safetensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """The sizes of a base model that decide the shapes of its adapters.

    Attributes:
        layers: Number of layers.
        hidden: Width of the attention's input.
        outputs: Width of each target module's output, by module.
    """

    layers: int
    hidden: int
    outputs: Mapping[str, int]

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Widths":
        """Reads the configuration of a Llama-like model; the target modules are the queries and the values."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        outputs = {"q_proj": head * config.num_attention_heads, "v_proj": head * config.num_key_value_heads}
        return cls(layers=config.num_hidden_layers, hidden=config.hidden_size, outputs=outputs)


SMOLLM2_135M = Widths(layers=30, hidden=576, outputs={"q_proj": 576, "v_proj": 192})
SPEC = LoraSpec()
SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=16)


def random_state(
    seed: int, *, strength: float = 0.05, rank: int = SPEC.rank, widths: Widths = SMOLLM2_135M
) -> dict[str, Tensor]:
    """Returns factors by PEFT's names in fp32. Both are random, so that unlike a new adapter they change every reply.

    Args:
        seed: Seed of the numbers.
        strength: Standard deviation of the second factor's numbers.
        rank: Rank of both factors.
        widths: Sizes of the base model.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(widths.layers):
        for target, width_out in widths.outputs.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            down_RI = torch.randn(rank, widths.hidden, generator=generator) / widths.hidden**0.5
            state[f"{module}.lora_A.weight"] = down_RI
            state[f"{module}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator) * strength
    return state


def random_weights(seed: int, *, strength: float = 0.05, rank: int = SPEC.rank, widths: Widths = SMOLLM2_135M) -> bytes:
    """Returns the content of a weight file with random factors; see `random_state`."""
    return to_safetensors(random_state(seed, strength=strength, rank=rank, widths=widths))


def recipe(*, base_digest: str, serving: Serving = SERVING, rank: int = SPEC.rank) -> Recipe:
    """Returns the recipe of a new clone."""
    return Recipe(
        clone_id=f"clone_{uuid.uuid4().hex[:16]}",
        base_model="SmolLM2-135M-Instruct",
        base_digest=base_digest,
        lora=Lora(rank=rank, alpha=float(SPEC.alpha), target_modules=SPEC.target_modules, dtype="F32"),
        scale=1.0,
        serving=serving,
        examples=Examples(given=10, feedback=10, distilled=0, dropped=0, train=8, heldout=2),
        metrics=Metrics(
            heldout_loss_base=2.0, heldout_loss_adapter=1.5, train_steps=3, seconds_per_step=1.0, seconds=3.0
        ),
        seed=0,
        profile=Profile(),
        data_digest="0" * 64,
    )


async def publish_unchecked(blobs: Blobs, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
    """Writes a version without the store's checks, as a faulty disk or another program might, and makes it active."""
    ref = AdapterRef(student_id=student_id, version=1)
    manifest = Manifest.of(weights, ref=ref, recipe=recipe)
    await blobs.create(ref.weights_key, weights)
    await blobs.create(ref.manifest_key, manifest.to_json())
    pointer = Pointer(active=ActiveAdapter(ref=ref, sha256=manifest.sha256))
    await blobs.create(StudentKeys(student_id=student_id).active, pointer.to_json())
    return manifest


def with_nan(weights: bytes) -> bytes:
    """Returns the same weights with one number replaced by NaN."""
    state = safetensors.torch.load(weights)
    next(iter(state.values()))[0, 0] = torch.nan
    return to_safetensors(state)
