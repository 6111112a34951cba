"""A store on the real S3, and adapters to put there."""

import uuid
from collections.abc import AsyncIterator

import numpy as np
import pytest
from boto3.session import Session
from safetensors.numpy import save

from mesh.adapters.manifest import Examples, Lora, Metrics, Profile, Recipe, Serving
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.parts.stores import S3Endpoint

LORA = Lora(rank=4, alpha=8, target_modules=("q_proj", "v_proj"), dtype="F32")


def factors(*, seed: int = 0, rank: int = LORA.rank) -> dict[str, np.ndarray]:
    """The factors of a small two-layer adapter under PEFT's names."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for target in LORA.target_modules:
            module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((rank, 16), dtype=np.float32)
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((16, rank), dtype=np.float32)
    return tensors


def weights(*, seed: int = 0) -> bytes:
    """A sound adapter's file; another seed, other bytes."""
    return save(factors(seed=seed))


def recipe(clone_id: str = "clone_1") -> Recipe:
    """A recipe that fits `weights`."""
    return Recipe(
        clone_id=clone_id,
        base_model="SmolLM2-135M-Instruct",
        base_digest="0" * 64,
        lora=LORA,
        scale=1.5,
        serving=Serving(temperature=0.7, top_p=0.9, max_tokens=256),
        examples=Examples(given=10, feedback=4, distilled=5, dropped=1, train=7, heldout=2),
        metrics=Metrics(
            heldout_loss_base=2.5, heldout_loss_adapter=2.0, train_steps=21, seconds_per_step=0.5, seconds=11.0
        ),
        seed=7,
        profile=Profile(grade="5", disability="adhd", learning_style="visual"),
        data_digest="1" * 64,
    )


@pytest.fixture(scope="package")
async def blobs(s3_endpoint: S3Endpoint) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket="test-adapters", endpoint_url=s3_endpoint.url, create_bucket=True) as s3_blobs:
        yield s3_blobs


@pytest.fixture
async def versioned(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Blobs]:
    """A bucket of this test alone that keeps past versions."""
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as s3_blobs:
        await s3_blobs.check()
        client = Session().client("s3", endpoint_url=s3_endpoint.url)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        client.close()
        yield s3_blobs


@pytest.fixture
def tenant() -> str:
    """A tenant of this test alone, as a clone's id is unique within one."""
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def store(blobs: S3Blobs, tenant: str) -> AdapterStore:
    return AdapterStore(blobs, tenant=tenant)


@pytest.fixture
def student() -> str:
    """A student of this test alone."""
    return f"student-{uuid.uuid4().hex}"
