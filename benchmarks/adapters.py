"""Students by the hundred: random adapters of the usual shape, published to the real store.

An adapter's numbers are noise, strong enough to be computed in full and too weak to make the model end its replies
early; speed does not depend on what they say.
"""

import asyncio
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mesh.adapters.manifest import Examples, Lora, Manifest, Metrics, Profile, Recipe, Serving
from mesh.adapters.store import AdapterStore
from mesh.lm.lora import LoraSpec, to_safetensors

SPEC = LoraSpec()
# Of the update's numbers against those of the base model's map.
STRENGTH = 0.003
# As many as the store's threads.
_PUBLISHERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What an adapter's shape follows from.

    Attributes:
        layers: Of the base model.
        hidden: What goes into its attention.
        outputs: What comes out of each target module.
    """

    layers: int
    hidden: int
    outputs: Mapping[str, int]

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Widths":
        """Of a Llama or Mistral."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        outputs = {"q_proj": head * config.num_attention_heads, "v_proj": head * config.num_key_value_heads}
        return cls(layers=config.num_hidden_layers, hidden=config.hidden_size, outputs=outputs)


def random_state(widths: Widths, *, seed: int) -> dict[str, Tensor]:
    """The factors by PEFT's names, in fp32: `….lora_A.weight` [rank, in], `….lora_B.weight` [out, rank]."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(widths.layers):
        for target, outputs in widths.outputs.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            down_RI = torch.randn(SPEC.rank, widths.hidden, generator=generator) / widths.hidden**0.5
            state[f"{module}.lora_A.weight"] = down_RI
            state[f"{module}.lora_B.weight"] = torch.randn(outputs, SPEC.rank, generator=generator) * STRENGTH
    return state


async def publish(store: AdapterStore, student_id: str, *, seed: int, widths: Widths, base_digest: str) -> Manifest:
    """Makes a student an adapter and publishes it, as a clone would."""
    weights = await asyncio.to_thread(lambda: to_safetensors(random_state(widths, seed=seed)))
    return await store.publish(student_id, weights, recipe=_recipe(base_digest))


class Students:
    """Students with an adapter each, made when they are first asked for."""

    def __init__(self, store: AdapterStore, *, widths: Widths, base_digest: str) -> None:
        self._store = store
        self._widths = widths
        self._base_digest = base_digest
        self._published = 0

    async def first(self, count: int) -> list[str]:
        """The ids of so many students, all of whom have an adapter; the same ones every time."""
        numbers = iter(range(self._published, count))
        async with asyncio.TaskGroup() as group:
            for _ in range(_PUBLISHERS):
                group.create_task(self._publish_all(numbers))
        self._published = max(self._published, count)
        return [_name(number) for number in range(count)]

    async def fresh(self, count: int) -> list[str]:
        """So many students whom nobody asked for before."""
        known = self._published
        return (await self.first(known + count))[known:]

    def state(self, number: int) -> dict[str, Tensor]:
        """The adapter of the student with this number, for the baselines."""
        return random_state(self._widths, seed=number)

    async def _publish_all(self, numbers: Iterator[int]) -> None:
        # The iterator is shared: each publisher takes the next number.
        for number in numbers:
            await publish(self._store, _name(number), seed=number, widths=self._widths, base_digest=self._base_digest)


def _name(number: int) -> str:
    return f"student-{number:05}"


def _recipe(base_digest: str) -> Recipe:
    return Recipe(
        clone_id=f"clone_{uuid.uuid4().hex[:16]}",
        base_model="benchmark",
        base_digest=base_digest,
        lora=Lora(rank=SPEC.rank, alpha=float(SPEC.alpha), target_modules=SPEC.target_modules, dtype="F32"),
        scale=1.0,
        serving=Serving(temperature=0.0, top_p=1.0, max_tokens=100),
        examples=Examples(given=10, feedback=10, distilled=0, dropped=0, train=8, heldout=2),
        metrics=Metrics(
            heldout_loss_base=2.0, heldout_loss_adapter=1.5, train_steps=3, seconds_per_step=1.0, seconds=3.0
        ),
        seed=0,
        profile=Profile(),
        data_digest="0" * 64,
    )
