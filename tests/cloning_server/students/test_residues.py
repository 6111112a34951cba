"""A mark in every field, and where it is found: in all that the stores hold, in their files, and in the logs.

`ALLOWED` is the table of docs/security-and-privacy.md. What is not in it must be nowhere.
"""

import contextlib
import logging
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_service_pb2 as student_pb
from google.protobuf.timestamp_pb2 import Timestamp

from cloning_server.clones.file_rewriter import FileRewriter
from cloning_server.clones.upkeep_store import UpkeepStore
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.valkey.connection import open_redis
from testing.leftovers import content_of_valkey
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed
from testing.scripted.brain import ScriptedBrain
from testing.waiting import until as until_true
from tests.cloning_server.conftest import STUDENT, Cloning, CloningStub, watch_all
from tests.cloning_server.students.calls import delete

# Every field of an order that holds text, with its mark; ids may not hold other letters.
MARKS = {
    name: f"zwib-{name.replace('_', '-')}"
    for name in (
        "name", "interests", "assessment_id", "item_id", "skill", "question", "reference_answer", "student_answer",
        "teacher_feedback", "request_id", "student_id",
    )
}  # fmt: skip
STUDENT_MARK = MARKS["student_id"]
# Which marks a place may hold. `clone_id` stands for the clone's id.
ALLOWED: Mapping[str, Mapping[str, set[str]]] = {
    "ended": {
        "valkey": {"student_id", "clone_id", "request_id"},
        "valkey file": {"student_id", "clone_id", "request_id"},
        "s3": {"student_id", "clone_id", "interests"},
        "s3 disks": {"student_id", "clone_id", "interests"},
        "logs": {"clone_id"},
    },
    "deleted": {
        "valkey": set(),
        "valkey file": {"student_id", "clone_id", "request_id"},
        "s3": {"clone_id"},
        "s3 disks": {"student_id", "clone_id", "interests"},
        "logs": {"clone_id"},
    },
    "rewritten": {
        "valkey": set(),
        "valkey file": set(),
        "s3": {"clone_id"},
        "s3 disks": {"student_id", "clone_id", "interests"},
        "logs": {"clone_id"},
    },
}
BUCKET = "marked"


@pytest.fixture
async def own_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Endpoint]:
    """A SeaweedFS of this test alone."""
    folder = tmp_path / "s3"
    folder.mkdir()
    async with seaweed(folder) as endpoint:
        for name, value in endpoint.env.items():
            monkeypatch.setenv(name, value)
        yield endpoint


