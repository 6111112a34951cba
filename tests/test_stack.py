"""The stack that the tests stand on does what they rely on."""

import os
import select
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from testing.parts.part import Part
from testing.parts.stores import valkey


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
