"""Students with adapters, for the tests of the engine."""

import pytest

from mesh.adapters.store import AdapterStore
from mesh.main_brain.base import BaseModel
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe


@pytest.fixture(scope="module")
async def students(adapter_store: AdapterStore, reference: BaseModel) -> dict[str, bytes]:
    """Two students and the weight files of their adapters, which are random and differ."""
    weights = {"ada": random_weights(1, strength=0.1), "ben": random_weights(2, strength=0.1)}
    for student_id, content in weights.items():
        await publish(adapter_store, student_id, content, recipe=recipe(base_digest=reference.digest))
    return weights
