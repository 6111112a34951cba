"""The base model as teacher: replies distilled for the responses that no teacher has commented on.

The teacher is told all that is known: the right answer, how the student's was, what the student's accommodations ask,
and how the student does in the skill. A small teacher is trusted with one thing, saying a sentence of the right answer
in words that fit the student; it is nudged to the sentence's own words, judged sentence by sentence, and asked again
with other draws where it fails. What never passes is dropped. After "Sequence-Level Knowledge Distillation"
(https://arxiv.org/abs/1606.07947), with the sequences filtered by a check instead of by their likelihood.

Knows nothing of training.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cloning_server.examples import Band, Lesson, Verdict
from cloning_server.framing import frame_reply
from cloning_server.layers import layers_of
from cloning_server.reply_cache import ReplyCache
from cloning_server.sampling import MOST_ROWS, Continuation, Decoding, Draw, Opening
from cloning_server.substance import MAX_LONGER, faults_of, faults_off_topic
from mesh.lm.base import BaseModel
from mesh.lm.chat import Prompt, Role, Turn, encode_prompt, end_of_turn
from mesh.lm.form import count_words, split_sentences
from mesh.lm.teaching import instruct, rules_of

# Part of every cache key: raise it whenever what is asked, judged or framed changes.
TEACHER_VERSION = 1
# Greedy first: what a small model finds likeliest is right most often. Then hotter draws for what failed.
TEMPERATURES = (0.0, 0.5, 0.8)
TOP_P = 0.9
# Nats for the words of the sentence; at 4 the model begins to circle among them.
FAVOUR_NATS = 2.0
# Tokens for the two more words and the one more full stop that a restatement may have.
MAX_MORE_TOKENS = 8

_VERDICTS = {
    Verdict.CORRECT: "The student's answer was right.",
    Verdict.INCORRECT: "The student's answer was wrong.",
    Verdict.UNKNOWN: "",
}
_RECORDS = {
    Band.STRUGGLING: "The student finds this skill hard and needs small steps.",
    Band.DEVELOPING: "The student is still learning this skill.",
    Band.SECURE: "The student knows this skill well.",
}
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
class Step:
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
class _Task:
    """One sentence to say; `said` is empty until a continuation passes."""

    lesson: Lesson
    sentence: str
    said: list[str] = field(default_factory=list)


# Distillation as it is stepped: it is sent what each decoding gave, and nothing otherwise.
Distilling: TypeAlias = Generator[Step | Decoding, Sequence[Continuation] | None, None]


def distil(lessons: Iterable[Lesson], base: BaseModel, *, cache: ReplyCache, seed: int) -> Distilling:
    """Distils a reply for each lesson, asking for what is to be decoded; yields a step whenever replies may be kept.

    Args:
        lessons: Repeated ones are distilled once.
        base: The teacher, without any adapter.
        cache: Asked first; told of every new reply, and of every lesson that none passed for, unless it is private.
        seed: Of the draws.
    """
    wanted = list(dict.fromkeys(lessons))
    keys = {lesson: key_of(lesson, base.digest) for lesson in wanted if not lesson.is_private}
    known = cache.get_many(list(keys.values()))
    replies = {lesson: known[key] for lesson, key in keys.items() if key in known}
    left = {lesson: [_Task(lesson, one) for one in _sentences_of(lesson)] for lesson in wanted if lesson not in replies}

    def keep(found: Mapping[Lesson, str]) -> Step:
        for lesson in found:
            del left[lesson]
        cache.put_many({keys[lesson]: reply for lesson, reply in found.items() if lesson in keys})
        kept = {lesson: reply for lesson, reply in found.items() if reply}
        return Step(replies=kept, settled=len(wanted) - len(left), total=len(wanted))

    yield Step(
        replies={lesson: reply for lesson, reply in replies.items() if reply}, settled=len(replies), total=len(wanted)
    )
    layers = layers_of(base.model)
    for attempt, temperature in enumerate(TEMPERATURES):
        draw = Draw(temperature=temperature, top_p=TOP_P, favour=FAVOUR_NATS, seed=seed + attempt)
        for batch in _batches([task for some in left.values() for task in some if not task.said], base, draw=draw):
            said = yield Decoding(layers=layers, openings=[opening for _, opening in batch])
            assert said is not None
            for (task, _), continuation in zip(batch, said, strict=True):
                task.said = _shortest_sound(task, _text_of(continuation.tokens, base))
            done = {lesson: some for lesson, some in left.items() if some and all(task.said for task in some)}
            yield keep({lesson: _assemble(lesson, some) for lesson, some in done.items()})
    if left:
        yield keep(dict.fromkeys(left, ""))


def key_of(lesson: Lesson, base_digest: str) -> str:
    """The cache's key: item, verdict, record band, profile, base model and version of the teacher; 64 hex digits."""
    profile = lesson.profile
    facts = [
        TEACHER_VERSION, base_digest, lesson.question, lesson.reference, lesson.skill, lesson.verdict, lesson.band,
        profile.subject, profile.grade, profile.disability, profile.learning_style,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def teacher_prompt(lesson: Lesson, sentence: str) -> Prompt:
    """What the teacher reads to say one sentence of a lesson; without a reference, the sentence is the question."""
    task, shots = (_RESTATE, _RESTATE_SHOTS) if lesson.reference else (_POINT, _POINT_SHOTS)
    told = (instruct(lesson.profile), _VERDICTS[lesson.verdict], _RECORDS[lesson.band], task)
    turns = [
        Turn(role=role, text=text)
        for shot in shots
        for role, text in zip((Role.STUDENT, Role.TUTOR), shot, strict=True)
    ]
    return Prompt(
        profile=lesson.profile,
        turns=(*turns, Turn(role=Role.STUDENT, text=sentence)),
        instruction=" ".join(part for part in told if part),
    )


def faults_of_reply(lesson: Lesson, reply: str) -> list[str]:
    """Why a whole reply must not be taught: its form does not fit the profile; empty if it may."""
    return rules_of(lesson.profile).violations(reply)


def _batches(tasks: Sequence[_Task], base: BaseModel, *, draw: Draw) -> Iterator[Sequence[tuple[_Task, Opening]]]:
    """The tasks with what the teacher is asked for each, those that begin alike in one batch."""
    asked = sorted(((task, _opening(task, base, draw=draw)) for task in tasks), key=lambda one: one[1].tokens)
    return (asked[start : start + MOST_ROWS] for start in range(0, len(asked), MOST_ROWS))


def _opening(task: _Task, base: BaseModel, *, draw: Draw) -> Opening:
    prompt = encode_prompt(base.tokenizer, teacher_prompt(task.lesson, task.sentence))
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


def _shortest_sound(task: _Task, text: str) -> list[str]:
    """The first sentences of a continuation, as few as pass; none if it never does.

    A small teacher says what it was asked and then talks on, because it knows no end; so its end is found for it.
    """
    spoken = split_sentences(text)
    for count in range(1, len(spoken) + 1):
        if not _faults_of_sentence(task, " ".join(spoken[:count])):
            return _join_short(spoken[:count])
    return []


def _sentences_of(lesson: Lesson) -> list[str]:
    """What is to be said one by one: the reference's sentences, a lone "Yes." with the next; else the question."""
    if not lesson.reference:
        return [lesson.question]
    # A long aside at a sentence's end is a statement of its own; a short one names what it stands beside, and stays.
    plain = _ASIDE.sub(lambda aside: f". {aside[1][:1].upper()}{aside[1][1:]}. ", lesson.reference)
    limit = rules_of(lesson.profile).max_sentence_words or math.inf
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


def _faults_of_sentence(task: _Task, text: str) -> list[str]:
    lesson = task.lesson
    if not lesson.reference:
        return faults_off_topic(text, question=lesson.question)
    limit = rules_of(lesson.profile).max_sentence_words
    too_long = limit is not None and any(count_words(one) > limit for one in split_sentences(text))
    faults = faults_of(text, task.sentence, question=lesson.question)
    return [*faults, "has a sentence too long for the student"] if too_long else faults


def _assemble(lesson: Lesson, tasks: Sequence[_Task]) -> str:
    """The whole reply, or nothing if its form does not fit the student."""
    reply = frame_reply(lesson, [sentence for task in tasks for sentence in task.said])
    return "" if faults_of_reply(lesson, reply) else reply
