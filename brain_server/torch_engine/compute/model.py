"""The base model with its cache, its slots, its tokenizer and its grammars: what the torch engine computes with.

All of it blocks. `encode`, `constraint` and `pack` may run on any thread, `run` belongs on the torch thread. Knows
nothing of queues, stores or event loops.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.decoder import Decoder, Segment
from brain_server.torch_engine.compute.grammar import Constraint, Grammars
from brain_server.torch_engine.compute.rows import Move, Swap, Upkeep, Wipe
from brain_server.torch_engine.compute.sampler import Sampler, TextStream, pick
from brain_server.torch_engine.compute.sequences import ReplyTask, Task, WeighTask
from brain_server.torch_engine.compute.slot_tables import SlotTables, SlotWeights
from mesh.adapters.manifest import Serving
from mesh.errors import InvalidField, Violation
from mesh.lm.base import BaseModel, load_base
from mesh.lm.chat import Prompt, encode_prompt, end_of_turn
from mesh.lm.llama_shape import Shape
from mesh.lm.lora import LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much is decoded at the same time.

    Attributes:
        rows: Replies.
        slots: Adapters, at least as many as rows.
        cache_bytes: Of keys and values; what one row gets of it bounds a prompt with its reply.
        adapters: The highest rank and all target modules that an adapter may have.
    """

    rows: int
    slots: int
    cache_bytes: int
    adapters: LoraSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A task in one step.

    Attributes:
        task: To go on with.
        row: Of the cache.
        slot: Of its adapter; None for the base model.
        count: How many of its pending tokens to read.
    """

    task: Task
    row: int
    slot: int | None
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do in one go: first the upkeep, then one pass of the model.

    Attributes:
        upkeep: Of the cache, in this order.
        loads: Adapters by the slot to copy them to.
        wipes: Slots to clear.
        lane: Tasks in rows 0, 1, 2 ..., one token each.
        reading: Tasks in other rows.
    """

    upkeep: Sequence[Upkeep] = ()
    loads: Mapping[int, SlotWeights]
    wipes: Collection[int] = ()
    lane: Sequence[Placed] = ()
    reading: Sequence[Placed] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.upkeep or self.loads or self.wipes or self.lane or self.reading)


