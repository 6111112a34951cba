"""The stages of a reply, with a decoder that does what each test needs. Uses the real S3."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from brain_server.adapters.choice import AdapterChoice, StudentAdapters
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.adapters.reply_stream import DecodingSummary, stream_reply
from brain_server.engine.admission import Admission
from brain_server.engine.contract import Delta, FinishReason, Generation, Reply
from brain_server.engine.deadline import Allowance
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import DeadlineExceeded
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile
from testing.adapters import publish
from testing.models.random_adapters import random_weights, recipe
from testing.parts.stores import S3Endpoint

DIGEST = "d" * 64
GENERATION = Generation(
    prompt=Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Why?"),)), student_id="ada"
)


class ScriptedDecoder:
    """Decodes two pieces, or fails after the first.

    Attributes:
        error: What it fails with; None for not at all.
        tells_start: Whether its summary says when decoding began.
        is_done: Whether the last decoding has ended or was closed.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.tells_start = True
        self.is_done = False

    async def prepare(self, generation: Generation, allowance: Allowance) -> str:
        allowance.check()
        return generation.prompt.turns[-1].text

    async def decode(
        self, generation: Generation, prepared: str, choice: AdapterChoice[bytes], allowance: Allowance
    ) -> AsyncGenerator[str | DecodingSummary, None]:
        assert choice.adapter is not None
        try:
            yield f"{generation.student_id} asks "
            if self.error is not None:
                raise self.error
            yield prepared
            # Long before the request, so that a negative queue time shows that the driver uses it.
            started_at = 0.5 if self.tells_start else None
            yield DecodingSummary(
                model="scripted",
                finish_reason=FinishReason.STOP,
                prompt_tokens=4,
                completion_tokens=2,
                started_at=started_at,
                first_token_at=None,
            )
        finally:
            self.is_done = True


async def keep_bytes(stored_adapter: StoredAdapter) -> bytes:
    return stored_adapter.weights


@pytest.fixture
async def adapters(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[StudentAdapters[bytes]]:
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        store = AdapterStore(blobs)
        await publish(store, "ada", random_weights(1, rank=1), recipe=recipe(base_digest=DIGEST, rank=1))
        pointers = ActivePointers(store, ttl_seconds=60, outage_seconds=60, answer_seconds=60)
        yield StudentAdapters(
            store, base_digest=DIGEST, pointers=pointers, prepare=keep_bytes, host_bytes=1 << 30, choice_seconds=60
        )


@pytest.fixture
def admission() -> Admission:
    return Admission(limit=1, student_limit=1, anonymous_limit=1, modelless_limit=1)


@pytest.fixture
def decoder() -> ScriptedDecoder:
    return ScriptedDecoder()


def leases(adapters: StudentAdapters[bytes]) -> list[int]:
    return [residency.leases for residency in adapters.host.residencies()]


async def test_the_reply_comes_after_its_place_and_its_adapter_are_free(
    adapters: StudentAdapters[bytes], admission: Admission, decoder: ScriptedDecoder
) -> None:
    texts = []
    async with aclosing(stream_reply(GENERATION, admission=admission, adapters=adapters, decoder=decoder)) as events:
        async for event in events:
            is_reply = isinstance(event, Reply)
            assert (admission.present, leases(adapters)) == ((0, [0]) if is_reply else (1, [1]))
            texts.append(event.text)
    assert texts == ["ada asks ", "Why?", "ada asks Why?"]


async def test_closing_the_stream_ends_decoding_and_frees_its_place_and_its_adapter(
    adapters: StudentAdapters[bytes], admission: Admission, decoder: ScriptedDecoder
) -> None:
    async with aclosing(stream_reply(GENERATION, admission=admission, adapters=adapters, decoder=decoder)) as events:
        assert await anext(events) == Delta("ada asks ")
    assert (decoder.is_done, admission.present, leases(adapters)) == (True, 0, [0])


async def test_an_error_of_the_decoder_ends_the_stream_and_frees_its_place_and_its_adapter(
    adapters: StudentAdapters[bytes], admission: Admission, decoder: ScriptedDecoder
) -> None:
    decoder.error = DeadlineExceeded()
    reply = stream_reply(GENERATION, admission=admission, adapters=adapters, decoder=decoder)
    with pytest.raises(DeadlineExceeded):
        assert [event async for event in reply] == []
    assert (decoder.is_done, admission.present, leases(adapters)) == (True, 0, [0])


@pytest.mark.parametrize("tells_start", [True, False])
async def test_the_queue_ends_when_decoding_begins_or_with_the_prompt_if_the_engine_does_not_tell(
    adapters: StudentAdapters[bytes], admission: Admission, decoder: ScriptedDecoder, *, tells_start: bool
) -> None:
    decoder.tells_start = tells_start
    stream = stream_reply(GENERATION, admission=admission, adapters=adapters, decoder=decoder)
    *_, reply = [event async for event in stream]
    assert isinstance(reply, Reply)
    timing = reply.timing
    assert (timing.queue_ms < 0) is tells_start
    # Without a first token, the whole time counts as the wait for it.
    assert timing.first_token_ms == timing.total_ms >= timing.adapter_load_ms > 0
