"""The contract of the last release holds: a change that would break its clients is refused."""

import asyncio
import re
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / re.findall(r"^CONTRACT := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
NOW = ROOT / "gen" / "descriptors.binpb"


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
