"""The real store and the adapters in memory, without a model: what tests of their choice share."""

from collections.abc import Mapping

from torch import Tensor

from brain_server.adapters.choice import AdapterChoice, StudentAdapters
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.contract import AdapterPolicy, Generation
from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.lora import from_safetensors
from mesh.tutoring.profile import StudentProfile
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe
from testing.parts.stores import S3Endpoint

DIGEST = "d" * 64
WEIGHTS = random_weights(1, rank=1)
PROMPT = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Why?"),))
HOUR_SECONDS = 3600.0


def blobs_at(endpoint: S3Endpoint, bucket: str) -> S3Blobs:
    return S3Blobs(bucket=bucket, endpoint_url=endpoint.url, create_bucket=True)


async def parse_weights(stored_adapter: StoredAdapter) -> Mapping[str, Tensor]:
    return from_safetensors(stored_adapter.weights)


Adapters = StudentAdapters[Mapping[str, Tensor]]


def adapters_of(
    store: AdapterStore,
    *,
    ttl: float = 0,
    outage: float = HOUR_SECONDS,
    host_bytes: int = 1 << 30,
    answer: float = HOUR_SECONDS,
) -> Adapters:
    pointers = ActivePointers(store, ttl_seconds=ttl, outage_seconds=outage, answer_seconds=answer)
    return StudentAdapters(
        store,
        base_digest=DIGEST,
        pointers=pointers,
        prepare=parse_weights,
        host_bytes=host_bytes,
        choice_seconds=answer,
    )


async def publish_random(store: AdapterStore, student: str, *, seed: int = 1, digest: str = DIGEST) -> Manifest:
    return await publish(store, student, random_weights(seed, rank=1), recipe=recipe(base_digest=digest, rank=1))


def request_of(
    student: str | None, *, policy: AdapterPolicy = AdapterPolicy.PREFER, version: int | None = None
) -> Generation:
    return Generation(prompt=PROMPT, student_id=student, policy=policy, version=version)


async def choose(adapters: Adapters, generation: Generation) -> AdapterChoice[Mapping[str, Tensor]]:
    async with adapters.choose(generation) as choice:
        return choice
