"""The base model with its slot, its tokenizer and its grammars: what the torch engine computes with.

All of it blocks. `encode` and `constraint` may run on any thread, the rest belongs on the torch thread. Knows nothing
of queues, stores or event loops.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from brain_server.decoding import Check, NotFinite, Plan, Sampler, TextStream, decode, weigh
from brain_server.engine import FinishReason
from brain_server.grammar import Constraint, Grammars
from brain_server.residency import HostAdapter
from brain_server.slot import Slot
from mesh.adapters.manifest import Serving
from mesh.errors import AdapterCorrupt, InvalidField, Violation
from mesh.lm.base import BaseModel
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt, end_of_turn
from mesh.lm.lora import LoraSpec
from mesh.lm.profile import StudentProfile

# Enough to run the adapter through prefill and decoding both.
_PROBE = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Hello"),))
_PROBE_SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One reply to decode.

    Attributes:
        prompt: In tokens.
        adapter: Decodes; None for the base model.
        serving: How to sample.
        seed: Of the sampling; None for a random one.
        constraint: What the reply must satisfy, if anything.
    """

    prompt: tuple[int, ...]
    adapter: HostAdapter | None
    serving: Serving
    seed: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One decoded reply.

    Attributes:
        text: The whole reply.
        tokens: Tokens of the reply.
        finish_reason: Why it ended.
        started_at: When its turn began, in `time.monotonic()` seconds as all times here.
        placed_at: When the adapter was in its slot.
        first_token_at: When the first token was picked; when the reply ended, if it has none.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    started_at: float
    placed_at: float
    first_token_at: float


class TorchModel:
    """A base model that answers as itself or with one student's adapter."""

    def __init__(self, base: BaseModel, *, spec: LoraSpec) -> None:
        """Takes the loaded base model and the shape of its slot.

        Raises:
            AdapterIncompatible: The base model lacks the modules that adapters target.
        """
        self.base = base
        self.slot = Slot(base, spec=spec)
        self.tokens_decoded = 0
        text_config = base.model.config.get_text_config()
        self._context_tokens = int(text_config.max_position_embeddings)
        self._stop_tokens = _stop_tokens(base)
        self._grammars = Grammars(base.tokenizer, vocabulary=int(text_config.vocab_size), stop_tokens=self._stop_tokens)

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in tokens.

        Raises:
            InvalidField: It leaves no room in the context window for a reply.
        """
        tokens = encode_prompt(self.base.tokenizer, prompt)
        limit = self._context_tokens - 1
        if len(tokens) > limit:
            description = f"has {len(tokens)} tokens with instructions and history; at most {limit} fit the model"
            raise InvalidField([Violation("prompt", description)])
        return tuple(tokens)

    def constraint(self, json_schema: str) -> Constraint:
        """What keeps a reply to a schema. Raises `ValueError` if it can't be compiled, which takes seconds once."""
        return self._grammars.constraint(json_schema)

    def decode(self, work: Work, *, send: Callable[[str], None], check: Check) -> Decoded:
        """Decodes a reply.

        Args:
            work: What to decode.
            send: Is given the next piece of the reply: whole characters, never empty.
            check: Is called before every token; what it raises ends the work.

        Raises:
            AdapterIncompatible: The adapter does not fit the slot.
            AdapterCorrupt: The adapter makes the model compute numbers that are not finite.
        """
        started_at = time.monotonic()
        text = TextStream(self.base.tokenizer)
        pieces: list[str] = []
        token_times: list[float] = []

        def take(token: int) -> None:
            token_times.append(time.monotonic())
            if piece := text.push(token):
                pieces.append(piece)
                send(piece)

        with self.slot.using(work.adapter):
            placed_at = time.monotonic()
            try:
                reason = decode(self.base.model, work.prompt, plan=self._plan(work), take=take, check=check)
            except NotFinite as error:
                if work.adapter is None:
                    raise
                raise AdapterCorrupt(f"{work.adapter.manifest.ref} makes numbers that are not finite") from error
            finally:
                self.tokens_decoded += len(token_times)
        return Decoded(
            text="".join(pieces),
            tokens=len(token_times),
            finish_reason=reason,
            started_at=started_at,
            placed_at=placed_at,
            first_token_at=token_times[0] if token_times else time.monotonic(),
        )

    def probe(self, adapter: HostAdapter, *, check: Check) -> Decoded:
        """Decodes a few tokens with an adapter, to see that it does. Raises as `decode` does."""
        work = Work(prompt=self.encode(_PROBE), adapter=adapter, serving=_PROBE_SERVING)
        return self.decode(work, send=lambda _piece: None, check=check)

    def weigh(self, prompt: Sequence[int], labels: Sequence[str], *, check: Check) -> Mapping[str, float]:
        """How likely the base model is to begin its reply with each label; adds up to 1."""
        continuations = [self.base.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
        with self.slot.using(None):
            weights = weigh(self.base.model, prompt, continuations, check=check)
        return dict(zip(labels, weights, strict=True))

    def _plan(self, work: Work) -> Plan:
        serving = work.serving
        return Plan(
            sampler=Sampler(temperature=serving.temperature, top_p=serving.top_p, seed=work.seed),
            max_tokens=min(serving.max_tokens, self._context_tokens - len(work.prompt)),
            stop_tokens=self._stop_tokens,
            constraint=work.constraint,
        )


def _stop_tokens(base: BaseModel) -> frozenset[int]:
    """What ends a reply: the end of the tutor's turn, the model's own ends, and what begins another text or turn."""
    named = (base.model.generation_config.eos_token_id, base.model.config.eos_token_id, base.tokenizer.bos_token_id)
    found = {end_of_turn(base.tokenizer)}
    for one in named:
        found.update(one if isinstance(one, Iterable) else [] if one is None else [one])
    return frozenset(found)
