"""The torch engine: one base model in this process, many replies at once, each with its student's adapter.

Requests are in the event loop; model, tokens and weights stay on the torch thread. A request fetches its adapter before
it queues for a row, so that a slow store delays nobody else.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

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
    TierCounts,
    WarmedAdapter,
)
from brain_server.engine.deadline import within
from brain_server.engine.defaults import PROBE, PROBE_SERVING
from brain_server.engine.main_brain import MainBrainFacts
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.batch import Batch, NotFinite
from brain_server.torch_engine.compute.model import TorchModel, guard_rows_of, load_model
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.reply_decoder import TorchReplyDecoder
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.background import BackgroundTask
from mesh.errors import AivoError, ModelNotLoaded
from mesh.lm.chat import Prompt
from mesh.lm.lora import from_safetensors
from mesh.log import get_logger
from mesh.main_brain.base import pick_device
from mesh.main_brain.roles import RoleName

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LoadedParts:
    """What exists once the base model is loaded."""

    model: TorchModel
    adapters: StudentAdapters[SlotWeights]
    batch: Batch
    decoder: TorchReplyDecoder


class TorchEngine(BackgroundTask):
    """An `Engine` on torch. Create it with `open`. In the background it loads the base model and runs the batch.

    Attributes:
        pointers: The cache of the students' active versions. On news of another version, call its `mark_stale`; on news
            of a deleted student, call `forget`.
    """

    def __init__(self, settings: EngineSettings, *, store: AdapterStore) -> None:
        self.pointers = ActivePointers(
            store,
            ttl_seconds=settings.adapter_pointer_ttl_seconds,
            outage_seconds=settings.adapter_outage_seconds,
            answer_seconds=settings.adapter_choice_seconds,
        )
        self._settings = settings
        self._store = store
        self._auto_device = pick_device()
        # Computes the steps, one at a time, on as many cores as torch uses by default.
        cores = partial(torch.set_num_threads, torch.get_num_threads())
        self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch", initializer=cores)
        # Tokenises, which is fast and should not wait for a step.
        self._prompt_thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        # Packs adapters on one core. On all cores, each product would wait for those that compute the step: measured,
        # 100 ms instead of 6.
        one_core = partial(torch.set_num_threads, 1)
        self._adapter_thread = ThreadPoolExecutor(1, thread_name_prefix="adapters", initializer=one_core)
        self._admission = Admission(
            limit=settings.places,
            student_limit=settings.student_limit,
            anonymous_limit=settings.anonymous_places,
            modelless_limit=settings.modelless_places,
        )
        self._role_prompts: Counter[RoleName] = Counter()
        self._loaded: _LoadedParts | None = None
        self._failure = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EngineSettings, store: AdapterStore) -> AsyncIterator[Self]:
        """Starts to load the base model and returns at once; `facts` says when it is loaded.

        On exit, all requests end. A load in progress can't be stopped, so the exit waits for it.
        """
        async with AsyncExitStack() as stack:
            engine = cls(settings, store=store)
            stack.push_async_callback(asyncio.to_thread, engine._torch_thread.shutdown)
            stack.push_async_callback(asyncio.to_thread, engine._prompt_thread.shutdown)
            stack.push_async_callback(asyncio.to_thread, engine._adapter_thread.shutdown)
            async with engine:
                yield engine

    async def __aexit__(self, *error: object) -> None:
        self._admission.close()
        if self._loaded is not None:
            self._loaded.batch.close()
        try:
            await super().__aexit__(*error)
        finally:
            if self._loaded is not None:
                await self._loaded.adapters.aclose()

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`."""
        settings = self._settings
        base = self._loaded.model.base if self._loaded else None
        return EngineFacts(
            ready=base is not None and not self._obstacle,
            loading=base is None and not self._failure,
            reason=self._reason,
            model=base.name if base else settings.base_model,
            device=base.device.type if base else settings.device.replace("auto", self._auto_device).partition(":")[0],
            gpu_available=self._auto_device == "cuda",
            quantization=settings.quantization,
            dtype=str(base.dtype).removeprefix("torch.") if base else "",
            fallback_for=(base.fallback_from or "") if base else "",
            main_brain=MainBrainFacts.of(self._loaded.model.main_brain) if self._loaded else None,
        )

    @property
    def counts(self) -> EngineCounts:
        """Counts for metrics."""
        loaded = self._loaded
        if loaded is None:
            return EngineCounts(
                waiting=self._admission.present, running=0, tokens=0, host=TierCounts(), slot=TierCounts()
            )
        return EngineCounts(
            waiting=self._admission.present - loaded.batch.running_count,
            running=loaded.batch.running_count,
            tokens=loaded.model.tokens_decoded,
            host=replace(loaded.adapters.host.counts),
            slot=replace(loaded.batch.slots.counts, load_seconds=loaded.model.load_seconds),
            role_prompts={role: self._role_prompts[role] for role in sorted(loaded.model.roles)},
        )

    def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`."""
        loaded = self._require_loaded()
        return stream_reply(generation, admission=self._admission, adapters=loaded.adapters, decoder=loaded.decoder)

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, role: RoleName | None = None, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        loaded = self._require_loaded()
        pinned_role = role if role in loaded.model.roles else None
        in_queue = self._admission.extra_place if role == "guard" else self._admission.place
        with in_queue(deadline) as allowance:
            tokens = await loaded.decoder.encode(prompt, allowance)
            sequence = loaded.model.labels(tokens, labels, by_first_token=pinned_role is not None)
            in_batch = loaded.decoder.run(
                sequence, adapter=None, role=pinned_role, allowance=allowance, student_id=None
            )
            try:
                async with in_batch as ticket:
                    await within(asyncio.shield(ticket.completion), allowance)
            except NotFinite as error:
                if pinned_role is None:
                    raise
                reason = loaded.model.give_up(pinned_role, "it computes numbers that are not finite")
                raise ModelNotLoaded(reason) from error
        if pinned_role is not None:
            self._role_prompts[pinned_role] += 1
        return dict(zip(labels, sequence.weights, strict=True))

    async def warm(self, student_id: str, version: int | None = None) -> WarmedAdapter:
        """See `Engine.warm`."""
        loaded = self._require_loaded()
        async with AsyncExitStack() as stack:
            allowance = stack.enter_context(self._admission.own_place())
            started_at = time.monotonic()
            await self.pointers.refresh(student_id, version)
            adapter = await stack.enter_async_context(loaded.adapters.lease(student_id, version))
            leased_at = time.monotonic()
            probe = loaded.model.reply(loaded.model.encode(PROBE), serving=PROBE_SERVING)
            in_batch = loaded.decoder.run(probe, adapter=adapter, allowance=allowance, student_id=student_id)
            ticket = await stack.enter_async_context(in_batch)
            await asyncio.shield(ticket.completion)
        return WarmedAdapter(
            adapter=adapter.identity,
            bytes=adapter.manifest.size_bytes,
            load_ms=(leased_at - started_at) * 1e3,
            probe_tokens=probe.token_count,
        )

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`."""
        loaded = self._require_loaded()
        in_host = {residency.adapter: residency for residency in loaded.adapters.host.residencies()}
        in_slots = {residency.adapter: residency for residency in loaded.batch.slots.residencies()}
        return sorted((in_host | in_slots).values(), key=lambda residency: residency.last_used, reverse=True)

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`."""
        self._require_loaded()
        return self.forget(student_id)

    def forget(self, student_id: str) -> Sequence[LoadedAdapter]:
        """Does what `evict` does, at once and also before the base model is loaded."""
        self.pointers.forget(student_id)
        if self._loaded is None:
            return []
        in_host = self._loaded.adapters.evict(student_id)
        in_slots = self._loaded.batch.evict(student_id)
        return list(dict.fromkeys([*in_host, *in_slots]))

    @property
    def _obstacle(self) -> str:
        """Why decoding makes no progress; empty if it does or nothing is to decode."""
        if self.fault:
            return self.fault
        seconds = self._loaded.batch.step_seconds if self._loaded else 0.0
        return f"decoding has made no progress for {seconds:.0f} s" if seconds > self._settings.stall_seconds else ""

    @property
    def _reason(self) -> str:
        if self._loaded is None:
            return self._failure or f"loading {self._settings.base_model}"
        return self._obstacle or self._loaded.model.base.fallback_reason or ""

    async def _prepare(self, model: TorchModel, stored: StoredAdapter) -> SlotWeights:
        def pack() -> SlotWeights:
            return model.pack(from_safetensors(stored.weights), scaling=stored.manifest.recipe.scaling)

        return await asyncio.get_running_loop().run_in_executor(self._adapter_thread, pack)

    def _require_loaded(self) -> _LoadedParts:
        if self._loaded is None:
            raise ModelNotLoaded(self.facts.reason)
        return self._loaded

    async def _run(self) -> None:
        if self._loaded is None:
            await self._load()
        if self._loaded is None:
            # Health says why.
            await asyncio.Event().wait()
        else:
            await self._loaded.batch.run()

    async def _load(self) -> None:
        settings = self._settings
        name = settings.base_model
        started_at = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._torch_thread, load_model, settings)
            self._loaded = self._assemble(model)
        except AivoError as error:
            self._failure = str(error)
            _log.error("base_model_unavailable", base_model=name, reason=self._failure)
        except Exception as error:  # noqa: BLE001 - health reports the reason, whatever it is
            self._failure = f"{name} could not be loaded: {type(error).__name__}"
            _log.exception("base_model_failed", base_model=name)
        else:
            _log.info(
                "base_model_loaded",
                base_model=model.base.name,
                seconds=round(time.monotonic() - started_at, 1),
                context_tokens=model.context_tokens,
                cache_bytes=model.cache_bytes,
                slot_bytes=model.slot_bytes,
            )

    def _assemble(self, model: TorchModel) -> _LoadedParts:
        settings = self._settings
        batch = Batch(
            model,
            self._torch_thread,
            rows=settings.max_batch,
            guard_rows=guard_rows_of(model.base.main_brain),
            slots=settings.adapter_slots,
            prefill_tokens=settings.prefill_tokens,
        )
        adapters = StudentAdapters(
            self._store,
            base_digest=model.base.digest,
            pointers=self.pointers,
            prepare=partial(self._prepare, model),
            discard=batch.discard,
            host_bytes=settings.adapter_host_bytes,
            choice_seconds=settings.adapter_choice_seconds,
        )
        decoder = TorchReplyDecoder(model, batch, prompt_thread=self._prompt_thread)
        return _LoadedParts(model=model, adapters=adapters, batch=batch, decoder=decoder)
