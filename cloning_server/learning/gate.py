"""The gate before publication: an adapter must be better than what it replaces, and reply as a tutor does.

All is measured on the held-out examples, which the adapter was not trained on: their loss, compared with that of the
base model and of the active version; and greedy replies to some of their prompts, compared with the base model's and
with the examples' own. Replies must not be empty, repetitive, short or all alike; they agree with a verdict that their
prompt tells, and judge nothing where it tells none; they keep the form of the profile and show the teaching policy.

Knows nothing of training.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from cloning_server.compute.batch_decoding import Continuation, Opening
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.decoded import greedy_opening, text_of
from cloning_server.examples.examples import LearnedExample
from cloning_server.examples.situations import Situation
from mesh.errors import GateNotPassed
from mesh.lm.chat import Example
from mesh.main_brain.base import BaseModel
from mesh.tutoring.form import FormRules, split_sentences
from mesh.tutoring.judgement import agrees, judges
from mesh.tutoring.policy import TeachingPolicy
from mesh.tutoring.policy_shown import signs_in, signs_of

# Replies that are decoded; each takes a second on a slow machine. Form and policy are judged on so many: on fewer,
# chance decides.
MAX_REPLIES = 8
# Longer than nearly all replies in the examples.
MAX_REPLY_TOKENS = 96
# A reply is repetitive if it holds the same phrase of so many tokens more often than this.
_PHRASE_TOKENS, _MAX_REPEATS = 4, 4
# Least mean length, as a share of the shorter of two: the mean length of the examples' replies and of the base model's.
_MIN_LENGTH_SHARE = 0.2
# So few replies more or less than the base model's may be chance, or a checker that misreads one.
_CHANCE = 1
# Largest share of told verdicts that replies may leave out or contradict, whatever the base model does.
_MAX_CONTRADICTED_SHARE = 0.25
# Fewer replies may be alike by chance.
_FEWEST_COMPARED = 4
# What each fault means, for teachers. The error's message lists these clauses after "the new model is not better".
FAULT_CLAUSES: Final[Mapping[str, str]] = {
    "loss_above_base": "it predicts a tutor's replies no better than the model that all students share",
    "loss_above_previous": "it predicts a tutor's replies no better than the student's earlier model",
    "empty_replies": "at least one of its replies has no words",
    "looping_replies": "many of its replies say the same phrase again and again",
    "short_replies": "its replies are much shorter than those that it learned from",
    "form_below_base": "its replies keep the form of the student's profile less often than the shared model's do",
    "verdicts_contradicted": (
        "when it is told whether an answer is right, its reply leaves that out or contradicts it"
        " more often than the shared model's"
    ),
    "judges_unanswered": "it calls answers right or wrong that nobody has judged, more often than the shared model",
    "replies_alike": "it says nearly the same whatever it is asked",
    "policy_not_shown": "its replies follow the student's teaching policy less than the shared model's do",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStatistics:
    """Counts over replies to the same prompts.

    Attributes:
        count: All replies.
        empty: Replies without a word.
        looping: Replies that repeat the same phrase again and again.
        well_formed: Replies that follow the form rules of the student's profile.
        mean_tokens: Mean length.
        verdicts: Prompts that tell a verdict which the example's own reply states.
        agreeing: Replies to them that state it too.
        unjudged: Prompts that tell none, where the example's own reply judges nothing.
        judging: Replies to them that judge an answer.
        alike: The most replies with the same words, to more than one question; 0 if there are none.
        alike_starts: The most replies with the same first sentence, to prompts that differ in situation or verdict.
        signs: Signs of the teaching policy that all replies could show.
        signs_shown: Those that they show.
    """

    count: int
    empty: int
    looping: int
    well_formed: int
    mean_tokens: float
    verdicts: int
    agreeing: int
    unjudged: int
    judging: int
    alike: int
    alike_starts: int
    signs: int
    signs_shown: int

    @property
    def are_alike(self) -> bool:
        """Whether more than half of the replies say the same, or all begin the same, whatever was asked."""
        is_alike = 2 * self.alike > self.count or self.alike_starts == self.count
        return self.count >= _FEWEST_COMPARED and is_alike


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFigures:
    """The measurements that decide on an adapter; losses are mean nats per reply token of the same held-out examples.

    Attributes:
        loss: Of the adapter.
        base_loss: Of the base model.
        previous_loss: Of the version that the adapter would replace; None if there is none.
        replies: Of the adapter.
        base_replies: Of the base model, to the same prompts.
        example_replies: The examples' own replies to them.
    """

    loss: float
    base_loss: float
    previous_loss: float | None
    replies: ReplyStatistics
    base_replies: ReplyStatistics
    example_replies: ReplyStatistics


def gate_faults(figures: GateFigures) -> list[str]:
    """The tests that the adapter fails, by name; empty if it passes."""
    replies, base, examples = figures.replies, figures.base_replies, figures.example_replies
    contradicted = replies.verdicts - replies.agreeing
    # "Not below" rather than "above", so that NaN fails.
    tests = {
        "loss_above_base": not figures.loss < figures.base_loss,
        "loss_above_previous": figures.previous_loss is not None and not figures.loss < figures.previous_loss,
        "empty_replies": replies.empty > 0,
        # Greedy decoding makes any small model repeat itself now and then; a collapsed one repeats itself mostly.
        "looping_replies": replies.looping - base.looping > max(1, replies.count // 2),
        "short_replies": replies.mean_tokens < _MIN_LENGTH_SHARE * min(examples.mean_tokens, base.mean_tokens),
        # A teacher's own feedback may have another form, and who learned it follows the teacher.
        "form_below_base": replies.count >= MAX_REPLIES
        and replies.well_formed < min(base.well_formed, examples.well_formed) - _CHANCE,
        # One fewer than the base model's may be chance. So may two of eight, which the share lets pass, but not two of
        # four: a version that misleads a student is worse than one that is refused by mistake.
        "verdicts_contradicted": replies.agreeing < base.agreeing - _CHANCE
        and contradicted > _MAX_CONTRADICTED_SHARE * replies.verdicts,
        # None is what we want, but one may be a word that the checker misreads; two are the adapter's own.
        "judges_unanswered": replies.judging > base.judging + _CHANCE,
        # Where one comment fits all questions, the teacher's own replies are alike.
        "replies_alike": replies.are_alike and not base.are_alike and not examples.are_alike,
        "policy_not_shown": replies.count >= MAX_REPLIES and replies.signs_shown < base.signs_shown - _CHANCE,
    }
    return [name for name, fails in tests.items() if fails]


def require_passed(figures: GateFigures) -> None:
    """Returns if the adapter passes.

    Raises:
        GateNotPassed: It does not; the error says so to teachers, and holds the failed tests and the figures.
    """
    faults = gate_faults(figures)
    if not faults:
        return
    raise GateNotPassed(
        faults={fault: FAULT_CLAUSES[fault] for fault in faults},
        heldout_loss=figures.loss,
        heldout_loss_base=figures.base_loss,
        heldout_loss_previous=figures.previous_loss,
        replies=asdict(figures.replies),
        base_replies=asdict(figures.base_replies),
    )


def prompts_to_reply(heldout: Sequence[LearnedExample]) -> list[LearnedExample]:
    """Chooses the held-out examples whose prompts are decoded, `MAX_REPLIES` at most, the same at every call.

    Half of them tell a verdict and half tell none, as far as there are enough of each. Those that tell none take turns
    by situation, and are about other questions than those that tell one as long as there are others.
    """
    with_verdict = [example for example in heldout if example.verdict]
    half = with_verdict[: (MAX_REPLIES + 1) // 2]
    items = {example.item for example in half}
    by_situation = [
        sorted(
            (example for example in heldout if example.situation is situation and not example.verdict),
            key=lambda example: example.item in items,
        )
        for situation in Situation
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_situation))
    without_verdict = [example for example in turns if example is not None][: MAX_REPLIES - len(half)]
    return [*with_verdict[: MAX_REPLIES - len(without_verdict)], *without_verdict]


def openings_of(
    base: BaseModel, factors: LoraFactors | None, examples: Sequence[Example], *, unrepeated_run: int
) -> list[Opening]:
    """The prompts of examples, to be decoded greedily with an adapter or by the base model alone.

    Args:
        base: The base model.
        factors: The adapter; None for the base model.
        examples: Their prompts.
        unrepeated_run: The rule against circling with which the replies would be served; see `Serving`.
    """
    return [
        greedy_opening(
            base,
            example.tokens[: example.reply_start],
            max_tokens=MAX_REPLY_TOKENS,
            factors=factors,
            unrepeated_run=unrepeated_run,
        )
        for example in examples
    ]


def replies_in(examples: Iterable[Example]) -> list[Continuation]:
    """The examples' own replies, as if they had been decoded."""
    return [Continuation(tokens=example.tokens[example.reply_start : -1], is_complete=True) for example in examples]


