"""What a reply is told of the student's answer: by the request, or computed by code.

Knows neither the engine nor gRPC.
"""

from collections.abc import Mapping

from aivo.brain.v1 import brain_service_pb2 as pb

from mesh.tutoring.arithmetic import Computation, compute
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict

_VERDICTS: Mapping[int, AnswerVerdict] = {
    pb.ANSWER_VERDICT_CORRECT: AnswerVerdict.CORRECT,
    pb.ANSWER_VERDICT_PARTIALLY_CORRECT: AnswerVerdict.PARTIALLY_CORRECT,
    pb.ANSWER_VERDICT_INCORRECT: AnswerVerdict.INCORRECT,
    pb.ANSWER_VERDICT_BLANK: AnswerVerdict.BLANK,
    pb.ANSWER_VERDICT_OFF_TOPIC: AnswerVerdict.OFF_TOPIC,
}
_ANSWER_VERDICTS: Mapping[AnswerVerdict, pb.AnswerVerdict.ValueType] = {
    AnswerVerdict.CORRECT: pb.ANSWER_VERDICT_CORRECT,
    AnswerVerdict.PARTIALLY_CORRECT: pb.ANSWER_VERDICT_PARTIALLY_CORRECT,
    AnswerVerdict.INCORRECT: pb.ANSWER_VERDICT_INCORRECT,
    AnswerVerdict.BLANK: pb.ANSWER_VERDICT_BLANK,
    AnswerVerdict.OFF_TOPIC: pb.ANSWER_VERDICT_OFF_TOPIC,
}


def known_from(request: pb.GenerateRequest | pb.GenerateStreamRequest) -> Computation:
    """Returns what is known of the student's turn: computed facts, and an assessment.

    The request's own assessment wins over a computed one: a teacher or a grader may judge more than a number.
    """
    computation = compute(request.prompt)
    if not request.HasField("assessment"):
        return computation
    assessment = AnswerAssessment(
        verdict=_VERDICTS[request.assessment.verdict], reference_answer=request.assessment.reference_answer.strip()
    )
    return Computation(facts=computation.facts, assessment=assessment)


def assessment_message(assessment: AnswerAssessment | None) -> pb.AnswerAssessment | None:
    """Converts what a reply was told of an answer; None for nothing."""
    if assessment is None:
        return None
    return pb.AnswerAssessment(
        verdict=_ANSWER_VERDICTS[assessment.verdict], reference_answer=assessment.reference_answer
    )
