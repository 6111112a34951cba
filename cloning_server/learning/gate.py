"""Whether an adapter may be handed out: it must be better than what it replaces, and speak as a tutor does.

Four things are measured on the held-out examples, which it was not trained on: their loss, beside the base model's and
the active version's; whether greedy replies to their prompts are empty or go round in circles; how long they are; and
how often they have the form that the student's profile asks for, beside the base model's.

Knows nothing of training.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cloning_server.compute.batch_decoding import Continuation, Draw, Opening
from cloning_server.compute.lora_factors import LoraFactors
from mesh.errors import GateNotPassed
from mesh.lm.base import BaseModel
from mesh.lm.chat import Example, end_of_turn
from mesh.tutoring.form import FormRules

# Replies that are decoded, each a second of a slow machine's time.
MOST_REPLIES = 6
# Longer than nearly all replies that are taught.
MOST_TOKENS = 96
# Tokens of a phrase; one that comes back as often makes a reply that goes round in circles.
_PHRASE_TOKENS, _MOST_REPEATS = 4, 4
# Of the mean length of the taught replies and of the base model's, whichever is less: shorter ones say too little.
_SHORTEST = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """What greedy replies are like.

    Attributes:
        count: How many there are.
        empty: Without a word.
        looping: That say the same phrase again and again.
        well_formed: That keep the form rules of the student's profile.
        mean_tokens: Their length.
    """

    count: int
    empty: int
    looping: int
    well_formed: int
    mean_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What an adapter is judged by; losses are mean nats a reply token on the same held-out examples.

    Attributes:
        loss: With the adapter.
        base_loss: Of the base model, with the same prompts.
        previous_loss: Of the version that it would replace; None if there is none.
        replies: Of the adapter.
        base_replies: Of the base model, to the same prompts.
        taught_tokens: Mean length of the replies that the examples hold.
    """

    loss: float
    base_loss: float
    previous_loss: float | None
    replies: Replies
    base_replies: Replies
    taught_tokens: float


def faults_of(figures: Figures) -> list[str]:
    """What the adapter fails in, a word each; empty if it passes."""
    replies, base = figures.replies, figures.base_replies
    # "Not below" rather than "above", so that what is no number fails.
    tests = {
        "loss_above_base": not figures.loss < figures.base_loss,
        "loss_above_previous": figures.previous_loss is not None and not figures.loss < figures.previous_loss,
        "empty_replies": replies.empty > 0,
        # Greedy decoding leads any small model into a circle now and then; a collapsed one is there most of the time.
        "looping_replies": replies.looping - base.looping > max(1, replies.count // 2),
        "short_replies": replies.mean_tokens < _SHORTEST * min(figures.taught_tokens, base.mean_tokens),
        "form_below_base": replies.well_formed < base.well_formed,
    }
    return [fault for fault, is_so in tests.items() if is_so]


def require_passed(figures: Figures) -> None:
    """Returns if the adapter passes.

    Raises:
        GateNotPassed: With what it fails in, and the figures.
    """
    if not (faults := faults_of(figures)):
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
    """What is decoded to measure an adapter, or the base model: the prompts of some examples."""
    end_token = end_of_turn(base.tokenizer)
    return [
        Opening(
            tokens=one.tokens[: one.reply_start],
            max_tokens=MOST_TOKENS,
            end_token=end_token,
            draw=Draw(temperature=0.0),
            factors=factors,
        )
        for one in examples[:MOST_REPLIES]
    ]


def measure_replies(base: BaseModel, replies: Sequence[Continuation], *, rules: FormRules) -> Replies:
    """Measures decoded replies."""
    texts = [str(base.tokenizer.decode(list(one.tokens), skip_special_tokens=True)).strip() for one in replies]
    return Replies(
        count=len(replies),
        empty=sum(not text for text in texts),
        looping=sum(map(_loops, replies)),
        well_formed=sum(not rules.violations(text) for text in texts),
        mean_tokens=sum(len(one.tokens) for one in replies) / len(replies),
    )


def _loops(reply: Continuation) -> bool:
    phrases = [reply.tokens[start : start + _PHRASE_TOKENS] for start in range(len(reply.tokens) - _PHRASE_TOKENS + 1)]
    return any(phrases.count(phrase) > _MOST_REPEATS for phrase in set(phrases))
