"""Faults of the stores that leave their processes running."""

import asyncio
import hashlib
import random

from cloning_server.clones.layout import SCRIPTS
from mesh.valkey.connection import open_redis
from mesh.valkey.script import read_source, with_names
from testing.chaos.aivo import Aivo

# Longer than health, leases and callers take to notice.
REFUSAL_SECONDS = 4.0
# Settings with which Valkey refuses writes, and their usual values: as without replicas, and without memory.
_REFUSALS = (("min-replicas-to-write", 1, 0), ("maxmemory", 1, 0))
# The scripts that accept a clone, lease it and change it.
_SCRIPTS = ("start", "claim", "change")
# Clones start, begin and go on all the time.
LOSS_SECONDS = 60.0


async def refuse_writes(aivo: Aivo, chance: random.Random) -> None:
    """Valkey answers reads and refuses writes."""
    setting, refusing, usual = chance.choice(_REFUSALS)
    async with open_redis(aivo.redis.url) as redis:
        await redis.config_set(setting, refusing)
        try:
            await asyncio.sleep(REFUSAL_SECONDS)
        finally:
            await redis.config_set(setting, usual)


async def hang_s3(aivo: Aivo) -> None:
    """S3 accepts connections and does not answer. What it was asked meanwhile, it does afterwards."""
    aivo.s3_proxy.hang()
    try:
        await asyncio.sleep(aivo.outage_seconds)
    finally:
        aivo.s3_proxy.heal()


async def lose_answers(aivo: Aivo) -> None:
    """Connections to Valkey break after a write has taken effect and before its answer."""
    async with asyncio.timeout(LOSS_SECONDS):
        for name in _SCRIPTS:
            await aivo.redis_proxy.lose_answer(_digest_of(name))


def _digest_of(script: str) -> bytes:
    """By which a call names the script."""
    source = with_names(read_source(SCRIPTS, script))
    return hashlib.sha1(source.encode()).hexdigest().encode()
