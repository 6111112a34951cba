"""Any number of students, each with a random adapter of the default shape, published to a real store.

The weights are noise: large enough that no product can be skipped, and too small to make the model end its replies
early. Speed does not depend on their values.
"""

import asyncio
from collections.abc import Iterator

from torch import Tensor

from mesh.adapters.manifest import Manifest, Serving
from mesh.adapters.store import AdapterStore
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_state, random_weights, recipe

# Size of an adapter's update, relative to the weights of the base model.
_STRENGTH = 0.003
_SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=100)
# The store has as many threads.
_PUBLISHERS = 8


async def publish_random(
    store: AdapterStore, student_id: str, *, seed: int, widths: Widths, base_digest: str
) -> Manifest:
    """Makes a random adapter for a student and publishes it, as a clone would."""
    weights = await asyncio.to_thread(random_weights, seed, strength=_STRENGTH, widths=widths)
    return await publish(store, student_id, weights, recipe=recipe(base_digest=base_digest, serving=_SERVING))


class PublishedStudents:
    """A growing set of students; publishes the adapter of each when its id is first needed.

    Args:
        store: Where the adapters are published.
        widths: Widths of the base model's maps.
        base_digest: Digest of the base model.
    """

    def __init__(self, store: AdapterStore, *, widths: Widths, base_digest: str) -> None:
        self._store = store
        self._widths = widths
        self._base_digest = base_digest
        self._published_count = 0

    async def first_ids(self, count: int) -> list[str]:
        """Returns the ids of the first `count` students, the same on every call, after publishing their adapters."""
        numbers = iter(range(self._published_count, count))
        async with asyncio.TaskGroup() as group:
            for _ in range(_PUBLISHERS):
                group.create_task(self._publish_all(numbers))
        self._published_count = max(self._published_count, count)
        return [_student_id(number) for number in range(count)]

    async def new_ids(self, count: int) -> list[str]:
        """Returns the ids of `count` students that no call has returned before."""
        count_before = self._published_count
        return (await self.first_ids(count_before + count))[count_before:]

    def adapter_state(self, number: int) -> dict[str, Tensor]:
        """Returns the adapter weights of the student with this number, for the baselines."""
        return random_state(number, strength=_STRENGTH, widths=self._widths)

    async def _publish_all(self, numbers: Iterator[int]) -> None:
        # The iterator is shared: each publisher takes the next number.
        for number in numbers:
            student_id = _student_id(number)
            await publish_random(
                self._store, student_id, seed=number, widths=self._widths, base_digest=self._base_digest
            )


def _student_id(number: int) -> str:
    return f"student-{number:05}"