@pytest.fixture
def read_logs(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Returns what was logged, at every level: printed, or passed on if an earlier test has configured the log."""
    for package in ("cloning_server", "mesh"):
        caplog.set_level(logging.DEBUG, logger=package)
    printed: list[str] = []

    def read() -> str:
        printed.extend(capfd.readouterr())
        return "".join([*printed, caplog.text])

    return read


def marked_order() -> pb.StartCloneRequest:
    return pb.StartCloneRequest(
        student_id=STUDENT_MARK,
        request_id=MARKS["request_id"],
        student_profile=pb.StudentProfile(
            name=MARKS["name"], grade="5", disability="adhd", learning_style="visual", interests=[MARKS["interests"]]
        ),
        baseline_data=pb.BaselineData(
            assessment_id=MARKS["assessment_id"],
            responses=[
                pb.BaselineResponse(
                    item_id=f"{MARKS['item_id']}-{number}",
                    skill=MARKS["skill"],
                    question=f"{MARKS['question']} {number}?",
                    reference_answer=f"{MARKS['reference_answer']} {number}.",
                    student_answer=f"{MARKS['student_answer']} {number}.",
                    teacher_feedback=f"{MARKS['teacher_feedback']} {number}.",
                    is_correct=True,
                )
                for number in range(4)
            ],
        ),
    )


def content_of(folder: Path) -> bytes:
    """The names and bytes of all files of a store; its log is one of them."""
    return b"".join(str(file).encode() + unzipped(file.read_bytes()) for file in folder.rglob("*") if file.is_file())


def unzipped(content: bytes) -> bytes:
    """These bytes, and what in them is compressed: SeaweedFS compresses what shrinks."""
    parts = [content]
    for start in (match.start() for match in re.finditer(b"\x1f\x8b\x08", content)):
        with contextlib.suppress(zlib.error):
            parts.append(zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(content[start:]))
    return b"".join(parts)


class Places:
    """Reads all places where a mark may be."""

    def __init__(self, folder: Path, *, redis_url: str, blobs: S3Blobs, read_logs: Callable[[], str]) -> None:
        self._folder = folder
        self._redis_url = redis_url
        self._blobs = blobs
        self._read_logs = read_logs

    async def found(self, marks: Mapping[str, str]) -> dict[str, set[str]]:
        """The names of the marks in each place."""
        contents = {
            "valkey": await self._valkey(),
            "valkey file": content_of(self._folder / "valkey"),
            "s3": await self._s3(),
            "s3 disks": content_of(self._folder / "s3"),
            "logs": self._read_logs().encode(),
        }
        assert {path.name for path in self._folder.iterdir()} == {"valkey", "s3"}, "no file is left out"
        return {
            place: {name for name, mark in marks.items() if mark.encode() in content}
            for place, content in contents.items()
        }

    async def _valkey(self) -> bytes:
        async with open_redis(self._redis_url) as redis:
            return (await content_of_valkey(redis)).encode()

    async def _s3(self) -> bytes:
        keys = await self._blobs.keys("")
        blobs = [await self._blobs.read(key, limit_bytes=1 << 24) for key in keys]
        return b"\n".join([*(key.encode() for key in keys), *(blob.data for blob in blobs if blob)])


async def test_only_the_allowed_residues_are_anywhere(
    cloning: Cloning,
    own_redis: RedisEndpoint,
    own_s3: S3Endpoint,
    tmp_path: Path,
    read_logs: Callable[[], str],
) -> None:
    async with S3Blobs(bucket=BUCKET, endpoint_url=own_s3.url, create_bucket=True) as blobs:
        brain = ScriptedBrain(AdapterStore(blobs, tenant=cloning.settings.tenant))
        await brain.start()
        cloning.set(redis_url=own_redis.url, s3_endpoint_url=own_s3.url, s3_bucket=BUCKET, brain_address=brain.address)
        places = Places(tmp_path, redis_url=own_redis.url, blobs=blobs, read_logs=read_logs)
        async with cloning.serve() as stub:
            clone_id = (await stub.StartClone(marked_order())).clone_id
            assert (await watch_all(stub, clone_id))[-1].status == "completed"
            marks = {**MARKS, "clone_id": clone_id}
            assert await places.found(marks) == ALLOWED["ended"]
            await delete(stub, STUDENT_MARK)
            assert await places.found(marks) == ALLOWED["deleted"]
        for part in (own_redis.part, own_s3.part):
            await part.stop()
            await part.start()
        async with cloning.serve():
            assert await places.found(marks) == ALLOWED["deleted"], "a restart brings nothing back"
        async with open_redis(own_redis.url) as redis:
            upkeep_store = UpkeepStore(redis, tenant=cloning.settings.tenant)
            assert await FileRewriter(upkeep_store, redis, every_seconds=0.01).rewrite_if_due()
        assert await places.found(marks) == ALLOWED["rewritten"]
        await brain.stop()


async def test_the_scan_finds_all_that_is_not_sealed(
    cloning: Cloning, own_redis: RedisEndpoint, tmp_path: Path
) -> None:
    cloning.set(redis_url=own_redis.url, master_key=None)
    async with cloning.serve() as stub:
        await watch_all(stub, (await stub.StartClone(marked_order())).clone_id)
    content = content_of(tmp_path / "valkey")
    assert [name for name, mark in MARKS.items() if mark.encode() not in content] == ["name"]


async def test_a_server_has_the_file_rewritten_once_for_many_removals(
    cloning: Cloning, own_redis: RedisEndpoint
) -> None:
    cloning.set(redis_url=own_redis.url)
    async with cloning.serve() as stub, open_redis(own_redis.url) as redis:
        for number in range(3):
            request = marked_order()
            request.student_id, request.request_id = f"{STUDENT}-{number}", ""
            await watch_all(stub, (await stub.StartClone(request)).clone_id)
        upkeep_store = UpkeepStore(redis, tenant=cloning.settings.tenant)
        rewriters = [FileRewriter(upkeep_store, redis, every_seconds=60) for _ in range(2)]
        before = await rewrites(own_redis)
        assert [await rewriter.rewrite_if_due() for rewriter in rewriters] == [True, True]
        assert await rewrites(own_redis) == before + 1
        await delete(stub, f"{STUDENT}-0")
        assert not await rewriters[0].rewrite_if_due(), "not before the interval is over"


async def test_a_receipt_dates_no_rewrite_that_valkey_refuses(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    cloning.set(redis_url=own_redis.url, file_rewrite_seconds=0.05)
    async with cloning.serve() as stub, open_redis(own_redis.url) as redis:
        assert await until_of_file(stub) is not None
        # As a managed Valkey, which has no such command.
        await redis.acl_setuser("default", enabled=True, nopass=True, commands=["-bgrewriteaof"])

        async def is_known() -> bool:
            health = await stub.GetHealth(pb.GetHealthRequest())
            return health.status == "degraded" and "append-only file" in health.reason

        await until_true(is_known, seconds=20)
        assert await until_of_file(stub) is None
        await redis.acl_setuser("default", enabled=True, nopass=True, commands=["+bgrewriteaof"])


class FailingRewrites:
    """What a Valkey answers that begins to rewrite its file when it is asked, and fails, as on a full disk."""

    async def bgrewriteaof(self) -> None:
        pass

    async def info(self) -> dict[str, object]:
        return {
            "run_id": "one", "aof_enabled": 1, "aof_rewrite_in_progress": 0, "aof_rewrite_scheduled": 0,
            "aof_last_bgrewrite_status": "err",
        }  # fmt: skip


async def test_a_rewrite_that_begins_and_fails_is_a_problem_until_one_succeeds(
    cloning: Cloning, own_redis: RedisEndpoint
) -> None:
    cloning.set(redis_url=own_redis.url, file_rewrite_seconds=3600)
    async with cloning.serve() as stub, open_redis(own_redis.url) as redis:
        await watch_all(stub, (await stub.StartClone(marked_order())).clone_id)
        upkeep_store = UpkeepStore(redis, tenant=cloning.settings.tenant)
        failing: Any = FailingRewrites()
        rewriter = FileRewriter(upkeep_store, failing, every_seconds=0.01)
        assert not await rewriter.rewrite_if_due()
        assert "does not rewrite its append-only file" in "".join(rewriter.problems)
        # The turn of the failed one must pass first.
        await until_true(FileRewriter(upkeep_store, redis, every_seconds=0.01).rewrite_if_due, seconds=20)
        assert await rewriter.rewrite_if_due()
        assert rewriter.problems == ()


async def until_of_file(stub: CloningStub) -> Timestamp | None:
    """Until when a receipt says that Valkey's file may hold something."""
    receipt = await delete(stub, STUDENT_MARK)
    (residue,) = (each for each in receipt.residues if each.place == student_pb.RESIDUE_PLACE_CLONE_STORE_FILE)
    return residue.until if residue.HasField("until") else None


async def rewrites(endpoint: RedisEndpoint) -> int:
    """How often the file was rewritten: Valkey numbers its base files."""
    async with open_redis(endpoint.url) as redis:
        folder = Path(str((await redis.config_get("dir"))["dir"]))
    (base,) = (folder / "appendonlydir").glob("*.base.*")
    number = re.search(r"\.(\d+)\.base\.", base.name)
    assert number
    return int(number[1])


def test_the_table_of_residues_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "security-and-privacy.md").read_text()
    assert "tests/cloning_server/students/test_residues.py" in page
    for residue in ("student id", "clone id, request id", "interests", "baseline, sealed"):
        assert f"| {residue} |" in page
