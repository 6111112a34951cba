"""The base model with its cache, slots, tokenizer and grammars: what the torch engine computes with.

Every method blocks. `encode`, `constraint` and `pack` may run on any thread; `run` belongs on the torch thread. Knows
nothing of queues, stores or event loops.
"""

import time
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from brain_server.engine.defaults import PROBE
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.capacity import Capacity
from brain_server.torch_engine.compute.decoder import Adapters, Decoder
from brain_server.torch_engine.compute.grammar import Constraint, Grammars
from brain_server.torch_engine.compute.role_tables import RoleTables
from brain_server.torch_engine.compute.rows import Move, Swap, Upkeep, Wipe
from brain_server.torch_engine.compute.sampler import Sampler, TextStream, pick
from brain_server.torch_engine.compute.sequences import LabelSequence, ReplySequence, TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.compute.slot_tables import SlotTables
from brain_server.torch_engine.compute.step import BatchStep, StepRow
from mesh.adapters.manifest import Serving
from mesh.errors import AdapterCorrupt, AdapterIncompatible, InvalidField, Violation
from mesh.lm.chat import Prompt, encode_prompt, end_of_turn
from mesh.lm.lora import LoraSpec, from_safetensors
from mesh.lm.repetition import RunHistory, run_tokens_of
from mesh.log import get_logger
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.files import MainBrainFiles
from mesh.main_brain.roles import RoleName, TrainedRole, roles_folders

_log = get_logger(__name__)

# What the guard reads at the same time while all rows of replies are taken. A text takes a step or two.
_GUARD_ROWS = 2


