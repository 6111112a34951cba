"""The `aivo` command as a process, and scripted servers for it to call."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from testing.scripted.brain_server import ScriptedBrain, serving_brain
from testing.scripted.cloning_server import ScriptedCloning, serving_cloning
from testing.scripted.script import Script


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


Aivo = Callable[..., Awaitable[CommandResult]]


@pytest.fixture
async def brain_server() -> AsyncIterator[tuple[Script, str]]:
    brain = ScriptedBrain()
    async with serving_brain(brain) as port:
        yield brain.script, f"127.0.0.1:{port}"


@pytest.fixture
async def cloning_server() -> AsyncIterator[tuple[Script, str]]:
    cloning = ScriptedCloning()
    async with serving_cloning(cloning) as port:
        yield cloning.script, f"127.0.0.1:{port}"


@pytest.fixture
def brain(brain_server: tuple[Script, str]) -> Script:
    return brain_server[0]


@pytest.fixture
def cloning(cloning_server: tuple[Script, str]) -> Script:
    return cloning_server[0]


@pytest.fixture
def aivo(brain_server: tuple[Script, str], cloning_server: tuple[Script, str]) -> Aivo:
    """Runs the command with the servers' addresses in its environment."""
    addresses = {"BRAIN_ADDRESS": brain_server[1], "CLONING_ADDRESS": cloning_server[1]}

    async def run(*words: str, stdin: str = "") -> CommandResult:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "client",
            *words,
            env={**os.environ, **addresses},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return CommandResult(status=process.returncode, out=out.decode(), err=err.decode())

    return run