def measure_replies(
    base: BaseModel,
    replies: Sequence[Continuation],
    *,
    examples: Sequence[LearnedExample],
    rules: FormRules,
    policy: TeachingPolicy,
) -> ReplyStatistics:
    """Counts what the gate needs to know of replies.

    Args:
        base: The base model, whose tokens they are.
        replies: One per example.
        examples: The examples to whose prompts they reply.
        rules: The form rules of the student's profile.
        policy: The teaching policy that the examples are made for.
    """
    texts, own_texts = ([text_of(base, reply.tokens) for reply in some] for some in (replies, replies_in(examples)))
    pairs = list(zip(texts, own_texts, examples, strict=True))
    # A teacher's own comment may leave the verdict out, or judge where none was told: so may the adapter then.
    with_verdict = [
        (text, example.verdict) for text, own, example in pairs if example.verdict and agrees(own, example.verdict)
    ]
    without_verdict = [text for text, own, example in pairs if not example.verdict and not judges(own)]
    starts = [" ".join(split_sentences(text)[:1]) for text in texts]
    return ReplyStatistics(
        count=len(replies),
        empty=sum(not text for text in texts),
        looping=sum(map(_is_repetitive, replies)),
        well_formed=sum(not rules.violations(text) for text in texts),
        mean_tokens=sum(len(reply.tokens) for reply in replies) / len(replies),
        verdicts=len(with_verdict),
        agreeing=sum(agrees(text, verdict) for text, verdict in with_verdict),
        unjudged=len(without_verdict),
        judging=sum(map(judges, without_verdict)),
        alike=_most_alike(texts, [example.item for example in examples]),
        # A tutor may begin all replies to wrong answers alike.
        alike_starts=_most_alike(starts, [(example.situation, example.verdict) for example in examples]),
        signs=len(texts) * len(signs_of(policy)),
        signs_shown=sum(len(signs_in(text, policy)) for text in texts),
    )


def _most_alike(texts: Sequence[str], contexts: Sequence[Hashable]) -> int:
    """The size of the largest group of texts with the same words whose contexts differ; 0 if there is none."""
    groups: defaultdict[tuple[str, ...], list[Hashable]] = defaultdict(list)
    for text, context in zip(texts, contexts, strict=True):
        groups[tuple(re.findall(r"\w+", text.casefold()))].append(context)
    return max((len(group) for group in groups.values() if len(set(group)) > 1), default=0)


def _is_repetitive(reply: Continuation) -> bool:
    phrases = [reply.tokens[start : start + _PHRASE_TOKENS] for start in range(len(reply.tokens) - _PHRASE_TOKENS + 1)]
    return any(phrases.count(phrase) > _MAX_REPEATS for phrase in set(phrases))
