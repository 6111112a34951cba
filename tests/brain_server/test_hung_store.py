"""A store that accepts connections and does not answer, through a real server with a real engine."""

from pathlib import Path

from aivo.brain.v1 import brain_service_pb2 as pb

from testing.load.hung_store import class_behind_proxy
from testing.parts.stores import S3Endpoint
from testing.waiting import until


async def test_a_whole_class_is_answered_while_s3_hangs_and_gets_its_adapters_back_afterwards(
    s3_endpoint: S3Endpoint, bucket: str, small_llama: Path
) -> None:
    async with class_behind_proxy(small_llama, s3_url=s3_endpoint.url, bucket=bucket) as school_class:
        resident = set(school_class.students[::2])

        async def are_resident() -> bool:
            return all([(await school_class.ask(student)).finished.HasField("adapter") for student in resident])

        # On a busy machine, the budget may be over before a first fetch is.
        await until(are_resident, seconds=60)
        school_class.proxy.hang()

        # Whoever waits for the store itself is cut off here by the deadline of the call.
        for _ in range(2):
            for student, reply in (await school_class.ask_all()).items():
                if student in resident:
                    assert (reply.finished.adapter.student_id, reply.finished.HasField("fallback")) == (student, False)
                else:
                    assert reply.finished.fallback == pb.FALLBACK_REASON_ADAPTER_STORE_UNAVAILABLE

        school_class.proxy.heal()
        stranger = school_class.students[1]

        async def is_back() -> bool:
            return (await school_class.ask(stranger)).finished.adapter.student_id == stranger

        await until(is_back, seconds=60)
