"""The torch engine: one base model in this process, one reply at a time, each with its student's adapter.

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

from brain_server.adapters import Choice, StudentAdapters
from brain_server.engine import (
    Delta,
    EngineFacts,
    Generation,
    LoadedAdapter,
    Reply,
    Residency,
    Sampling,
    Timing,
    Warmed,
)
from brain_server.engine_settings import EngineSettings
from brain_server.residency import TierCounts
from brain_server.torch_model import Decoded, TorchModel, Work
from brain_server.turns import Allowance, Turns, ended, within
from mesh.adapters.manifest import Serving
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError, ModelNotLoaded
from mesh.lm.base import load_base, pick_device
from mesh.lm.chat import Prompt
from mesh.lm.lora import LoraSpec
from mesh.log import get_logger

# What samples a reply where neither the request nor the student's adapter says how.
DEFAULT_SERVING = Serving(temperature=0.7, top_p=0.9, max_tokens=256)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """Figures for metrics: counts since the start, but for `waiting`, which is now.

    Attributes:
        waiting: Requests that wait for their turn.
        tokens: Tokens decoded.
        host: Of the adapters in host memory.
        slot: Of the slot on the model.
    """

    waiting: int
    tokens: int
    host: TierCounts
    slot: TierCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    model: TorchModel
    adapters: StudentAdapters


class TorchEngine:
    """An `Engine` on transformers. Made by `open`."""

    def __init__(self, settings: EngineSettings, *, store: AdapterStore) -> None:
        self._settings = settings
        self._store = store
        self._auto_device = pick_device()
        # What torch computes, one thing at a time; and tokenising, which is quick and should not wait for a reply.
        self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
        self._prompt_thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._turns = Turns(self._torch_thread, limit=settings.queue_limit)
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
            stack.push_async_callback(engine._end)
            yield engine

    async def wait_loaded(self) -> EngineFacts:
        """Waits until the base model is loaded, or can't be."""
        await asyncio.wait([self._loading])
        return self.facts

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`."""
        settings = self._settings
        base = self._loaded.model.base if self._loaded else None
        loading = base is None and not self._failure
        return EngineFacts(
            ready=base is not None,
            loading=loading,
            reason=(base.fallback_reason or "") if base else self._failure or f"loading {settings.base_model}",
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
        return EngineCounts(
            waiting=self._turns.waiting,
            tokens=loaded.model.tokens_decoded if loaded else 0,
            host=replace(loaded.adapters.host.counts) if loaded else TierCounts(),
            slot=replace(loaded.model.slot.counts) if loaded else TierCounts(),
        )

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`."""
        arrived_at = time.monotonic()
        loaded = self._require_loaded()
        async with AsyncExitStack() as stack:
            allowance = stack.enter_context(self._turns.place(generation.deadline))
            prompt = await self._encode(loaded.model, generation.prompt, allowance)
            constraint = None
            if generation.json_schema is not None:
                compiling = asyncio.to_thread(loaded.model.constraint, generation.json_schema)
                constraint = await within(compiling, allowance)
            prepared_at = time.monotonic()
            choice = await within(stack.enter_async_context(loaded.adapters.choose(generation)), allowance)
            chosen_at = time.monotonic()
            work = Work(
                prompt=prompt,
                adapter=choice.adapter,
                serving=_serving(generation.sampling, choice),
                seed=generation.sampling.seed,
                constraint=constraint,
            )
            async with aclosing(self._decode(loaded.model, work, allowance)) as events:
                async for event in events:
                    if isinstance(event, Decoded):
                        decoded = event
                    else:
                        yield event
        yield Reply(
            text=decoded.text,
            model=loaded.model.base.name,
            adapter=choice.adapter.identity if choice.adapter else None,
            fallback=choice.fallback,
            finish_reason=decoded.finish_reason,
            prompt_tokens=len(prompt),
            completion_tokens=decoded.tokens,
            timing=Timing(
                queue_ms=(decoded.started_at - chosen_at) * 1e3,
                adapter_load_ms=(chosen_at - prepared_at + decoded.placed_at - decoded.started_at) * 1e3,
                first_token_ms=(decoded.first_token_at - arrived_at) * 1e3,
                total_ms=(time.monotonic() - arrived_at) * 1e3,
            ),
        )

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        loaded = self._require_loaded()
        with self._turns.place(deadline) as allowance:
            tokens = await self._encode(loaded.model, prompt, allowance)
            work = partial(loaded.model.weigh, tokens, labels, check=allowance.check)
            return await self._turns.run(work, allowance)

    async def warm(self, student_id: str, version: int | None = None) -> Warmed:
        """See `Engine.warm`."""
        loaded = self._require_loaded()
        async with AsyncExitStack() as stack:
            allowance = stack.enter_context(self._turns.place(None))
            asked_at = time.monotonic()
            await loaded.adapters.pointers.resolve(student_id, anew=True)
            adapter = await stack.enter_async_context(loaded.adapters.lease(student_id, version))
            leased_at = time.monotonic()
            work = partial(loaded.model.probe, adapter, check=allowance.check)
            decoded = await self._turns.run(work, allowance)
        return Warmed(
            adapter=adapter.identity,
            bytes=adapter.manifest.size_bytes,
            load_ms=(leased_at - asked_at + decoded.placed_at - decoded.started_at) * 1e3,
            probe_tokens=decoded.tokens,
        )

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`."""
        loaded = self._require_loaded()
        in_host = loaded.adapters.host.residencies()
        in_slot = loaded.model.slot.residency()
        if in_slot is None:
            return in_host
        leases = sum(one.leases for one in in_host if one.adapter == in_slot.adapter)
        others = [one for one in in_host if one.adapter != in_slot.adapter]
        return sorted([replace(in_slot, leases=leases), *others], key=lambda one: one.last_used, reverse=True)

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`."""
        loaded = self._require_loaded()
        loaded.adapters.pointers.forget(student_id)
        in_host = loaded.adapters.host.evict(student_id)
        in_slot = loaded.model.slot.evict(student_id)
        if not self._turns.busy:
            # Else the turn that runs sweeps when it ends.
            await self._turns.run(loaded.model.slot.sweep, Allowance())
        return list(dict.fromkeys([*in_host, *([in_slot] if in_slot else [])]))

    async def _decode(
        self, model: TorchModel, work: Work, allowance: Allowance
    ) -> AsyncGenerator[Delta | Decoded, None]:
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | None] = asyncio.Queue()

        def send(piece: str) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, Delta(piece))

        decode = partial(model.decode, work, send=send, check=allowance.check)
        turn = asyncio.create_task(self._turns.run(decode, allowance), name="decode")
        turn.add_done_callback(lambda _turn: deltas.put_nowait(None))
        try:
            while (delta := await deltas.get()) is not None:
                yield delta
            yield turn.result()
        finally:
            turn.cancel()
            # The adapter's lease may not end before the last token was decoded with it.
            await ended(turn)

    async def _encode(self, model: TorchModel, prompt: Prompt, allowance: Allowance) -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        return await within(loop.run_in_executor(self._prompt_thread, model.encode, prompt), allowance)

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise ModelNotLoaded(self.facts.reason)
        return self._loaded

    async def _load(self) -> None:
        name = self._settings.base_model
        started = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._torch_thread, self._load_model)
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
                    pointer_ttl_seconds=self._settings.adapter_pointer_ttl_seconds,
                    host_bytes=self._settings.adapter_host_bytes,
                ),
            )
            _log.info("base_model_loaded", base_model=model.base.name, seconds=round(time.monotonic() - started, 1))

    def _load_model(self) -> TorchModel:
        settings = self._settings
        base = load_base(
            settings.base_model,
            cache_dir=settings.model_cache_dir,
            device=settings.device,
            dtype=settings.dtype,
            quantization=settings.quantization,
            allow_fallback=settings.allow_fallback_model,
        )
        return TorchModel(base, spec=LoraSpec())

    async def _end(self) -> None:
        self._turns.close()
        await ended(self._loading)
        if self._loaded is not None:
            await self._loaded.adapters.host.close()


def _serving(sampling: Sampling, choice: Choice) -> Serving:
    """The request's own values first, then those of the adapter's serving profile, then the defaults."""
    profile = choice.adapter.manifest.recipe.serving if choice.adapter else DEFAULT_SERVING
    return Serving(
        temperature=profile.temperature if sampling.temperature is None else float(sampling.temperature),
        top_p=profile.top_p if sampling.top_p is None else float(sampling.top_p),
        max_tokens=profile.max_tokens if sampling.max_tokens is None else sampling.max_tokens,
    )
