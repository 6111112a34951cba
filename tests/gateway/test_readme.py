"""The commands of both READMEs, as they stand there, by the real curl and grpcurl."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from testing.parts.envoy import Edge
from testing.scripted.script import Script

ROOT = Path(__file__).parents[2]
COMMANDS = [
    line
    for page in (ROOT / "README.md", ROOT / "gateway" / "README.md")
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README shows REST by curl")
@pytest.mark.parametrize("command", COMMANDS)
async def test_each_command_of_the_readme_works(edge: Edge, brain: Script, cloning: Script, command: str) -> None:
    # The ports are this test's; --fail makes an HTTP error the status.
    command = command.replace("localhost:8001", edge.brain_address).replace("localhost:8014", edge.cloning_address)
    command = re.sub(r"\bcurl ", "curl --fail-with-body --silent ", command, count=1)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    process = await asyncio.create_subprocess_shell(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output
    assert output.strip()
