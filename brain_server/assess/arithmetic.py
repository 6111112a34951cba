"""Verdicts by code: where an answer and what is right are numbers, they are compared exactly, and no model is asked."""

from mesh.tutoring.arithmetic import open_expressions, same_number
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.criteria import Criteria


def decide_by_arithmetic(answer: str, criteria: Criteria) -> AnswerVerdict | None:
    """Returns the verdict where numbers decide it; None where they don't, so that a grader must.

    The reference answer decides if it is a number. Without a reference answer and a rubric, the question decides if it
    asks for the value of exactly one expression.
    """
    if criteria.reference_answer:
        return _verdict_for(answer, (criteria.reference_answer,))
    if criteria.rubric:
        return None
    expressions = open_expressions(criteria.question)
    if len(expressions) != 1:
        return None
    return _verdict_for(answer, expressions[0].answers)


def _verdict_for(answer: str, references: tuple[str, ...]) -> AnswerVerdict | None:
    """Compares an answer with the notations of one right number."""
    outcomes = [same_number(reference, answer) for reference in references]
    if True in outcomes:
        return AnswerVerdict.CORRECT
    return AnswerVerdict.INCORRECT if False in outcomes else None
