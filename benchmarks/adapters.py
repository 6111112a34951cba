"""Students by the hundred: random adapters of the usual shape, published to the real store.

An adapter's numbers are noise, strong enough to be computed in full and too weak to make the model end its replies
early; speed does not depend on what they say.
"""

import asyncio
from collections.abc import Iterator

from torch import Tensor

from mesh.adapters.manifest import Manifest, Serving
from mesh.adapters.store import AdapterStore
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_state, random_weights, recipe

# Of the update's numbers against those of the base model's map.
_STRENGTH = 0.003
_SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=100)
# As many as the store's threads.
_PUBLISHERS = 8


async def publish_random(
    store: AdapterStore, student_id: str, *, seed: int, widths: Widths, base_digest: str
) -> Manifest:
    """Makes a student an adapter and publishes it, as a clone would."""
    weights = await asyncio.to_thread(random_weights, seed, strength=_STRENGTH, widths=widths)
    return await publish(store, student_id, weights, recipe=recipe(base_digest=base_digest, serving=_SERVING))


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
        published_before = self._published
        return (await self.first(published_before + count))[published_before:]

    def state(self, number: int) -> dict[str, Tensor]:
        """The adapter of the student with this number, for the baselines."""
        return random_state(number, strength=_STRENGTH, widths=self._widths)

    async def _publish_all(self, numbers: Iterator[int]) -> None:
        # The iterator is shared: each publisher takes the next number.
        for number in numbers:
            await publish_random(
                self._store, _name(number), seed=number, widths=self._widths, base_digest=self._base_digest
            )


def _name(number: int) -> str:
    return f"student-{number:05}"
