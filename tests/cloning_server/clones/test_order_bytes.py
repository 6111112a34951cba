"""What one order may take in Valkey, so that a full queue of the largest does not fill its memory."""

import pytest
from redis.asyncio import Redis

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import encode_baseline
from cloning_server.clones.registry import Registry
from cloning_server.settings import CloningSettings
from mesh.errors import InvalidField
from mesh.tutoring.profile import StudentProfile
from tests.cloning_server.conftest import SEALING, STUDENT, Cloning, order, raised

MOST_QUEUE_BYTES = 256_000_000


def baseline_of(size: int) -> Baseline:
    """A baseline of exactly so many bytes as JSON, in responses of what the contract allows."""
    response = BaselineResponse(question="q" * 4000, student_answer="a" * 4000)
    empty = Baseline(profile=StudentProfile(grade="5"), responses=(response,))
    each = len(encode_baseline(Baseline(profile=empty.profile, responses=(response, response))))
    each -= len(encode_baseline(empty))
    count = (size - len(encode_baseline(empty))) // each
    missing = size - len(encode_baseline(Baseline(profile=empty.profile, responses=(response,) * (count + 1))))
    last = BaselineResponse(question="q" * 4000, student_answer="a" * 4000, reference_answer="r" * missing)
    return Baseline(profile=empty.profile, responses=(*(response,) * count, last))


async def test_a_full_queue_of_the_largest_orders_fits(redis: Redis, clones: CloneStore) -> None:
    settings = CloningSettings()
    registry = Registry.of(clones, sealing=SEALING, order_bytes=settings.clone_order_bytes)
    clone = await registry.intake.start(STUDENT, baseline_of(settings.clone_order_bytes))
    prefix = clones.channel.removesuffix("changes")
    used = [await redis.memory_usage(f"{prefix}{name}:{clone.clone_id}") or 0 for name in ("baseline", "feed")]
    assert used[0] > settings.clone_order_bytes
    assert sum(used) * settings.clone_queue_limit <= MOST_QUEUE_BYTES

    with pytest.raises(InvalidField) as caught:
        await registry.intake.start("student-2", baseline_of(settings.clone_order_bytes + 1))
    assert [violation.field for violation in caught.value.violations] == ["baseline_data"]


async def test_a_larger_order_is_refused_with_its_field_and_the_limit(cloning: Cloning) -> None:
    cloning.set(clone_order_bytes=100_000)
    request = order(responses=100)
    for response in request.baseline_data.responses:
        response.teacher_feedback = "secret" * 200
    async with cloning.serve() as stub:
        with raised() as failed:
            await stub.StartClone(request)
    assert isinstance(failed.error, InvalidField)
    assert [violation.field for violation in failed.error.violations] == ["baseline_data"]
    assert "100000 bytes" in str(failed.error)
    assert "secret" not in str(failed.error)
