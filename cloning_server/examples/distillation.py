"""The base model as teacher: replies distilled for the responses that no teacher has commented on.

A small teacher is trusted with one thing, saying a sentence of the right answer in words that fit the student's grade
and disability; it is nudged to the sentence's own words, judged sentence by sentence, and asked again with other draws
where it fails. What never passes is dropped. After "Sequence-Level Knowledge Distillation"
(https://arxiv.org/abs/1606.07947), with the sequences filtered by a check instead of by their likelihood.

What the teacher is not told it can't get wrong: how the student's answer was, how the student does in the skill and how
they like to learn shape the frame around its sentences. So classmates who differ in these alone share what it said.

Knows nothing of training.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from cloning_server.compute.batch_decoding import MOST_ROWS, Continuation, Decoding, Draw, Opening
from cloning_server.compute.layers import layers_of
from cloning_server.examples.examples import Lesson
from cloning_server.examples.fidelity import MAX_LONGER, faults_of, faults_off_topic
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.reply_cache import ReplyCache
from mesh.lm.base import BaseModel
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt, end_of_turn
from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.profile import StudentProfile
from mesh.tutoring.teaching import instruct, rules_of

# Part of every cache key: raise it whenever what is asked or judged changes.
TEACHER_VERSION = 2
# Greedy first: what a small model finds likeliest is right most often. Then hotter draws for what failed.
TEMPERATURES = (0.0, 0.5, 0.8)
TOP_P = 0.9
# Nats for the words of the sentence; at 4 the model begins to circle among them.
FAVOUR_NATS = 2.0
# Tokens for the two more words and the one more full stop that a restatement may have.
MAX_MORE_TOKENS = 8

_RESTATE = "Say the sentence to the student in short, simple sentences. Keep every fact and add none."
_POINT = "The answer is not known. Say what the question asks in one short sentence. Do not answer it."
_ASIDE = re.compile(r"\s*\(((?:[^\s()]+\s+){4,}[^\s()]+)\)\s*(?:\.|$)")
# Where a sentence that is too long for the student is cut in two.
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
_POINT_SHOTS = (
    ("Look at the picture. Why does ice float on water?", "The question asks why ice floats on water."),
    ("What does a thermometer measure?", "The question asks what a thermometer measures."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Substance:
    """What the teacher is to say; all that its sentences depend on.

    Attributes:
        profile: The student's, without the learning style, which decides presentation alone.
        question: What was asked.
        reference: The right answer; empty if it is not known.
        is_private: Whether the reference is the student's own answer; such a substance is never shared.
    """

    profile: StudentProfile
    question: str
    reference: str
    is_private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationStep:
    """A piece of distillation that was done.

    Attributes:
        replies: Replies that were kept since the last step.
        settled: Lessons that have a reply or never will, of all.
        total: All lessons.
    """

    replies: Mapping[Lesson, str]
    settled: int
    total: int


@dataclass(slots=True)
class _SentenceTask:
    """One sentence to say; `said` is empty until a continuation passes."""

    substance: Substance
    sentence: str
    said: list[str] = field(default_factory=list)


# Distillation as it is stepped: it is sent what each decoding gave, and nothing otherwise.
Distilling: TypeAlias = Generator[DistillationStep | Decoding, Sequence[Continuation] | None, None]
_Teaching: TypeAlias = Generator[dict[Substance, list[str]] | Decoding, Sequence[Continuation] | None, None]


def distil(lessons: Iterable[Lesson], base: BaseModel, *, cache: ReplyCache, seed: int) -> Distilling:
    """Distils a reply for each lesson, asking for what is to be decoded; yields a step whenever replies may be kept.

    Args:
        lessons: Repeated ones are distilled once, and those of one substance share its sentences.
        base: The teacher, without any adapter.
        cache: Asked first; told the sentences of every new substance, or that none passed, unless it is private.
        seed: Of the draws.
    """
    wanted: dict[Substance, list[Lesson]] = {}
    for lesson in dict.fromkeys(lessons):
        wanted.setdefault(substance_of(lesson), []).append(lesson)
    total = sum(map(len, wanted.values()))
    keys = {substance: key_of(substance, base.digest) for substance in wanted if not substance.is_private}
    known = cache.get_many(list(keys.values()))
    said = {substance: known[key].splitlines() for substance, key in keys.items() if key in known}
    settled = sum(len(wanted[substance]) for substance in said)
    yield DistillationStep(replies=_framed(wanted, said), settled=settled, total=total)
    teaching = _teach([substance for substance in wanted if substance not in said], base, seed=seed)
    found = next(teaching, None)
    while found is not None:
        if isinstance(found, Decoding):
            found = teaching.send((yield found))
            continue
        settled += sum(len(wanted[substance]) for substance in found)
        cache.put_many({keys[one]: "\n".join(sentences) for one, sentences in found.items() if one in keys})
        yield DistillationStep(replies=_framed(wanted, found), settled=settled, total=total)
        found = next(teaching, None)


def substance_of(lesson: Lesson) -> Substance:
    """What a lesson has in common with those that differ in their frame alone."""
    return Substance(
        profile=replace(lesson.profile, learning_style=None),
        question=lesson.question,
        reference=lesson.reference,
        is_private=lesson.is_private,
    )


def key_of(substance: Substance, base_digest: str) -> str:
    """The cache's key: item, grade, subject, disability, base model and version of the teacher; 64 hex digits."""
    profile = substance.profile
    facts = [
        TEACHER_VERSION, base_digest, substance.question, substance.reference,
        profile.subject, profile.grade, profile.disability,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def teacher_prompt(substance: Substance, sentence: str) -> Prompt:
    """What the teacher reads to say one sentence; without a reference, the sentence is the question."""
    task, shots = (_RESTATE, _RESTATE_SHOTS) if substance.reference else (_POINT, _POINT_SHOTS)
    turns = [
        Turn(role=role, text=text)
        for shot in shots
        for role, text in zip((Role.STUDENT, Role.TUTOR), shot, strict=True)
    ]
    return Prompt(
        profile=substance.profile,
        turns=(*turns, Turn(role=Role.STUDENT, text=sentence)),
        instruction=f"{instruct(substance.profile)} {task}",
    )


def faults_of_reply(lesson: Lesson, reply: str) -> list[str]:
    """Why a whole reply must not be taught: its form does not fit the profile; empty if it may."""
    return rules_of(lesson.profile).violations(reply)


def _framed(wanted: Mapping[Substance, Sequence[Lesson]], said: Mapping[Substance, Sequence[str]]) -> dict[Lesson, str]:
    """The whole replies of all lessons whose sentences are there and whose form then fits the student."""
    replies = {
        lesson: frame_reply(lesson, sentences)
        for substance, sentences in said.items()
        if sentences
        for lesson in wanted[substance]
    }
    return {lesson: reply for lesson, reply in replies.items() if not faults_of_reply(lesson, reply)}


def _teach(substances: Sequence[Substance], base: BaseModel, *, seed: int) -> _Teaching:
    """Tells of each substance once: its sentences as soon as all of them passed, or none at the end."""
    left = {substance: [_SentenceTask(substance, one) for one in _sentences_of(substance)] for substance in substances}
    layers = layers_of(base.model)
    for attempt, temperature in enumerate(TEMPERATURES):
        draw = Draw(temperature=temperature, top_p=TOP_P, favour=FAVOUR_NATS, seed=seed + attempt)
        for batch in _batches([task for some in left.values() for task in some if not task.said], base, draw=draw):
            heard = yield Decoding(layers=layers, openings=[opening for _, opening in batch])
            assert heard is not None
            for (task, _), continuation in zip(batch, heard, strict=True):
                task.said = _shortest_sound(task, _text_of(continuation.tokens, base))
            done = {
                substance: [sentence for task in some for sentence in task.said]
                for substance, some in left.items()
                if some and all(task.said for task in some)
            }
            left = {substance: some for substance, some in left.items() if substance not in done}
            yield done
    if left:
        yield {substance: [] for substance in left}


def _batches(
    tasks: Sequence[_SentenceTask], base: BaseModel, *, draw: Draw
) -> Iterator[Sequence[tuple[_SentenceTask, Opening]]]:
    """The tasks with what the teacher is asked for each, those that begin alike in one batch."""
    asked = sorted(((task, _opening(task, base, draw=draw)) for task in tasks), key=lambda one: one[1].tokens)
    return (asked[start : start + MOST_ROWS] for start in range(0, len(asked), MOST_ROWS))


def _opening(task: _SentenceTask, base: BaseModel, *, draw: Draw) -> Opening:
    prompt = encode_prompt(base.tokenizer, teacher_prompt(task.substance, task.sentence))
    # With and without a space before: a tokenizer has one token for each.
    forms = (task.sentence, f" {task.sentence}")
    own = [base.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]

    def is_enough(tokens: Sequence[int]) -> bool:
        # A small teacher talks on where it has said all: most of what it would say is not even decoded.
        ends = str(base.tokenizer.decode([tokens[-1]])).rstrip().endswith((".", "!", "?"))
        return ends and bool(_shortest_sound(task, _text_of(tokens, base)))

    return Opening(
        tokens=tuple(prompt),
        # What is longer by more would not pass as no longer than the sentence.
        max_tokens=math.ceil(MAX_LONGER * len(own[0])) + MAX_MORE_TOKENS,
        end_token=end_of_turn(base.tokenizer),
        draw=draw,
        favoured=frozenset({*itertools.chain(*own), end_of_turn(base.tokenizer)}),
        is_enough=is_enough,
    )


def _text_of(tokens: Sequence[int], base: BaseModel) -> str:
    return str(base.tokenizer.decode(list(tokens))).strip()


def _shortest_sound(task: _SentenceTask, text: str) -> list[str]:
    """The first sentences of a continuation, as few as pass; none if it never does.

    A small teacher says what it was asked and then talks on, because it knows no end; so its end is found for it.
    """
    spoken = split_sentences(text)
    for count in range(1, len(spoken) + 1):
        if not _faults_of_sentence(task, " ".join(spoken[:count])):
            return _join_short(spoken[:count])
    return []


def _sentences_of(substance: Substance) -> list[str]:
    """What is to be said one by one: the reference's sentences, a lone "Yes." with the next; else the question."""
    if not substance.reference:
        return [substance.question]
    # A long aside at a sentence's end is a statement of its own; a short one names what it stands beside, and stays.
    plain = _ASIDE.sub(lambda aside: f". {aside[1][:1].upper()}{aside[1][1:]}. ", substance.reference)
    limit = rules_of(substance.profile).max_sentence_words or math.inf
    clauses = [
        clause
        for sentence in _join_short(split_sentences(plain))
        for clause in ([sentence] if count_words(sentence) <= limit else _CLAUSE_END.split(sentence))
    ]
    return [_as_sentence(clause) for clause in clauses]


def _join_short(sentences: Iterable[str]) -> list[str]:
    """The sentences, those of one or two words ("Yes.", "C.") at the head of the next: alone they say nothing."""
    joined: list[str] = []
    for sentence in sentences:
        if joined and count_words(joined[-1]) <= 2:
            joined[-1] = f"{joined[-1]} {sentence}"
        else:
            joined.append(sentence)
    return joined


def _as_sentence(clause: str) -> str:
    plain = clause.strip(" ,;:")
    whole = plain if plain.endswith((".", "!", "?")) else f"{plain}."
    return whole[0].upper() + whole[1:]


def _faults_of_sentence(task: _SentenceTask, text: str) -> list[str]:
    substance = task.substance
    if not substance.reference:
        return faults_off_topic(text, question=substance.question)
    limit = rules_of(substance.profile).max_sentence_words
    too_long = limit is not None and any(count_words(one) > limit for one in split_sentences(text))
    faults = faults_of(text, task.sentence, question=substance.question)
    return [*faults, "has a sentence too long for the student"] if too_long else faults
