"""What a lesson must be: in form, fair, without the answer where it is withheld, and unlike every other lesson."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from curriculum.lesson import Kind, Lesson
from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.judgement import agrees, contains_answer, judgement_in, judges
from mesh.tutoring.teaching import rules_of

# Lessons that share more of their five-word runs than this say the same thing.
MOST_SHARED = 0.4
_RUN_WORDS = 5
# A sentence, or a whole reply with its content words masked, may occur in so many lessons.
MOST_REPEATS = 3
# Shorter ones, such as "Not quite.", repeat in any language.
_SENTENCE_WORDS = 4

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+(?:[.,/:]\d+)*")
# Words that carry a sentence's frame rather than its matter.
_FRAME_WORDS = frozenset(
    """
    a about after all also an and any are as ask at be because been before but by can could did do does each first
    for from get give go had has have he help her here his how i if in into is it its last let let's like look
    made make many may me more most much my next no not now of off on one only or other our out over read right
    same say see she should so some start step take talk tell than that the their them then there these they thing
    think this to too try two up use very was way we well were what when where which who why will with words would
    write yes you your
    """.split()  # noqa: SIM905 (a list of so many strings is hard to read)
)


def faults_of(lesson: Lesson) -> list[str]:
    """Returns what is wrong with a lesson by itself, one short line each."""
    if lesson.kind is Kind.ASSESS:
        return _assess_faults(lesson)
    # A child in distress needs a few kind words, not numbered steps or a question.
    form = [] if lesson.kind is Kind.FEELINGS else rules_of(lesson.student).violations(lesson.reply)
    return [*form, *_verdict_faults(lesson), *_leaks(lesson)]


def repeats_of(lessons: Iterable[Lesson]) -> Iterator[str]:
    """Yields a line per sentence and per skeleton of a reply that occurs in too many lessons."""
    sentences: Counter[str] = Counter()
    skeletons: Counter[str] = Counter()
    for lesson in lessons:
        if lesson.kind is Kind.WORKED:
            continue
        text = "\n".join(lesson.texts)
        sentence_words = [_words(sentence) for sentence in split_sentences(text)]
        sentences.update({" ".join(words) for words in sentence_words if len(words) >= _SENTENCE_WORDS})
        skeletons[skeleton_of(text)] += 1
    for counts, what in ((sentences, "sentence"), (skeletons, "skeleton")):
        yield from (f"{what} in {count} lessons: {text}" for text, count in counts.items() if count > MOST_REPEATS)


def near_duplicates(lessons: Sequence[Lesson]) -> Iterator[tuple[Lesson, Lesson, float]]:
    """Yields pairs of lessons that say nearly the same, with the share of the runs of words that both have."""
    by_run: dict[tuple[str, ...], list[int]] = {}
    runs = [_runs(lesson) for lesson in lessons]
    for index, lesson_runs in enumerate(runs):
        shared: Counter[int] = Counter()
        for run in lesson_runs:
            earlier = by_run.setdefault(run, [])
            shared.update(earlier)
            earlier.append(index)
        for other, count in shared.items():
            share = count / max(1, len(lesson_runs | runs[other]))
            if share > MOST_SHARED:
                yield lessons[other], lessons[index], share


def skeleton_of(reply: str) -> str:
    """Returns a reply with numbers and content words masked."""
    return " ".join(
        word if word in _FRAME_WORDS else "#" if word[0].isdigit() else "_" for word in _WORD.findall(reply.lower())
    )


def _assess_faults(lesson: Lesson) -> list[str]:
    """Faults of feedback in four texts, to which no rule on steps or questions applies."""
    texts = lesson.texts
    longest = max(count_words(sentence) for text in texts for sentence in split_sentences(text))
    limit = rules_of(lesson.student).max_sentence_words or longest
    sentences = [" ".join(_words(sentence)) for text in texts for sentence in split_sentences(text)]
    whole = replace(lesson, reply=" ".join(texts))
    return [
        *([f"has {longest} words in a sentence, at most {limit}"] if longest > limit else []),
        *(["says a sentence twice"] if len(set(sentences)) < len(sentences) else []),
        *_verdict_faults(replace(lesson, reply=texts[0])),
        *_leaks(whole),
    ]


def _verdict_faults(lesson: Lesson) -> list[str]:
    if lesson.assessment is None:
        return ["judges an answer that nothing was told of"] if judges(lesson.reply) else []
    if agrees(lesson.reply, lesson.assessment.verdict):
        return []
    stated = judgement_in(lesson.reply)
    return [f"the answer is {lesson.assessment.verdict}, the first two sentences say {stated}"]


def _leaks(lesson: Lesson) -> list[str]:
    leaks = (answer for answer in lesson.withheld if contains_answer(lesson.reply, answer))
    return [f"says the withheld answer '{answer}'" for answer in leaks]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def _runs(lesson: Lesson) -> set[tuple[str, ...]]:
    words = _words(" ".join([lesson.turns[-1], *lesson.texts]))
    return {tuple(words[start : start + _RUN_WORDS]) for start in range(max(1, len(words) - _RUN_WORDS + 1))}
