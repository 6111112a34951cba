"""The torch engine: one base model in this process, many replies at once, each with its student's adapter.

Requests meet here in the event loop; models, tokens and weights stay on the torch thread. While a request waits for its
turn its adapter is fetched, so that a slow store holds up nobody else.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from brain_server.adapters.choice import StudentAdapters
from brain_server.adapters.host_tier import HostAdapter
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
    TierCounts,
    Timing,
    Warmed,
)
from brain_server.engine.deadline import Allowance, ended, within
from brain_server.engine.defaults import PROBE, PROBE_SERVING, serving_of
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.batch import Batch, Ticket
from brain_server.torch_engine.compute.model import TorchModel, load_model
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import AivoError, ModelNotLoaded
from mesh.lm.base import pick_device
from mesh.lm.chat import Prompt
from mesh.lm.lora import from_safetensors
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    model: TorchModel
    adapters: StudentAdapters[SlotWeights]
    batch: Batch


class TorchEngine:
    """An `Engine` on torch. Made by `open`.

    Attributes:
        pointers: Which version is whose active one; whoever hears that one moved says so there.
    """

    def __init__(self, settings: EngineSettings, *, store: AdapterStore) -> None:
        self.pointers = ActivePointers(store, ttl_seconds=settings.adapter_pointer_ttl_seconds)
        self._settings = settings
        self._store = store
        self._auto_device = pick_device()
        # What torch computes, one step at a time, on all cores that it would take.
        cores = partial(torch.set_num_threads, torch.get_num_threads())
        self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch", initializer=cores)
        # Tokenising, which is quick and should not wait for a step.
        self._prompt_thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        # Adapters are made ready on one core: on all of them every product would wait for the step that has them, which
        # took 100 ms in place of 6.
        one_core = partial(torch.set_num_threads, 1)
        self._adapter_thread = ThreadPoolExecutor(1, thread_name_prefix="adapters", initializer=one_core)
        self._admission = Admission(
            limit=settings.queue_limit + settings.max_batch, student_limit=settings.student_limit
        )
        self._loaded: _Loaded | None = None
        self._failure = ""
        self._loading = asyncio.create_task(self._load(), name="load the base model")

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EngineSettings, store: AdapterStore) -> AsyncIterator[Self]:
        """Begins to load the base model and goes on at once; `facts` tells how far that is.

        Leaving stops what decodes. A load that is under way can't be stopped, and is waited for.
        """
        async with AsyncExitStack() as stack:
            engine = cls(settings, store=store)
            stack.push_async_callback(asyncio.to_thread, engine._torch_thread.shutdown)
            stack.push_async_callback(asyncio.to_thread, engine._prompt_thread.shutdown)
            stack.push_async_callback(asyncio.to_thread, engine._adapter_thread.shutdown)
            stack.push_async_callback(engine._end)
            yield engine

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`."""
        settings = self._settings
        base = self._loaded.model.base if self._loaded else None
        return EngineFacts(
            ready=base is not None and not self._stall,
            loading=base is None and not self._failure,
            reason=self._reason,
            model=base.name if base else settings.base_model,
            device=base.device.type if base else settings.device.replace("auto", self._auto_device).partition(":")[0],
            gpu_available=self._auto_device == "cuda",
            quantization=settings.quantization,
            dtype=str(base.dtype).removeprefix("torch.") if base else "",
            fallback_for=(base.fallback_from or "") if base else "",
        )

    @property
    def counts(self) -> EngineCounts:
        """Figures for metrics."""
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
        )

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`."""
        arrived_at = time.monotonic()
        loaded = self._require_loaded()
        sampling = generation.sampling
        async with AsyncExitStack() as stack:
            place = self._admission.place(generation.deadline, student_id=generation.student_id)
            allowance = stack.enter_context(place)
            prompt = await self._encode(loaded.model, generation.prompt, allowance)
            constraint = None
            if generation.json_schema is not None:
                compiling = asyncio.to_thread(loaded.model.constraint, generation.json_schema)
                constraint = await within(compiling, allowance)
            prepared_at = time.monotonic()
            choice = await within(stack.enter_async_context(loaded.adapters.choose(generation)), allowance)
            chosen_at = time.monotonic()
            task = loaded.model.reply(
                prompt,
                serving=serving_of(sampling, choice.adapter.manifest.recipe.serving if choice.adapter else None),
                seed=sampling.seed,
                stop=sampling.stop,
                constraint=constraint,
            )
            pieces: list[str] = []
            running = self._running(
                loaded.batch, task, adapter=choice.adapter, allowance=allowance, student_id=generation.student_id
            )
            ticket = await stack.enter_async_context(running)
            async with aclosing(loaded.batch.pieces(ticket)) as coming:
                async for piece in coming:
                    pieces.append(piece)
                    yield Delta(piece)
        assert task.finish_reason is not None
        now = time.monotonic()
        self._admission.ended(now - ticket.joined_at)
        yield Reply(
            text="".join(pieces),
            model=loaded.model.base.name,
            adapter=choice.adapter.identity if choice.adapter else None,
            fallback=choice.fallback,
            finish_reason=task.finish_reason,
            prompt_tokens=len(prompt),
            completion_tokens=task.token_count,
            timing=Timing(
                queue_ms=(ticket.joined_at - chosen_at) * 1e3,
                adapter_load_ms=(chosen_at - prepared_at) * 1e3,
                first_token_ms=((task.first_token_at or now) - arrived_at) * 1e3,
                total_ms=(now - arrived_at) * 1e3,
            ),
        )

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        loaded = self._require_loaded()
        with self._admission.place(deadline) as allowance:
            tokens = await self._encode(loaded.model, prompt, allowance)
            task = loaded.model.labels(tokens, labels)
            async with self._running(loaded.batch, task, adapter=None, allowance=allowance, student_id=None) as ticket:
                await within(asyncio.shield(ticket.completion), allowance)
        return dict(zip(labels, task.weights, strict=True))

    async def warm(self, student_id: str, version: int | None = None) -> Warmed:
        """See `Engine.warm`."""
        loaded = self._require_loaded()
        async with AsyncExitStack() as stack:
            allowance = stack.enter_context(self._admission.place(None))
            asked_at = time.monotonic()
            await self.pointers.resolve(student_id, anew=True)
            adapter = await stack.enter_async_context(loaded.adapters.lease(student_id, version))
            leased_at = time.monotonic()
            probe = loaded.model.reply(loaded.model.encode(PROBE), serving=PROBE_SERVING)
            running = self._running(loaded.batch, probe, adapter=adapter, allowance=allowance, student_id=student_id)
            ticket = await stack.enter_async_context(running)
            await asyncio.shield(ticket.completion)
        return Warmed(
            adapter=adapter.identity,
            bytes=adapter.manifest.size_bytes,
            load_ms=(leased_at - asked_at) * 1e3,
            probe_tokens=probe.token_count,
        )

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`."""
        loaded = self._require_loaded()
        in_host = {one.adapter: one for one in loaded.adapters.host.residencies()}
        in_slots = {one.adapter: one for one in loaded.batch.slots.residencies()}
        return sorted((in_host | in_slots).values(), key=lambda one: one.last_used, reverse=True)

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`."""
        loaded = self._require_loaded()
        self.pointers.forget(student_id)
        in_host = loaded.adapters.host.evict(student_id)
        in_slots = loaded.batch.evict(student_id)
        return list(dict.fromkeys([*in_host, *in_slots]))

    @property
    def _stall(self) -> str:
        """Why decoding does not go on, if it does not."""
        seconds = self._loaded.batch.step_seconds if self._loaded else 0.0
        return f"decoding has stood still for {seconds:.0f} s" if seconds > self._settings.stall_seconds else ""

    @property
    def _reason(self) -> str:
        if self._loaded is None:
            return self._failure or f"loading {self._settings.base_model}"
        return self._stall or self._loaded.model.base.fallback_reason or ""

    @asynccontextmanager
    async def _running(
        self,
        batch: Batch,
        task: TokenSequence,
        *,
        adapter: HostAdapter[SlotWeights] | None,
        allowance: Allowance,
        student_id: str | None,
    ) -> AsyncIterator[Ticket]:
        """Has a task in the batch; when this is left, the task has left it."""
        ticket = batch.submit(task, adapter=adapter, allowance=allowance, student_id=student_id)
        try:
            yield ticket
        finally:
            await batch.release(ticket)

    async def _encode(self, model: TorchModel, prompt: Prompt, allowance: Allowance) -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        return await within(loop.run_in_executor(self._prompt_thread, model.encode, prompt), allowance)

    async def _prepare(self, model: TorchModel, stored: StoredAdapter) -> SlotWeights:
        def pack() -> SlotWeights:
            return model.pack(from_safetensors(stored.weights), scaling=stored.manifest.recipe.scaling)

        return await asyncio.get_running_loop().run_in_executor(self._adapter_thread, pack)

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise ModelNotLoaded(self.facts.reason)
        return self._loaded

    async def _load(self) -> None:
        settings = self._settings
        name = settings.base_model
        started = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._torch_thread, load_model, settings)
        except AivoError as error:
            self._failure = str(error)
            _log.error("base_model_unavailable", base_model=name, reason=self._failure)
        except Exception as error:  # noqa: BLE001 - a server that can't answer still says why, whatever the reason
            self._failure = f"{name} could not be loaded: {type(error).__name__}"
            _log.exception("base_model_failed", base_model=name)
        else:
            self._loaded = _Loaded(
                model=model,
                adapters=StudentAdapters(
                    self._store,
                    base_digest=model.base.digest,
                    pointers=self.pointers,
                    prepare=partial(self._prepare, model),
                    host_bytes=settings.adapter_host_bytes,
                ),
                batch=Batch(
                    model,
                    self._torch_thread,
                    rows=settings.max_batch,
                    slots=settings.adapter_slots,
                    prefill_tokens=settings.prefill_tokens,
                ),
            )
            _log.info(
                "base_model_loaded",
                base_model=model.base.name,
                seconds=round(time.monotonic() - started, 1),
                context_tokens=model.context_tokens,
                cache_bytes=model.cache_bytes,
                slot_bytes=model.slot_bytes,
            )

    async def _end(self) -> None:
        self._admission.close()
        await ended(self._loading)
        if self._loaded is not None:
            await self._loaded.batch.close()
            await self._loaded.adapters.host.close()