class TorchModel:
    """A base model that decodes many replies at once, each as itself or with one student's adapter.

    Attributes:
        base: The model's name, device and tokenizer. The decoder owns its weights.
        main_brain: The model's identity, and its roles without those that failed.
        context_tokens: Upper bound of a prompt with its reply, in tokens.
        tokens_decoded: Number of reply tokens decoded since the start.
        load_seconds: Seconds spent on copying adapters into slots since the start.
    """

    def __init__(self, base: BaseModel, *, capacity: Capacity) -> None:
        """Allocates cache and slots, and moves the base model's weights into the decoder.

        Raises:
            BaseModelUnavailable: The decoder does not support the model's architecture.
            AdapterIncompatible: The model lacks the modules that adapters may target.
        """
        self.base = base
        self.main_brain = base.main_brain
        self.tokens_decoded = 0
        self.load_seconds = 0.0
        config = base.model.config
        self._stop_tokens = _stop_tokens(base)
        self._run_tokens = run_tokens_of(base.tokenizer)
        self._grammars = Grammars(base.tokenizer, vocabulary=int(config.vocab_size), stop_tokens=self._stop_tokens)
        self.context_tokens = capacity.context_tokens(base)
        self._decoder = Decoder(
            base.model, rows=capacity.rows + capacity.guard_rows, context_tokens=self.context_tokens
        )
        self._tables = SlotTables(
            self._decoder.shape, spec=capacity.adapters, slots=capacity.slots, dtype=base.dtype, device=base.device
        )
        self._roles = RoleTables(self._decoder.shape, dtype=base.dtype, device=base.device)

    @property
    def cache_bytes(self) -> int:
        """Bytes allocated for keys and values, whether in use or not."""
        return self._decoder.cache.nbytes

    @property
    def slot_bytes(self) -> int:
        """Bytes allocated for all slots, whether in use or not."""
        return self._tables.nbytes

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Returns the prompt's token ids.

        Raises:
            InvalidField: The prompt is so long that the context has no room for a reply.
        """
        tokens = encode_prompt(self.base.tokenizer, prompt)
        limit = self.context_tokens - 1
        if len(tokens) > limit:
            description = f"has {len(tokens)} tokens with instructions and history; at most {limit} fit the model"
            raise InvalidField([Violation("prompt", description)])
        return tuple(tokens)

    def constraint(self, json_schema: str) -> Constraint:
        """See `Grammars.constraint`."""
        return self._grammars.constraint(json_schema)

    def pack(self, state: Mapping[str, Tensor], *, scaling: float) -> SlotWeights:
        """See `SlotLayout.pack`."""
        return self._tables.pack(state, scaling=scaling)

    @property
    def roles(self) -> frozenset[RoleName]:
        """The pinned roles, without those that failed."""
        return frozenset(role.manifest.role for role in self.main_brain.side_roles)

    def pin_roles(self) -> None:
        """Copies the Main Brain's roles to the device, where they stay. For the torch thread, before any step.

        A role that does not fit, or fails to read a probe, is left out.
        """
        for role in self.main_brain.side_roles:
            try:
                self._pin(role)
            except (AdapterCorrupt, AdapterIncompatible) as error:
                self.give_up(role.manifest.role, str(error))

    def give_up(self, role: RoleName, why: str) -> str:
        """Leaves a role out from now on. Returns the reason, which is also among the Main Brain's problems."""
        reason = f"the {role} can't be used: {why}"
        if role in self.roles:
            _log.warning("role_unusable", role=role, base_model=self.base.name, reason=reason)
            self.main_brain = self.main_brain.without(role, reason)
        return reason

    def _pin(self, role: TrainedRole) -> None:
        manifest = role.manifest
        spec = LoraSpec(rank=manifest.lora.rank, target_modules=manifest.lora.target_modules)
        state = from_safetensors(role.read_weights())
        self._roles.pin(manifest.role, state, spec=spec, scaling=manifest.scaling)
        prompt = encode_prompt(self.base.tokenizer, PROBE)[: self.context_tokens]
        probe = LabelSequence(prompt, [[prompt[0]]])
        row = StepRow(sequence=probe, row=0, slot=None, role=manifest.role, token_count=len(prompt))
        broken_sequences = self.run(BatchStep(loads={}, prefill=[row]))
        self._decoder.cache.wipe(0, probe.dirty_tokens)
        if broken_sequences:
            raise AdapterCorrupt("it computes numbers that are not finite")

    def reply(
        self,
        prompt: Sequence[int],
        *,
        serving: Serving,
        seed: int | None = None,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> ReplySequence:
        """Returns a sequence that decodes a reply after the prompt.

        A constraint decides alone what may follow: with runs blocked as well, no token might be left.
        """
        is_free = constraint is None and serving.unrepeated_run > 0
        return ReplySequence(
            prompt,
            sampler=Sampler(temperature=serving.temperature, top_p=serving.top_p, seed=seed),
            max_tokens=min(serving.max_tokens, self.context_tokens - len(prompt)),
            stop_tokens=self._stop_tokens,
            text=TextStream(self.base.tokenizer),
            stop=stop,
            constraint=constraint,
            runs=RunHistory(serving.unrepeated_run, self._run_tokens) if is_free else None,
        )

    def labels(self, prompt: Sequence[int], labels: Sequence[str], *, by_first_token: bool = False) -> LabelSequence:
        """Returns a sequence that scores the labels after the prompt.

        Args:
            prompt: Token ids.
            labels: No label begins with another.
            by_first_token: Score only the first token of each label, with the prompt's last token, if the first tokens
                differ. Roles learn labels this way.

        Raises:
            InvalidField: The prompt is so long that the context has no room for a label.
        """
        tokenizer = self.base.tokenizer
        label_tokens = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        if by_first_token and len({tokens[0] for tokens in label_tokens}) == len(labels):
            label_tokens = [tokens[:1] for tokens in label_tokens]
        limit = self.context_tokens - max(map(len, label_tokens))
        if len(prompt) > limit:
            raise InvalidField([Violation("prompt", f"has {len(prompt)} tokens; at most {limit} fit the model")])
        return LabelSequence(prompt, label_tokens)

    def run(self, step: BatchStep) -> Sequence[TokenSequence]:
        """Computes one step, which changes its sequences.

        Returns:
            The sequences that can't continue, because the model computed numbers for them that are not finite.
        """
        self._update_slots(step)
        for upkeep in step.upkeep:
            self._update_cache(upkeep)
        rows = step.rows
        if not rows:
            return []
        # Read before the sequences advance, which changes the positions that they need logits of.
        positions = [row.logit_positions for row in rows]
        logits_MV = self._read_tokens(step)
        for row in rows:
            row.sequence.advance(row.token_count)
        return self._apply_logits(logits_MV, rows, positions)

    def _read_tokens(self, step: BatchStep) -> Tensor:
        """Reads the step's tokens. Returns the logits of those that need them, [len(logit_indices), vocabulary]."""
        lane = [row.segment for row in step.lane]
        prefill = [row.segment for row in step.prefill]
        prefill_slots = [(segment, row.slot) for segment, row in zip(prefill, step.prefill, strict=True)]
        adapters: Adapters | None = self._tables.step([row.slot for row in step.lane], prefill_slots)
        if role_segments := step.role_segments:
            adapters = self._roles.step(role_segments, others=adapters)
        return self._decoder.step(lane, prefill, adapters=adapters, logits_of=step.logit_indices)

    def _apply_logits(
        self, logits_MV: Tensor, rows: Sequence[StepRow], positions: Sequence[range]
    ) -> list[TokenSequence]:
        """Gives each sequence its logits, in the order of the rows. Returns the sequences whose logits are broken."""
        broken_sequences: list[TokenSequence] = []
        replies: dict[int, ReplySequence] = {}
        start = 0
        for row, count in zip(rows, map(len, positions), strict=True):
            sequence = row.sequence
            if count and isinstance(sequence, ReplySequence):
                replies[start] = sequence
            elif count and isinstance(sequence, LabelSequence) and not sequence.score(logits_MV[start : start + count]):
                broken_sequences.append(sequence)
            start += count
        return broken_sequences + self._pick_tokens(logits_MV, replies)

    def _pick_tokens(self, logits_MV: Tensor, replies: Mapping[int, ReplySequence]) -> list[TokenSequence]:
        """Continues each reply by a token, by the index of its logits. Returns the replies whose logits are broken."""
        if not replies:
            return []
        for index, reply in replies.items():
            reply.mask(logits_MV[index])
        logits_BV = logits_MV if len(replies) == len(logits_MV) else logits_MV[list(replies)]
        broken_replies: list[TokenSequence] = []
        tokens = pick(logits_BV, [reply.sampler for reply in replies.values()])
        for reply, token in zip(replies.values(), tokens, strict=True):
            if token is None:
                broken_replies.append(reply)
            else:
                count_before = reply.token_count
                reply.accept(token)
                self.tokens_decoded += reply.token_count - count_before
        return broken_replies

    def _update_slots(self, step: BatchStep) -> None:
        for slot in step.wipes:
            self._tables.wipe(slot)
        started_at = time.monotonic()
        for slot, weights in step.loads.items():
            self._tables.put(slot, weights)
        self.load_seconds += time.monotonic() - started_at

    def _update_cache(self, upkeep: Upkeep) -> None:
        cache = self._decoder.cache
        match upkeep:
            case Wipe():
                cache.wipe(upkeep.row, upkeep.token_count)
            case Move():
                cache.move(upkeep.source, upkeep.target, upkeep.token_count)
            case Swap():
                cache.swap(upkeep.first_row, upkeep.second_row, upkeep.token_count)


def guard_rows_of(main_brain: MainBrainFiles) -> int:
    """Returns how many rows the guard has for itself."""
    return _GUARD_ROWS if main_brain.guard else 0


def load_model(settings: EngineSettings) -> TorchModel:
    """Loads the base model that the settings name, with the capacity that they set.

    Raises:
        BaseModelUnavailable: It can't be fetched or read, does not fit the device, or has an unsupported architecture.
        AdapterIncompatible: It lacks the modules that adapters may target.
    """
    base = load_base(
        settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=roles_folders(settings.roles_dir),
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        allow_fallback=settings.allow_fallback_model,
    )
    capacity = Capacity(
        rows=settings.max_batch,
        guard_rows=guard_rows_of(base.main_brain),
        slots=settings.adapter_slots,
        cache_bytes=settings.kv_cache_bytes,
        adapters=LoraSpec(rank=settings.adapter_max_rank, target_modules=settings.adapter_target_modules),
    )
    model = TorchModel(base, capacity=capacity)
    model.pin_roles()
    return model


def _stop_tokens(base: BaseModel) -> frozenset[int]:
    """Returns what ends a reply: the end of the tutor's turn, the model's own ends, and the start of a new text."""
    configured_tokens = (
        base.model.generation_config.eos_token_id,
        base.model.config.eos_token_id,
        base.tokenizer.bos_token_id,
    )
    stop_tokens = {end_of_turn(base.tokenizer)}
    for token in configured_tokens:
        # Each is a token, several tokens, or not set.
        stop_tokens.update(token if isinstance(token, Iterable) else [] if token is None else [token])
    return frozenset(stop_tokens)