class TorchModel:
    """A base model that writes many replies at once, each as itself or with one student's adapter.

    Attributes:
        base: The model's name, digest, device and tokenizer; its weights are the decoder's.
        context_tokens: Tokens of a prompt with its reply.
        tokens_decoded: Since the start.
        load_seconds: Spent on copying adapters into slots since the start.
    """

    def __init__(self, base: BaseModel, *, room: Room) -> None:
        """Takes the loaded base model, whose weights move into the decoder.

        Raises:
            BaseModelUnavailable: It is of an architecture that the decoder does not have.
            AdapterIncompatible: It lacks the modules that adapters may target.
        """
        self.base = base
        self.tokens_decoded = 0
        self.load_seconds = 0.0
        config = base.model.config
        self._stop_tokens = _stop_tokens(base)
        self._grammars = Grammars(base.tokenizer, vocabulary=int(config.vocab_size), stop_tokens=self._stop_tokens)
        self.context_tokens = _context_tokens(base, room)
        self._decoder = Decoder(base.model, rows=room.rows, context_tokens=self.context_tokens)
        self._tables = SlotTables(
            self._decoder.shape, spec=room.adapters, slots=room.slots, dtype=base.dtype, device=base.device
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, whatever is in use."""
        return self._decoder.cache.nbytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of all slots, whatever is in use."""
        return self._tables.nbytes

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in tokens.

        Raises:
            InvalidField: It leaves no room in the context for a reply.
        """
        tokens = encode_prompt(self.base.tokenizer, prompt)
        limit = self.context_tokens - 1
        if len(tokens) > limit:
            description = f"has {len(tokens)} tokens with instructions and history; at most {limit} fit the model"
            raise InvalidField([Violation("prompt", description)])
        return tuple(tokens)

    def constraint(self, json_schema: str) -> Constraint:
        """What keeps a reply to a schema. Raises `ValueError` if it can't be compiled, which takes seconds once."""
        return self._grammars.constraint(json_schema)

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """See `SlotTables.pack`."""
        return self._tables.pack(state, scaling=scaling)

    def reply(
        self,
        prompt: Sequence[int],
        *,
        serving: Serving,
        seed: int | None = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> ReplyTask:
        """A reply to write after the prompt."""
        return ReplyTask(
            prompt,
            sampler=Sampler(temperature=serving.temperature, top_p=serving.top_p, seed=seed),
            max_tokens=min(serving.max_tokens, self.context_tokens - len(prompt)),
            stop_tokens=self._stop_tokens,
            text=TextStream(self.base.tokenizer),
            stop=stop,
            constraint=constraint,
        )

    def weighing(self, prompt: Sequence[int], labels: Sequence[str]) -> WeighTask:
        """Labels to weigh after the prompt.

        Raises:
            InvalidField: The prompt leaves no room for a label.
        """
        tokenizer = self.base.tokenizer
        tokens = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        limit = self.context_tokens - max(map(len, tokens))
        if len(prompt) > limit:
            raise InvalidField([Violation("prompt", f"has {len(prompt)} tokens; at most {limit} fit the model")])
        return WeighTask(prompt, tokens)

    def run(self, step: Step) -> Sequence[Task]:
        """Does one step; the tasks change.

        Returns:
            The tasks that can't go on: for them the model computed numbers that are not finite.
        """
        self._keep_up(step)
        placed = [*step.lane, *step.reading]
        if not placed:
            return []
        now = time.monotonic()
        for one in placed:
            one.task.started_at = one.task.started_at or now
        wanted: list[range] = []
        places: list[int] = []
        at = 0
        for one in placed:
            # A stretch of a prompt has no use for logits until its end.
            whole = one.count == len(one.task.pending)
            wanted.append(range(len(places), len(places) + len(one.task.wanted) if whole else len(places)))
            places += [at + place for place in one.task.wanted] if whole else []
            at += one.count
        lane = [_segment(one) for one in step.lane]
        reading = [_segment(one) for one in step.reading]
        slots = [(segment, one.slot) for segment, one in zip(reading, step.reading, strict=True)]
        adapters = self._tables.step([one.slot for one in step.lane], slots)
        logits_MV = self._decoder.step(lane, reading, adapters=adapters, logits_of=places)
        for one in placed:
            one.task.read(one.count)
        return self._hand_out(logits_MV, [(one.task, rows) for one, rows in zip(placed, wanted, strict=True) if rows])

    def _hand_out(self, logits_MV: Tensor, wanting: Sequence[tuple[Task, range]]) -> list[Task]:
        broken: list[Task] = []
        replies: list[ReplyTask] = []
        places: list[int] = []
        for task, rows in wanting:
            if isinstance(task, ReplyTask):
                task.mask(logits_MV[rows.start])
                replies.append(task)
                places.append(rows.start)
            elif isinstance(task, WeighTask) and not task.take(logits_MV[rows.start : rows.stop]):
                broken.append(task)
        if not replies:
            return broken
        logits_BV = logits_MV if len(replies) == len(logits_MV) else logits_MV[places]
        for task, token in zip(replies, pick(logits_BV, [task.sampler for task in replies]), strict=True):
            if token is None:
                broken.append(task)
            else:
                before = task.tokens
                task.take(token)
                self.tokens_decoded += task.tokens - before
        return broken

    def _keep_up(self, step: Step) -> None:
        for slot in step.wipes:
            self._tables.wipe(slot)
        began_at = time.monotonic()
        for slot, weights in step.loads.items():
            self._tables.put(slot, weights)
        self.load_seconds += time.monotonic() - began_at
        cache = self._decoder.cache
        for one in step.upkeep:
            match one:
                case Wipe(row, tokens):
                    cache.wipe(row, tokens)
                case Move(source, target, tokens):
                    cache.move(source, target, tokens)
                case Swap(left, right, tokens):
                    cache.swap(left, right, tokens)


def load_model(settings: EngineSettings) -> TorchModel:
    """Loads the base model that the settings name, with room for as much as they say.

    Raises:
        BaseModelUnavailable: It can't be had or read, does not fit the device, or is of another architecture.
        AdapterIncompatible: It lacks the modules that adapters may target.
    """
    base = load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        allow_fallback=settings.allow_fallback_model,
    )
    room = Room(
        rows=settings.max_batch,
        slots=settings.adapter_slots,
        cache_bytes=settings.kv_cache_bytes,
        adapters=LoraSpec(rank=settings.adapter_max_rank, target_modules=settings.adapter_target_modules),
    )
    return TorchModel(base, room=room)


def _segment(placed: Placed) -> Segment:
    task = placed.task
    return Segment(row=placed.row, start=task.held, tokens=task.pending[: placed.count])


def _context_tokens(base: BaseModel, room: Room) -> int:
    """Tokens of one row: what the budget gives, no more than the model was made for."""
    config, shape = base.model.config, Shape.of(base.model)
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_width * base.dtype.itemsize
    limits = [int(config.max_position_embeddings), room.cache_bytes // room.rows // token_bytes]
    # Within its window, attention in a sliding window is attention to all.
    if window := getattr(config, "sliding_window", None):
        limits.append(int(window))
    return min(limits)


def _stop_tokens(base: BaseModel) -> frozenset[int]:
    """What ends a reply: the end of the tutor's turn, the model's own ends, and what begins another text or turn."""
    named = (base.model.generation_config.eos_token_id, base.model.config.eos_token_id, base.tokenizer.bos_token_id)
    found = {end_of_turn(base.tokenizer)}
    for one in named:
        found.update(one if isinstance(one, Iterable) else [] if one is None else [one])
    return frozenset(found)
