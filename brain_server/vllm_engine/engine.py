"""The vLLM engine: the base model runs in a vLLM server beside this process, each reply with its student's adapter.

This process chooses the adapter, and renders and tokenises prompts, so that training and both engines read the same
tokens. vLLM receives token ids; it batches, decodes, and keeps adapters in its slots.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Self

from brain_server.adapters.choice import StudentAdapters
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.adapters.reply_stream import stream_reply
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
    WarmedAdapter,
)
from brain_server.engine.deadline import within
from brain_server.engine.defaults import PROBE, PROBE_SERVING
from brain_server.engine.main_brain import MainBrainFacts
from brain_server.engine.settings import EngineSettings
from brain_server.vllm_engine.adapter_folders import AdapterFolders, VllmAdapter
from brain_server.vllm_engine.base_model import VllmModel
from brain_server.vllm_engine.client import CompletionEnd, ServedModel, VllmClient, VllmRefused, VllmUnreachable
from brain_server.vllm_engine.completion import Completion, Limits
from brain_server.vllm_engine.reply_decoder import VllmReplyDecoder
from brain_server.vllm_engine.roles import VllmRoles
from brain_server.vllm_engine.watch import VllmWatch
from mesh.adapters.store import AdapterStore
from mesh.background import BackgroundTask
from mesh.errors import AdapterIncompatible, AivoError, ModelNotLoaded
from mesh.lm.chat import Prompt
from mesh.log import get_logger
from mesh.main_brain.roles import RoleName

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _VllmParts:
    """What exists once the base model's files have been read."""

    model: VllmModel
    folders: AdapterFolders
    roles: VllmRoles
    adapters: StudentAdapters[VllmAdapter]


