"""The vLLM engine: the base model in a vLLM server beside this one, each reply with its student's adapter.

Prompts are rendered and tokenised here, so that training and both engines read the same tokens; vLLM gets token ids,
batches, decodes, and keeps adapters in its slots. Which adapter answers is decided here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Self

from brain_server.adapters.choice import StudentAdapters
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.admission import Admission
from brain_server.engine.contract import (
    Delta,
    EngineCounts,
    EngineFacts,
    Generation,
    LoadedAdapter,
    Reply,
    Residency,
    Tier,
    TierCounts,
    Timing,
    Warmed,
)
from brain_server.engine.deadline import Allowance, within
from brain_server.engine.defaults import PROBE, PROBE_SERVING
from brain_server.engine.settings import EngineSettings
from brain_server.vllm_engine.adapter_folders import AdapterFolders, VllmAdapter
from brain_server.vllm_engine.base_model import Branches, VllmModel
from brain_server.vllm_engine.client import Completed, Served, UnknownToVllm, VllmClient, VllmRefused, VllmUnreachable
from brain_server.vllm_engine.completion import Completion, Limits, read_document
from brain_server.vllm_engine.watch import VllmWatch
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError, ModelNotLoaded
from mesh.lm.chat import Prompt
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """The base model as it was read here, and the adapters that go with it."""

    model: VllmModel
    folders: AdapterFolders
    adapters: StudentAdapters[VllmAdapter]


class VllmEngine:
    """An `Engine` on vLLM. Made by `open`.

    Attributes:
        pointers: Which version is whose active one; whoever hears that one moved says so there.
    """

    def __init__(self, settings: EngineSettings, *, store: AdapterStore, client: VllmClient) -> None:
        self.pointers = ActivePointers(store, ttl_seconds=settings.adapter_pointer_ttl_seconds)
        self._settings = settings
        self._store = store
        self._client = client
        self._admission = Admission(
            limit=settings.queue_limit + settings.max_batch, student_limit=settings.student_limit
        )
        self._read: _Read | None = None
        self._failure = ""
        self._tokens = 0
        self._watch = VllmWatch(client, base_model=settings.base_model, welcome=self._welcome)
        self._running = asyncio.create_task(self._run(), name="watch vLLM")

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EngineSettings, store: AdapterStore) -> AsyncIterator[Self]:
        """Begins to wait for vLLM and goes on at once; `facts` tells how far that is. vLLM keeps running after it."""
        async with VllmClient.open(settings.vllm_url) as client:
            engine = cls(settings, store=store, client=client)
            try:
                yield engine
            finally:
                await engine._end()

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`. vLLM does not tell its device, nor its dtype: what the settings say stands for it."""
        settings = self._settings
        ready = self._watch.served is not None and not self._failure
        return EngineFacts(
            ready=ready,
            loading=not (self._failure or self._watch.met),
            reason=self._failure or self._watch.reason,
            model=settings.base_model,
            device="vllm" if settings.device == "auto" else settings.device.partition(":")[0],
            gpu_available=settings.device.startswith("cuda"),
            quantization=settings.quantization,
            dtype=settings.dtype if ready else "",
            fallback_for="",
        )

    @property
    def counts(self) -> EngineCounts:
        """Figures for metrics. vLLM has more of its own; what runs there and what waits is told by its batch's size."""
        running = min(self._admission.present, self._settings.max_batch)
        return EngineCounts(
            waiting=self._admission.present - running,
            running=running,
            tokens=self._tokens,
            host=TierCounts(),
            slot=replace(self._read.adapters.host.counts) if self._read else TierCounts(),
        )

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`. A reply that must satisfy a schema comes whole, once it was seen to be a document."""
        arrived_at = time.monotonic()
        read, limits = self._require_ready()
        first_at: float | None = None
        pieces: list[str] = []
        async with AsyncExitStack() as stack:
            stack.enter_context(self._noticing())
            place = self._admission.place(generation.deadline, student_id=generation.student_id)
            allowance = stack.enter_context(place)
            prompt = await self._encode(read, generation.prompt, allowance, room=limits.context_tokens - 1)
            prepared_at = time.monotonic()
            choice = await within(stack.enter_async_context(read.adapters.choose(generation)), allowance)
            chosen_at = time.monotonic()
            adapter = choice.adapter.content if choice.adapter else read.folders.blank
            profile = choice.adapter.manifest.recipe.serving if choice.adapter else None
            completion = Completion.of(generation, prompt, model=adapter.name, profile=profile, limits=limits)
            events = await stack.enter_async_context(aclosing(self._decode(read, completion, adapter)))
            while not isinstance(event := await within(anext(events), allowance), Completed):
                first_at = first_at or time.monotonic()
                pieces.append(event)
                if generation.json_schema is None:
                    yield Delta(event)
            text = "".join(pieces)
            if generation.json_schema is not None:
                text = read_document(text)
                yield Delta(text)
        now = time.monotonic()
        self._admission.ended(now - chosen_at)
        yield Reply(
            text=text,
            model=self._settings.base_model,
            adapter=choice.adapter.identity if choice.adapter else None,
            fallback=choice.fallback,
            finish_reason=event.finish_reason,
            prompt_tokens=len(prompt),
            completion_tokens=event.tokens,
            timing=Timing(
                # What waits in vLLM waits for its first token.
                queue_ms=(prepared_at - arrived_at) * 1e3,
                adapter_load_ms=(chosen_at - prepared_at) * 1e3,
                first_token_ms=((first_at or now) - arrived_at) * 1e3,
                total_ms=(now - arrived_at) * 1e3,
            ),
        )

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        read, limits = self._require_ready()
        with self._noticing(), self._admission.place(deadline) as allowance:
            branches = read.model.branches(labels)
            room = limits.context_tokens - 1 - max(map(len, branches.forks))
            tokens = await self._encode(read, prompt, allowance, room=room)
            return branches.weigh(await within(self._next_logs(read, tokens, branches), allowance))

    async def warm(self, student_id: str, version: int | None = None) -> Warmed:
        """See `Engine.warm`."""
        read, limits = self._require_ready()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._noticing())
            allowance = stack.enter_context(self._admission.place(None))
            asked_at = time.monotonic()
            await self.pointers.resolve(student_id, anew=True)
            adapter = await stack.enter_async_context(read.adapters.lease(student_id, version))
            leased_at = time.monotonic()
            prompt = await self._encode(read, PROBE, allowance, room=limits.context_tokens - 1)
            completion = Completion(model=adapter.content.name, prompt=prompt, serving=PROBE_SERVING)
            events = await stack.enter_async_context(aclosing(self._decode(read, completion, adapter.content)))
            *_, completed = [event async for event in events]
        assert isinstance(completed, Completed)
        return Warmed(
            adapter=adapter.identity,
            bytes=adapter.manifest.size_bytes,
            load_ms=(leased_at - asked_at) * 1e3,
            probe_tokens=completed.tokens,
        )

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`. What is loaded in vLLM is told as in a slot; vLLM itself moves it in and out."""
        read, _ = self._require_ready()
        return [replace(one, tier=Tier.SLOT) for one in read.adapters.host.residencies()]

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`. When it returns, vLLM no longer knows those that nobody used."""
        read, _ = self._require_ready()
        self.pointers.forget(student_id)
        evicted = read.adapters.host.evict(student_id)
        await read.folders.settle()
        return evicted

    async def _decode(
        self, read: _Read, completion: Completion, adapter: VllmAdapter
    ) -> AsyncGenerator[str | Completed, None]:
        """Decodes; an adapter that vLLM does not know, as it was started anew, is loaded once more."""
        for last in (False, True):
            try:
                async with aclosing(self._client.stream(completion)) as events:
                    async for event in events:
                        if isinstance(event, Completed):
                            self._tokens += event.tokens
                        yield event
            except UnknownToVllm as error:
                # Told before the first piece, never after it.
                if last:
                    raise VllmUnreachable("vLLM does not know what it loaded a moment ago") from error
                await read.folders.restore(adapter)
            else:
                return

    async def _next_logs(self, read: _Read, prompt: Sequence[int], branches: Branches) -> Sequence[Mapping[int, float]]:
        prompts = [(*prompt, *fork) for fork in branches.forks]
        try:
            return await self._client.next_logs(read.folders.blank.name, prompts, branches.tokens)
        except UnknownToVllm:
            await read.folders.restore(read.folders.blank)
            return await self._client.next_logs(read.folders.blank.name, prompts, branches.tokens)

    async def _encode(self, read: _Read, prompt: Prompt, allowance: Allowance, *, room: int) -> tuple[int, ...]:
        return await within(asyncio.to_thread(read.model.encode, prompt, room=room), allowance)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Has vLLM looked at when a call finds it away, and tells its own faults from ours."""
        try:
            yield
        except VllmUnreachable:
            self._watch.doubt()
            raise
        except VllmRefused as error:
            if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise ModelNotLoaded(f"vLLM failed (status {error.status})") from error

    def _require_ready(self) -> tuple[_Read, Limits]:
        served = self._watch.served
        if self._read is None or served is None or self._failure:
            raise ModelNotLoaded(self.facts.reason)
        return self._read, Limits(context_tokens=served.context_tokens, stop_tokens=self._read.model.stop_tokens)

    async def _run(self) -> None:
        name = self._settings.base_model
        try:
            self._read = self._prepared(await asyncio.to_thread(VllmModel.read, self._settings))
            await self._watch.run()
        except AivoError as error:
            self._failure = str(error)
            _log.error("base_model_unavailable", base_model=name, reason=self._failure)
        except Exception as error:  # noqa: BLE001 - a server that can't answer still says why, whatever the reason
            self._failure = f"{name} can't be used: {type(error).__name__}"
            _log.exception("base_model_failed", base_model=name)

    def _prepared(self, model: VllmModel) -> _Read:
        folders = AdapterFolders(self._client, self._settings.vllm_adapter_dir, shapes=model.shapes)
        adapters = StudentAdapters(
            self._store,
            base_digest=model.files.digest,
            pointers=self.pointers,
            prepare=folders.prepare,
            discard=folders.discard,
            host_bytes=self._settings.adapter_host_bytes,
        )
        return _Read(model=model, folders=folders, adapters=adapters)

    async def _welcome(self, served: Served) -> None:
        assert self._read is not None, "vLLM is watched once the base model has been read"
        await self._read.folders.sweep(served)
        await self._read.folders.load_blank(self._settings.adapter_target_modules)

    async def _end(self) -> None:
        self._admission.close()
        self._running.cancel()
        await asyncio.wait([self._running])
        if self._read is not None:
            await self._read.adapters.host.close()
            await self._read.folders.settle()
