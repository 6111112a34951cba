"""Adapters for tests: random LoRA weights that change what the default base model says, published to the real store."""

import uuid

import safetensors.torch
import torch

from mesh.adapters.blobs import Blobs
from mesh.adapters.manifest import Examples, Lora, Manifest, Metrics, Profile, Recipe, Serving
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import AdapterRef, StudentKeys
from mesh.lm.lora import LoraSpec, to_safetensors

# Of SmolLM2-135M-Instruct.
LAYERS = 30
WIDTH = 576
WIDTHS_OUT = {"q_proj": 576, "v_proj": 192}
SPEC = LoraSpec()
SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=16)


def random_weights(seed: int, *, strength: float = 0.05, rank: int = SPEC.rank) -> bytes:
    """Both factors random: unlike a fresh adapter, which changes nothing, this one is heard in every reply."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(LAYERS):
        for target, width_out in WIDTHS_OUT.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            state[f"{module}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=generator) / WIDTH**0.5
            state[f"{module}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator) * strength
    return to_safetensors(state)


def recipe(*, base_digest: str, serving: Serving = SERVING, rank: int = SPEC.rank) -> Recipe:
    """A recipe of a clone of its own."""
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
    """Writes a version past the store's checks, as a fault of the disk or of another program would."""
    ref = AdapterRef(student_id=student_id, version=1)
    manifest = Manifest.of(weights, ref=ref, recipe=recipe)
    await blobs.create(ref.weights_key, weights)
    await blobs.create(ref.manifest_key, manifest.to_json())
    pointer = ActiveAdapter(ref=ref, sha256=manifest.sha256)
    await blobs.create(StudentKeys(student_id=student_id).active, pointer.to_json())
    return manifest


def with_nan(weights: bytes) -> bytes:
    """The same weights, but for one number that is none."""
    state = safetensors.torch.load(weights)
    next(iter(state.values()))[0, 0] = torch.nan
    return to_safetensors(state)
