"""The base model as teacher: it restates the sentences of a right answer in words that fit a student.

Sampling favours the sentence's own words; every sentence is checked, and sampled again with other settings if it fails.

Knows nothing of briefs' frames, caches or how adapters are trained.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cloning_server.compute.batch_decoding import MAX_ROWS, Continuation, Draw, Opening
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.decoded import text_of
from cloning_server.examples.fidelity import MAX_LENGTH_RATIO, content_faults
from cloning_server.examples.phrases import SHORT_SENTENCE_WORDS
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt, end_of_turn
from mesh.main_brain.base import BaseModel
from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.profile import StudentProfile
from mesh.tutoring.teaching import instruct, rules_of

# Part of every cache key: raise it whenever the prompts or the checks change.
TEACHER_VERSION = 5
# Greedy first: the likeliest output of a small model is right most often. Then a higher temperature for what failed.
TEMPERATURES = (0.0, 0.7)
TOP_P = 0.9
# Nats added to the words of the sentence; at 4 the model begins to repeat them.
FAVOUR_NATS = 2.0
# Tokens for the two extra words and the extra full stop that a restatement may have.
MAX_EXTRA_TOKENS = 8

_RESTATE = "Say the sentence to the student in short, simple sentences. Keep every fact and add none."
_ASIDE = re.compile(r"\s*\(((?:[^\s()]+\s+){4,}[^\s()]+)\)\s*(?:\.|$)")
# Where a sentence that is too long for the student is split.
_CLAUSE_END = re.compile(
    r"[,;:]?\s+(?=(?:because|so(?! that)|and the)\b)|[,;:]\s+(?=(?:and|but|while|or|then|which)\b)"
)
_RESTATE_SHOTS = (
    ("Ice is less dense than water, so it is pushed up.", "Ice is less dense than water. So it is pushed up."),
    ("A thermometer measures temperature.", "A thermometer measures temperature."),
    ("Yes. 3/4 is more than 1/2.", "Yes. 3/4 is more than 1/2."),
    ("The plant in the sun will grow more, because it can make more food.",
     "The plant in the sun will grow more. It can make more food."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTask:
    """What the teacher restates; its sentences depend on nothing else.

    Attributes:
        profile: The student's, without the learning style, which decides presentation alone.
        question: The question of the item.
        reference: The right answer.
        split_words: Words from which a sentence is split where it can be; None as the profile's form rules say.
        is_private: Whether the reference is the student's own answer; the sentences of such a task are never shared.
    """

    profile: StudentProfile
    question: str
    reference: str
    split_words: int | None
    is_private: bool

    @property
    def limit(self) -> float:
        """Words of the longest sentence that the profile allows; infinite if there is no bound."""
        return rules_of(self.profile).max_sentence_words or math.inf


@dataclass(slots=True)
class SentenceTask:
    """One sentence to restate; `restated` is empty until a continuation passes."""

    task: TeacherTask
    sentence: str
    restated: list[str] = field(default_factory=list)


# Sentences to decode together, with their prompts.
SentenceBatch: TypeAlias = Sequence[tuple[SentenceTask, Opening]]


class Teacher:
    """Restates the sentences of tasks that do not fit as they are, until all have passed or all temperatures failed."""

    def __init__(self, tasks: Iterable[TeacherTask], base: BaseModel, *, seed: int) -> None:
        self._base = base
        self._seed = seed
        self._open = {task: [_begin(task, sentence) for sentence in _sentences_of(task)] for task in tasks}

    @property
    def failed_tasks(self) -> list[TeacherTask]:
        """After the last batch, the tasks with a sentence that never passed."""
        return list(self._open)

    def settled(self) -> dict[TeacherTask, list[str]]:
        """The tasks that are complete, with their sentences; each is returned once."""
        complete = {
            task: [sentence for part in parts for sentence in part.restated]
            for task, parts in self._open.items()
            if parts and all(part.restated for part in parts)
        }
        self._open = {task: parts for task, parts in self._open.items() if task not in complete}
        return complete

    def batches(self) -> Iterator[SentenceBatch]:
        """Batches of the sentences that have not passed, with their openings; call `accept` with each result."""
        for attempt, temperature in enumerate(TEMPERATURES):
            draw = Draw(temperature=temperature, top_p=TOP_P, favour=FAVOUR_NATS, seed=self._seed + attempt)
            pending = [part for parts in self._open.values() for part in parts if not part.restated]
            # Prompts that begin alike are in one batch.
            openings = sorted(
                ((part, _opening(part, self._base, draw=draw)) for part in pending), key=lambda pair: pair[1].tokens
            )
            for start in range(0, len(openings), MAX_ROWS):
                yield openings[start : start + MAX_ROWS]

    def accept(self, batch: SentenceBatch, continuations: Sequence[Continuation]) -> dict[TeacherTask, list[str]]:
        """Checks what was decoded; returns the tasks that are complete now, with their sentences."""
        for (part, _), continuation in zip(batch, continuations, strict=True):
            part.restated = _shortest_sound(part, text_of(self._base, continuation.tokens))
        return self.settled()


def task_of(brief: ReplyBrief) -> TeacherTask:
    """The teacher's part of a brief; briefs that differ in their frame alone have the same."""
    return TeacherTask(
        profile=replace(brief.profile, learning_style=None),
        question=brief.question,
        reference=brief.reference,
        split_words=SHORT_SENTENCE_WORDS.get(brief.manner.writing),
        is_private=brief.is_private,
    )


