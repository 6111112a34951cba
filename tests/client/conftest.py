"""The `aivo` command and the demo as processes, and scripted servers for them to call."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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
async def brain_server() -> AsyncIterator[tuple[ScriptedBrain, str]]:
    brain = ScriptedBrain()
    async with serving_brain(brain) as port:
        yield brain, f"127.0.0.1:{port}"


@pytest.fixture
async def cloning_server() -> AsyncIterator[tuple[ScriptedCloning, str]]:
    cloning = ScriptedCloning()
    async with serving_cloning(cloning) as port:
        yield cloning, f"127.0.0.1:{port}"


@pytest.fixture
def brain(brain_server: tuple[ScriptedBrain, str]) -> Script:
    return brain_server[0].script


@pytest.fixture
def cloning(cloning_server: tuple[ScriptedCloning, str]) -> Script:
    return cloning_server[0].script


@pytest.fixture
def addresses(
    brain_server: tuple[ScriptedBrain, str], cloning_server: tuple[ScriptedCloning, str]
) -> Mapping[str, str]:
    """The servers' addresses, as variables of the environment."""
    return {"BRAIN_ADDRESS": brain_server[1], "CLONING_ADDRESS": cloning_server[1]}


@pytest.fixture
def aivo(addresses: Mapping[str, str]) -> Aivo:
    """Runs the command with the servers' addresses in its environment."""

    async def run(*words: str, stdin: str = "") -> CommandResult:
        return await run_module("client", *words, env=addresses, stdin=stdin)

    return run


async def run_module(module: str, *words: str, env: Mapping[str, str], stdin: str = "") -> CommandResult:
    """Runs a module of the client as a process, with these additional variables."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *words,
        env={**os.environ, **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return CommandResult(status=process.returncode, out=out.decode(), err=err.decode())
