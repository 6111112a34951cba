"""The stack that the tests stand on does what they rely on."""

import asyncio
import contextlib
import json
import os
import select
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from testing import clock
from testing.parts.fault_proxy import FaultProxy
from testing.parts.part import Part
from testing.parts.stores import RedisEndpoint, valkey


async def test_a_killed_valkey_comes_back_on_its_port_with_its_data(tmp_path: Path) -> None:
    async with valkey(tmp_path) as endpoint, Redis.from_url(endpoint.url) as redis:
        await redis.set("clone", "saved")

        await endpoint.part.kill()
        with pytest.raises(RedisConnectionError):
            await redis.ping()

        await endpoint.part.start()
        assert await redis.get("clone") == b"saved"


async def test_a_part_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    part = Part(["sh", "-c", "echo no such setting >&2; exit 1"], folder=tmp_path, probe=never)
    with pytest.raises(RuntimeError, match="no such setting"):
        await part.start()


async def test_a_part_that_ignores_the_signal_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testing.parts.part.STOP_SECONDS", 0.1)
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)

    async def child_wrote() -> bool:
        return os.read(alive, 2) == b"x\n"

    script = "trap '' TERM; (echo x; exec sleep 600) > alive & while :; do wait; done"
    part = Part(["bash", "-c", script], folder=tmp_path, probe=child_wrote)
    await part.start()
    await part.stop()

    # The pipe ends once nobody is left to write to it.
    assert select.select([alive], [], [], 10)[0]
    assert os.read(alive, 2) == b""
    os.close(alive)


async def test_a_part_that_is_lost_takes_with_it_what_left_its_group(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    child = 'import time; file = open("alive", "w"); print("up", file=file, flush=True); time.sleep(600)'
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"

    async def child_is_up() -> bool:
        return bool(select.select([alive], [], [], 0)[0])

    part = Part([sys.executable, "-c", parent], folder=tmp_path, probe=child_is_up)
    try:
        await part.start()
        assert os.read(alive, 8) == b"up\n"
        await part.lose()
        # The other end is closed once the child is gone.
        assert select.select([alive], [], [], 10)[0]
        assert os.read(alive, 8) == b""
    finally:
        os.close(alive)


async def test_a_proxy_loses_the_answer_of_a_request_that_took_effect_and_of_no_other(
    redis_endpoint: RedisEndpoint,
) -> None:
    host, _, port = redis_endpoint.url.removesuffix("/0").rpartition(":")
    never_again = Retry(NoBackoff(), 0)
    async with FaultProxy(int(port)) as proxy, Redis.from_url(f"{host}:{proxy.port}/0", retry=never_again) as redis:
        losing = asyncio.create_task(proxy.lose_answer(b"counted"))
        await redis.set("other", "1")
        assert not losing.done()
        with pytest.raises(RedisConnectionError):
            await redis.incr("counted")
        await losing
        assert await redis.incr("counted") == 2


@contextlib.asynccontextmanager
async def evaluating(folder: Path, **env: str) -> AsyncIterator[tuple[Part, Callable[[str], str]]]:
    """Runs Python; yields it, and a function that has it evaluate an expression, or name the error."""
    for pipe in ("questions", "answers"):
        os.mkfifo(folder / pipe)
    imports = "import pathlib, pickle, time; from datetime import UTC, datetime"
    loop = """
for line in open('questions'):
    try:
        answer = eval(line)
    except OSError as error:
        answer = type(error).__name__
    print(answer, file=answers, flush=True)
"""

    async def has_started() -> bool:
        return True

    script = f"{imports}\nanswers = open('answers', 'w')\n{loop}"
    part = Part([sys.executable, "-c", script], folder=folder, probe=has_started, env=env)
    await part.start()
    try:
        # Each returns once the other end is open.
        with (folder / "answers").open() as answers, (folder / "questions").open("w", buffering=1) as questions:

            def evaluate(expression: str) -> str:
                questions.write(f"{expression}\n")
                return answers.readline().rstrip("\n")

            yield part, evaluate
    finally:
        await part.kill()


async def test_the_clock_of_a_process_jumps_and_comes_back(tmp_path: Path) -> None:
    async with evaluating(tmp_path, **clock.ENV) as (_, evaluate):

        def seconds_ahead() -> float:
            times = "(datetime.now(UTC), datetime.now(), datetime.utcnow().replace(tzinfo=UTC), datetime.today())"
            ahead = json.loads(evaluate(f"[each.timestamp() - time.time() for each in {times}]"))
            assert max(ahead) - min(ahead) < 60
            return float(ahead[0])

        assert abs(seconds_ahead()) < 60
        for jump in (400 * 24 * 3600.0, -3 * 3600.0):
            with clock.shifted_clock(tmp_path, jump):
                assert abs(seconds_ahead() - jump) < 60
        assert abs(seconds_ahead()) < 60
        # Such times are times like any other, and those that Python's C code makes are too.
        assert evaluate("(lambda now: pickle.loads(pickle.dumps(now)) == now)(datetime.now(UTC))") == "True"
        assert evaluate("isinstance(pickle.loads(pickle.dumps(datetime.now())), datetime)") == "True"
        assert evaluate("isinstance(datetime.fromtimestamp(0), type(datetime.now()))") == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, no process can limit another's files")
async def test_a_process_whose_disk_is_full_lives_and_writes_again_afterwards(tmp_path: Path) -> None:
    async with evaluating(tmp_path) as (part, evaluate):
        write = "pathlib.Path('file').write_text('words')"
        assert evaluate(write) == "5"
        with part.full_disk("no child"):
            assert evaluate(write) == "OSError"
        assert evaluate(write) == "5"