def key_of(task: TeacherTask, base_digest: str) -> str:
    """The cache key, 64 hex digits: of the item, grade, subject, disability, base model and version of the teacher."""
    profile = task.profile
    facts = [
        TEACHER_VERSION, base_digest, task.question, task.reference,
        profile.subject, profile.grade, profile.disability, task.split_words,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def teacher_prompt(task: TeacherTask, sentence: str) -> Prompt:
    """The teacher's prompt for one sentence."""
    turns = [
        Turn(role=role, text=text)
        for shot in _RESTATE_SHOTS
        for role, text in zip((Role.STUDENT, Role.TUTOR), shot, strict=True)
    ]
    return Prompt(
        profile=task.profile,
        turns=(*turns, Turn(role=Role.STUDENT, text=sentence)),
        instruction=f"{instruct(task.profile)} {_RESTATE}",
    )


def _opening(part: SentenceTask, base: BaseModel, *, draw: Draw) -> Opening:
    prompt = encode_prompt(base.tokenizer, teacher_prompt(part.task, part.sentence))
    # With and without a leading space: a tokenizer has different tokens for each.
    forms = (part.sentence, f" {part.sentence}")
    words = [base.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]

    def is_enough(tokens: Sequence[int]) -> bool:
        # A small teacher goes on after it has restated the sentence; most of that is not even decoded.
        ends = str(base.tokenizer.decode([tokens[-1]])).rstrip().endswith((".", "!", "?"))
        return ends and bool(_shortest_sound(part, text_of(base, tokens)))

    return Opening(
        tokens=tuple(prompt),
        # A longer restatement would fail the check of its length.
        max_tokens=math.ceil(MAX_LENGTH_RATIO * len(words[0])) + MAX_EXTRA_TOKENS,
        end_token=end_of_turn(base.tokenizer),
        draw=draw,
        favoured=frozenset({*itertools.chain(*words), end_of_turn(base.tokenizer)}),
        is_enough=is_enough,
    )


def _shortest_sound(part: SentenceTask, text: str) -> list[str]:
    """The shortest beginning of a continuation that passes, as sentences; empty if none passes.

    A small teacher restates the sentence and then goes on, because it does not learn when to end.
    """
    sentences = split_sentences(text)
    for count in range(1, len(sentences) + 1):
        if not _sentence_faults(part, " ".join(sentences[:count])):
            return _join_short(sentences[:count])
    return []


def _sentences_of(task: TeacherTask) -> list[str]:
    """The sentences to restate: those of the reference, a lone "Yes." with the next one."""
    # A long aside at the end of a sentence is a statement of its own; a short one explains the word before, and stays.
    plain = _ASIDE.sub(lambda aside: f". {aside[1][:1].upper()}{aside[1][1:]}. ", task.reference)
    limit = min(task.split_words or math.inf, task.limit)
    clauses = [
        clause
        for sentence in _join_short(split_sentences(plain))
        for clause in ([sentence] if count_words(sentence) <= limit else _CLAUSE_END.split(sentence))
    ]
    return [_as_sentence(clause) for clause in clauses]


def _join_short(sentences: Iterable[str]) -> list[str]:
    """Joins sentences of one or two words ("Yes.", "C.") with the next, as alone they say nothing."""
    longer: list[str] = []
    for sentence in sentences:
        if longer and count_words(longer[-1]) <= 2:
            longer[-1] = f"{longer[-1]} {sentence}"
        else:
            longer.append(sentence)
    return longer


def _begin(task: TeacherTask, sentence: str) -> SentenceTask:
    """A sentence that fits the student as it is needs no other words."""
    part = SentenceTask(task, sentence)
    return part if _sentence_faults(part, sentence) else replace(part, restated=[sentence])


def _as_sentence(clause: str) -> str:
    plain = clause.strip(" ,;:")
    sentence = plain if plain.endswith((".", "!", "?")) else f"{plain}."
    return sentence[0].upper() + sentence[1:]


def _sentence_faults(part: SentenceTask, text: str) -> list[str]:
    task = part.task
    too_long = any(count_words(sentence) > task.limit for sentence in split_sentences(text))
    faults = content_faults(text, part.sentence, question=task.question)
    return [*faults, "has a sentence too long for the student"] if too_long else faults
