"""The gate before publication: an adapter must be better than what it replaces, and reply as a tutor does.

Four things are measured on the held-out examples, which the adapter was not trained on: their loss, compared with that
of the base model and of the active version; whether greedy replies to their prompts are empty or repetitive; how long
the replies are; and, with enough of them, how often they have the form that the student's profile asks for, compared
with the base model's.

Knows nothing of training.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cloning_server.compute.batch_decoding import Continuation, Draw, Opening
from cloning_server.compute.lora_factors import LoraFactors
from mesh.errors import GateNotPassed
from mesh.lm.chat import Example, end_of_turn
from mesh.main_brain.base import BaseModel
from mesh.tutoring.form import FormRules

# Replies that are decoded; each takes a second on a slow machine. The form is judged on so many: on fewer, chance
# decides.
MAX_REPLIES = 8
# Longer than nearly all replies in the examples.
MAX_REPLY_TOKENS = 96
# A reply is repetitive if it holds the same phrase of so many tokens more often than this.
_PHRASE_TOKENS, _MAX_REPEATS = 4, 4
# Least mean length, as a share of the shorter of two: the mean length of the examples' replies and of the base model's.
_MIN_LENGTH_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStatistics:
    """Counts over greedy replies.

    Attributes:
        count: All replies.
        empty: Replies without a word.
        looping: Replies that repeat the same phrase again and again.
        well_formed: Replies that follow the form rules of the student's profile.
        mean_tokens: Mean length.
    """

    count: int
    empty: int
    looping: int
    well_formed: int
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFigures:
    """The measurements that decide on an adapter; losses are mean nats per reply token of the same held-out examples.

    Attributes:
        loss: Of the adapter.
        base_loss: Of the base model.
        previous_loss: Of the version that the adapter would replace; None if there is none.
        replies: Of the adapter.
        base_replies: Of the base model, to the same prompts.
        example_tokens: Mean length of the replies in the examples.
    """

    loss: float
    base_loss: float
    previous_loss: float | None
    replies: ReplyStatistics
    base_replies: ReplyStatistics
    example_tokens: float


def gate_faults(figures: GateFigures) -> list[str]:
    """The tests that the adapter fails, by name; empty if it passes."""
    replies, base = figures.replies, figures.base_replies
    # "Not below" rather than "above", so that NaN fails.
    tests = {
        "loss_above_base": not figures.loss < figures.base_loss,
        "loss_above_previous": figures.previous_loss is not None and not figures.loss < figures.previous_loss,
        "empty_replies": replies.empty > 0,
        # Greedy decoding makes any small model repeat itself now and then; a collapsed one repeats itself mostly.
        "looping_replies": replies.looping - base.looping > max(1, replies.count // 2),
        "short_replies": replies.mean_tokens < _MIN_LENGTH_SHARE * min(figures.example_tokens, base.mean_tokens),
        "form_below_base": replies.count >= MAX_REPLIES and replies.well_formed < base.well_formed,
    }
    return [name for name, fails in tests.items() if fails]


def require_passed(figures: GateFigures) -> None:
    """Returns if the adapter passes.

    Raises:
        GateNotPassed: It does not; the error holds the failed tests and the figures.
    """
    faults = gate_faults(figures)
    if not faults:
        return
    raise GateNotPassed(
        faults=faults,
        heldout_loss=figures.loss,
        heldout_loss_base=figures.base_loss,
        heldout_loss_previous=figures.previous_loss,
        replies=asdict(figures.replies),
        base_replies=asdict(figures.base_replies),
    )


def openings_of(base: BaseModel, factors: LoraFactors | None, examples: Sequence[Example]) -> list[Opening]:
    """The prompts that are decoded to measure an adapter, or the base model: those of the first examples."""
    end_token = end_of_turn(base.tokenizer)
    return [
        Opening(
            tokens=example.tokens[: example.reply_start],
            max_tokens=MAX_REPLY_TOKENS,
            end_token=end_token,
            draw=Draw(temperature=0.0),
            factors=factors,
        )
        for example in examples[:MAX_REPLIES]
    ]


def measure_replies(base: BaseModel, replies: Sequence[Continuation], *, rules: FormRules) -> ReplyStatistics:
    """Counts what the gate needs to know of decoded replies."""
    texts = [str(base.tokenizer.decode(list(reply.tokens), skip_special_tokens=True)).strip() for reply in replies]
    return ReplyStatistics(
        count=len(replies),
        empty=sum(not text for text in texts),
        looping=sum(map(_is_repetitive, replies)),
        well_formed=sum(not rules.violations(text) for text in texts),
        mean_tokens=sum(len(reply.tokens) for reply in replies) / len(replies),
    )


def _is_repetitive(reply: Continuation) -> bool:
    phrases = [reply.tokens[start : start + _PHRASE_TOKENS] for start in range(len(reply.tokens) - _PHRASE_TOKENS + 1)]
    return any(phrases.count(phrase) > _MAX_REPEATS for phrase in set(phrases))