class VllmEngine(BackgroundTask):
    """An `Engine` on vLLM. Create it with `open`. In the background it reads the base model's files and watches vLLM.

    Attributes:
        pointers: Each student's active version. Call its `mark_stale` when a version was activated, and `forget` when
            a student was deleted.
    """

    def __init__(self, settings: EngineSettings, *, store: AdapterStore, client: VllmClient) -> None:
        self.pointers = ActivePointers(
            store,
            ttl_seconds=settings.adapter_pointer_ttl_seconds,
            outage_seconds=settings.adapter_outage_seconds,
            answer_seconds=settings.adapter_choice_seconds,
        )
        self._settings = settings
        self._store = store
        self._client = client
        self._admission = Admission(
            limit=settings.places,
            student_limit=settings.student_limit,
            anonymous_limit=settings.anonymous_places,
            modelless_limit=settings.modelless_places,
        )
        self._role_prompts: Counter[RoleName] = Counter()
        self._parts: _VllmParts | None = None
        self._failure = ""
        self._watch = VllmWatch(client, base_model=settings.base_model, on_first_answer=self._on_first_answer)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EngineSettings, store: AdapterStore) -> AsyncIterator[Self]:
        """Starts to wait for vLLM and yields at once; `facts` reports progress. vLLM keeps running after exit."""
        async with (
            VllmClient.open(settings.vllm_url) as client,
            cls(settings, store=store, client=client) as engine,
        ):
            yield engine

    async def __aexit__(self, *error: object) -> None:
        self._admission.close()
        try:
            await super().__aexit__(*error)
        finally:
            if self._parts is not None:
                await self._parts.roles.aclose()
                await self._parts.adapters.aclose()
                await self._parts.folders.settle()

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`. vLLM reports neither device nor dtype, so both are those of the settings."""
        settings = self._settings
        ready = self._watch.served_model is not None and not self._failure and not self.fault
        return EngineFacts(
            ready=ready,
            loading=not (self._failure or self._watch.has_answered),
            reason=self._failure or self.fault or self._watch.reason,
            model=settings.base_model,
            device="vllm" if settings.device == "auto" else settings.device.partition(":")[0],
            gpu_available=settings.device.startswith("cuda"),
            quantization=settings.quantization,
            dtype=settings.dtype if ready else "",
            fallback_for="",
            main_brain=MainBrainFacts.of(self._parts.roles.main_brain) if self._parts else None,
        )

    @property
    def counts(self) -> EngineCounts:
        """Figures for metrics. Requests beyond the batch size count as waiting; vLLM has metrics of its own."""
        running = min(self._admission.present, self._settings.max_batch)
        return EngineCounts(
            waiting=self._admission.present - running,
            running=running,
            tokens=self._client.tokens_decoded,
            host=TierCounts(),
            slot=replace(self._parts.adapters.host.counts) if self._parts else TierCounts(),
            role_prompts={
                role.manifest.role: self._role_prompts[role.manifest.role]
                for role in (self._parts.roles.main_brain.side_roles if self._parts else ())
            },
        )

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`. A reply under a schema is one delta, sent once it is a whole document."""
        parts, decoder = self._require_ready()
        reply = stream_reply(generation, admission=self._admission, adapters=parts.adapters, decoder=decoder)
        with self._noticing_outages():
            async with aclosing(reply) as events:
                async for event in events:
                    yield event

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, role: RoleName | None = None, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        parts, decoder = self._require_ready()
        role_adapter = parts.roles.adapter(role)
        in_queue = self._admission.extra_place if role == "guard" else self._admission.place
        with self._noticing_outages(), in_queue(deadline) as allowance:
            branches = parts.model.branches(labels, by_first_token=role_adapter is not None)
            longest_fork = max(map(len, branches.forks))
            tokens = await decoder.encode(prompt, allowance, reply_tokens=1 + longest_fork)
            try:
                logs = await within(decoder.next_logs(tokens, branches, role=role_adapter), allowance)
            except AdapterIncompatible as error:
                if role is None or role_adapter is None:
                    raise
                raise ModelNotLoaded(parts.roles.give_up(role, str(error))) from error
            if role is not None and role_adapter is not None:
                self._role_prompts[role] += 1
            return branches.weigh(logs)

    async def warm(self, student_id: str, version: int | None = None) -> WarmedAdapter:
        """See `Engine.warm`."""
        parts, decoder = self._require_ready()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._noticing_outages())
            allowance = stack.enter_context(self._admission.own_place())
            arrived_at = time.monotonic()
            await self.pointers.refresh(student_id, version)
            adapter = await stack.enter_async_context(parts.adapters.lease(student_id, version))
            leased_at = time.monotonic()
            prompt = await decoder.encode(PROBE, allowance)
            completion = Completion(model=adapter.content.name, prompt=prompt, serving=PROBE_SERVING)
            events = await stack.enter_async_context(aclosing(decoder.complete(completion, adapter.content)))
            *_, end = [event async for event in events]
        assert isinstance(end, CompletionEnd)
        return WarmedAdapter(
            adapter=adapter.identity,
            bytes=adapter.manifest.size_bytes,
            load_ms=(leased_at - arrived_at) * 1e3,
            probe_tokens=end.tokens,
        )

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`. All are listed in a slot, as vLLM itself moves adapters in and out of its slots."""
        parts, _ = self._require_ready()
        return [replace(residency, tier=Tier.SLOT) for residency in parts.adapters.host.residencies()]

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`. Returns once vLLM has unloaded the adapters that nobody used."""
        # First: no fault of vLLM may keep a deleted student's adapter in use.
        evicted_adapters = self.forget(student_id)
        parts, _ = self._require_ready()
        await parts.folders.settle()
        return evicted_adapters

    def forget(self, student_id: str) -> Sequence[LoadedAdapter]:
        """Has no later request use a student's adapters, at once; vLLM unloads them soon after."""
        self.pointers.forget(student_id)
        return [] if self._parts is None else self._parts.adapters.evict(student_id)

    @contextmanager
    def _noticing_outages(self) -> Iterator[None]:
        """Has vLLM checked when a call can't reach it, and reports its internal errors as `ModelNotLoaded`."""
        try:
            yield
        except VllmUnreachable:
            self._watch.report_outage()
            raise
        except VllmRefused as error:
            if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            raise ModelNotLoaded(f"vLLM failed with HTTP status {error.status}") from error

    def _require_ready(self) -> tuple[_VllmParts, VllmReplyDecoder]:
        parts, served_model = self._parts, self._watch.served_model
        if parts is None or served_model is None or self._failure or self.fault:
            raise ModelNotLoaded(self.facts.reason)
        limits = Limits(context_tokens=served_model.context_tokens, stop_tokens=parts.model.stop_tokens)
        decoder = VllmReplyDecoder(self._client, parts.model, parts.folders, roles=parts.roles, limits=limits)
        return parts, decoder

    async def _run(self) -> None:
        if self._parts is None:
            await self._read()
        if self._parts is None:
            # Health says why.
            await asyncio.Event().wait()
        else:
            await self._watch.run()

    async def _read(self) -> None:
        name = self._settings.base_model
        try:
            self._parts = self._assemble(await asyncio.to_thread(VllmModel.read, self._settings))
        except AivoError as error:
            self._failure = str(error)
            _log.error("base_model_unavailable", base_model=name, reason=self._failure)
        except Exception as error:  # noqa: BLE001 - the server reports the reason in its health, whatever it is
            self._failure = f"{name} can't be used: {type(error).__name__}"
            _log.exception("base_model_failed", base_model=name)

    def _assemble(self, model: VllmModel) -> _VllmParts:
        folders = AdapterFolders(self._client, self._settings.vllm_adapter_dir, shapes=model.shapes)
        adapters = StudentAdapters(
            self._store,
            base_digest=model.files.digest,
            pointers=self.pointers,
            prepare=folders.prepare,
            discard=folders.discard,
            host_bytes=self._settings.adapter_host_bytes,
            choice_seconds=self._settings.adapter_choice_seconds,
        )
        roles = VllmRoles(self._client, folders, main_brain=model.files)
        return _VllmParts(model=model, folders=folders, roles=roles, adapters=adapters)

    async def _on_first_answer(self, served_model: ServedModel) -> None:
        assert self._parts is not None, "vLLM is watched only once the base model's files have been read"
        await self._parts.folders.sweep(served_model)
        await self._parts.folders.load_blank(self._settings.adapter_target_modules)
        await self._parts.roles.load()
