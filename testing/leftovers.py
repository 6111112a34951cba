"""What the stores hold, and what of it should not be there."""

from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from mesh.adapters.blobs import Blobs
from mesh.adapters.documents import Documents
from mesh.adapters.store import AdapterStore


async def leftovers(blobs: Blobs, store: AdapterStore, tenant: str) -> set[str]:
    """Returns the tenant's keys that belong to no complete version of a live commit; void commits do not count.

    Also asserts that every committed version is complete and can be fetched, and that every pointer names one.
    """
    documents = Documents(blobs, tenant=tenant)
    keys = set(await blobs.keys(documents.keys.prefix))
    expected_keys: set[str] = set()
    async for manifest in documents.commits():
        assert (await store.fetch(manifest.ref, sha256=manifest.sha256)).manifest == manifest
        expected_keys |= manifest.keys
        assert manifest.keys <= keys
        description = await documents.read(manifest.ref.config_key)
        assert description is None or description.data == manifest.recipe.peft_config
    for key in keys:
        student_id = documents.keys.student_in(key)
        if student_id is None:
            expected_keys.add(key)
        elif key == documents.keys_of(student_id).active:
            active = await store.resolve_active(student_id)
            if active is not None:
                await store.fetch(active.ref, sha256=active.sha256)
            if any(version.ref.student_id == student_id for version in await store.list_versions(student_id)):
                expected_keys.add(key)
    return keys - expected_keys


async def content_of_valkey(redis: Redis) -> str:
    """All keys and values of Valkey's first database, as text. Asserts that it holds no other, and no other types."""
    assert set(await redis.info("keyspace")) <= {"db0"}, "no database is left out"
    keys = [str(key) async for key in redis.scan_iter()]
    read: dict[str, Callable[[str], Awaitable[object]]] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "stream": redis.xrange,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "set": redis.smembers,
        "list": lambda key: redis.lrange(key, 0, -1),
        # Gone since it was listed.
        "none": redis.get,
    }
    return repr([(key, await read[str(await redis.type(key))](key)) for key in keys])
