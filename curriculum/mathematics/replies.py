"""Composes a reply in the form of a student's profile."""

from collections.abc import Sequence
from random import Random

from curriculum.mathematics import phrases
from curriculum.mathematics.exercise import Exercise, Topic
from mesh.tutoring.form import FormRules, split_sentences
from mesh.tutoring.profile import Disability, GradeBand, LearningStyle, StudentProfile
from mesh.tutoring.teaching import rules_of

_EARLY = (GradeBand.K_2, GradeBand.G3_5)


class NoReply(ValueError):
    """The drawn words do not fit the student's form; others may."""


def explain(exercise: Exercise, *, topic: Topic, student: StudentProfile, draw: Random) -> str:
    """Returns the steps and the result of an exercise.

    Raises:
        NoReply: The words that were drawn break the form of the student's profile.
    """
    early = _is_early(student)
    result = draw.choice(phrases.RESULTS[: phrases.EARLY_RESULTS] if early else phrases.RESULTS)
    steps = [*exercise.steps, result.format(r=exercise.result)]
    if exercise.check and len(steps) < 4 and draw.random() < 0.6:
        steps.append(exercise.check)
    opening = draw.choice(phrases.OPENINGS[: phrases.EARLY_OPENINGS] if early else phrases.OPENINGS)
    has_opening = draw.random() < 0.5 and student.disability not in {Disability.ADHD, Disability.AUTISM}
    style = _style_sentence(topic, student.learning_style, draw)
    return _fit(
        student,
        steps,
        before=[*([opening] if has_opening else []), *([style] if style else [])],
        question=draw.choice(phrases.QUESTIONS),
        draw=draw,
    )


def confirm(exercise: Exercise, claim: str, *, student: StudentProfile, draw: Random) -> str:
    """Returns a reply to a right answer: it says so at once, and adds one thought. Raises as `explain` does."""
    frames = phrases.CONFIRMS[: phrases.EARLY_CONFIRMS] if _is_early(student) else phrases.CONFIRMS
    fact = f"{exercise.expression} = {exercise.answer}"
    # In words, where there is room and no minus sign to confuse it with.
    if draw.random() < 0.5:
        fact = f"{exercise.expression} is {exercise.answer}"
    verdict = draw.choice(frames).format(e=exercise.expression, c=claim, f=fact)
    question = draw.choice(phrases.NEXT_AFTER_RIGHT)
    steps = [verdict, exercise.thought]
    if draw.random() < 0.5 and student.disability is not Disability.AUTISM:
        steps.append(question)
    return _fit(student, steps, before=[], question=question, draw=draw)


def correct(exercise: Exercise, claim: str, *, plea: bool, student: StudentProfile, draw: Random) -> str:
    """Returns a reply to a wrong answer: kindly not right, and a step that leads on. Raises as `explain` does."""
    frames = phrases.CORRECTS[: phrases.EARLY_CORRECTS] if _is_early(student) else phrases.CORRECTS
    if plea and draw.random() < 0.6:
        frames = phrases.CORRECTS_PLEAS
    verdict = draw.choice(frames).format(e=exercise.expression, c=claim)
    verdict = verdict[0].upper() + verdict[1:]
    lead, question = draw.choice(phrases.LEADS), draw.choice(phrases.NEXT_AFTER_WRONG)
    first = exercise.first_step
    if draw.random() < 0.4:
        first = f"{lead} {first}"
    return _fit(student, [verdict, first, question], before=[], question=question, draw=draw)


def _is_early(student: StudentProfile) -> bool:
    return GradeBand.of(student.grade or "K") in _EARLY


def _style_sentence(topic: Topic, style: LearningStyle | None, draw: Random) -> str:
    return draw.choice(phrases.STYLES[style][topic]) if style in phrases.STYLES and style else ""


def _fit(student: StudentProfile, steps: Sequence[str], *, before: Sequence[str], question: str, draw: Random) -> str:
    """Lays sentences out as the profile asks, and leaves out openings for which there is no room."""
    rules = rules_of(student)
    needed = [*steps]
    if rules.required_phrases:
        needed.insert(draw.choice((0, len(needed))) if before else len(needed), draw.choice(phrases.REASSURANCES))
    if rules.ends_with_question and question not in needed:
        needed.append(question)
    elif rules.ends_with_question:
        needed = [*(sentence for sentence in needed if sentence != question), question]
    if student.disability is Disability.AUTISM and len(needed) > 2 and not needed[-1].endswith("?"):
        needed.append(draw.choice(phrases.ENDINGS))
    openings = list(before)
    while True:
        reply = _lay_out([*openings, *needed], rules, student, draw)
        violations = rules.violations(reply)
        if not violations:
            return reply
        if not openings:
            raise NoReply("; ".join(violations))
        # The style comes last, and is the last to go.
        openings = openings[1:]


def _lay_out(sentences: Sequence[str], rules: FormRules, student: StudentProfile, draw: Random) -> str:
    if rules.numbered_steps:
        ends = rules.ends_with_question
        numbered, last = (sentences[:-1], sentences[-1:]) if ends else (sentences, ())
        return "\n".join([*(f"{index}. {text}" for index, text in enumerate(numbered, start=1)), *last])
    if student.disability is Disability.DYSLEXIA or rules.max_paragraph_sentences:
        return "\n".join(sentences)
    if draw.random() < 0.3 and len(split_sentences(" ".join(sentences))) > 3:
        return "\n".join(sentences)
    return " ".join(sentences)
