"""The contract breaks no client of the last release, and names the errors of all calls."""

import asyncio
import re
import sys
from pathlib import Path

from aivo.error.v1 import reason_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from mesh.errors import AivoError, InvalidField
from mesh.rpc import interceptor

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / re.findall(r"^CONTRACT := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
NOW = ROOT / "gen" / "descriptors.binpb"
PROTOS = ROOT / "protos"
REASON_PROTO = (PROTOS / "aivo/error/v1/reason.proto").read_text()
# What the comment of the enum says, before its values.
OF_ANY_CALL = REASON_PROTO[: REASON_PROTO.index("enum Reason")]
REASONS = {name.removeprefix("REASON_") for name, _ in reason_pb2.Reason.items()} - {"UNSPECIFIED"}


async def breaks(descriptors: Path) -> str:
    """What `make check` says of such a contract; empty if it breaks nothing."""
    command = (
        str(Path(sys.executable).parent / "buf"),
        "breaking",
        str(descriptors),
        "--against",
        str(RELEASED),
        "--exclude-imports",
    )
    config = '{"version": "v2", "breaking": {"use": ["WIRE_JSON"]}}'
    process = await asyncio.create_subprocess_exec(
        *command, "--config", config, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


async def test_todays_contract_breaks_no_client_of_the_last_release() -> None:
    assert await breaks(NOW) == ""


async def test_a_renamed_field_is_refused(tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(NOW.read_bytes())
    (file,) = [file for file in files.file if file.name == "aivo/brain/v1/adapter.proto"]
    file.message_type[0].field[0].name = "pupil_id"
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(files.SerializeToString())
    assert "pupil_id" in await breaks(changed)


def reasons_in(text: str) -> set[str]:
    """The reasons that a comment names."""
    return set(re.findall(r"`([A-Z_]+)`", text)) & REASONS


def test_the_contract_says_with_what_any_call_may_fail() -> None:
    imported = [kind for kind in vars(interceptor).values() if isinstance(kind, type) and issubclass(kind, AivoError)]
    raised = {kind.reason for kind in imported if "reason" in vars(kind)}
    assert "QUEUE_FULL" in raised
    assert raised | {InvalidField.reason} <= reasons_in(OF_ANY_CALL)


def test_every_reason_is_named_by_the_calls_that_fail_with_it_unless_it_ends_a_clone() -> None:
    named = reasons_in(OF_ANY_CALL)
    for file in PROTOS.rglob("*_service.proto"):
        # Comments of messages come after the services.
        services = file.read_text().partition("\nmessage ")[0]
        assert "(`aivo.error.v1.Reason`)" in services, file.name
        named |= reasons_in(services)
    described = re.findall(r"((?: +//.*\n)+) +REASON_(\w+) = [1-9]", REASON_PROTO)
    ends_a_clone = {name for comment, name in described if re.search(r"\bends a clone", comment, re.IGNORECASE)}
    assert named | ends_a_clone == REASONS
