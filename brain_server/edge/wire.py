"""Between the contract's messages and the domain, both ways.

Requests that come here follow the rules of their protos: the interceptor has checked them (`mesh.rpc.validation`).
Knows neither the engine's insides nor gRPC.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from aivo.brain.v1 import adapter_pb2
from aivo.brain.v1 import brain_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from brain_server.assess.assessor import Assessment, Verdict
from brain_server.edge.health import BrainHealthReport
from brain_server.edge.known_wire import assessment_message, known_from
from brain_server.edge.safety_wire import report_from
from brain_server.engine.contract import (
    AdapterPolicy,
    Fallback,
    FinishReason,
    Generation,
    LoadedAdapter,
    Reply,
    Sampling,
)
from brain_server.engine.main_brain import MainBrainFacts
from brain_server.safety.verdict import SafetyVerdict
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.profile import StudentProfile, parse_profile

_POLICIES: Mapping[int, AdapterPolicy] = {
    pb.ADAPTER_POLICY_PREFER: AdapterPolicy.PREFER,
    pb.ADAPTER_POLICY_REQUIRE: AdapterPolicy.REQUIRE,
    pb.ADAPTER_POLICY_BASE_ONLY: AdapterPolicy.BASE_ONLY,
}
_ROLES: Mapping[int, Role] = {pb.ROLE_STUDENT: Role.STUDENT, pb.ROLE_TUTOR: Role.TUTOR}
_FALLBACKS: Mapping[Fallback, pb.FallbackReason.ValueType] = {
    Fallback.NO_STUDENT: pb.FALLBACK_REASON_NO_STUDENT,
    Fallback.BASE_ONLY: pb.FALLBACK_REASON_BASE_ONLY,
    Fallback.NO_STUDENT_MODEL: pb.FALLBACK_REASON_NO_STUDENT_MODEL,
    Fallback.ADAPTER_STORE_UNAVAILABLE: pb.FALLBACK_REASON_ADAPTER_STORE_UNAVAILABLE,
    Fallback.OUTDATED: pb.FALLBACK_REASON_OUTDATED,
    Fallback.ADAPTER_BROKEN: pb.FALLBACK_REASON_ADAPTER_BROKEN,
    Fallback.FEEDBACK_REJECTED: pb.FALLBACK_REASON_FEEDBACK_REJECTED,
    Fallback.SAFETY: pb.FALLBACK_REASON_SAFETY,
}
_FINISHES: Mapping[FinishReason, pb.FinishReason.ValueType] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.SAFETY: pb.FINISH_REASON_SAFETY,
}

ReplyMessage = TypeVar("ReplyMessage", pb.GenerateResponse, pb.Finished)
AnyGenerateRequest = pb.GenerateRequest | pb.GenerateStreamRequest


def generation_from(request: AnyGenerateRequest, *, deadline: float | None) -> Generation:
    """Converts a conversation to continue.

    Args:
        request: Unary or streamed; the fields are the same.
        deadline: `time.monotonic()` seconds after which nobody waits.
    """
    turns = [Turn(role=_ROLES[turn.role], text=turn.text) for turn in request.history]
    knowledge = known_from(request)
    return Generation(
        prompt=Prompt(
            profile=_profile_from(request.context),
            turns=(*turns, Turn(role=Role.STUDENT, text=request.prompt)),
            assessment=knowledge.assessment,
            facts=knowledge.facts,
        ),
        student_id=request.context.student_id or None,
        policy=_POLICIES[request.adapter_policy] if request.HasField("adapter_policy") else AdapterPolicy.PREFER,
        version=request.adapter_version if request.HasField("adapter_version") else None,
        sampling=Sampling(
            temperature=request.temperature if request.HasField("temperature") else None,
            top_p=request.top_p if request.HasField("top_p") else None,
            max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
            seed=request.seed if request.HasField("seed") else None,
            stop=tuple(request.stop),
        ),
        deadline=deadline,
    )


def assessment_from(request: pb.AssessRequest) -> Assessment:
    """Converts an answer to assess."""
    criteria = request.criteria
    named = parse_profile(grade=criteria.grade, subject=criteria.subject)
    student = _profile_from(request.context)
    return Assessment(
        answer=request.student_response.strip(),
        criteria=Criteria(
            grade=named.grade or student.grade,
            subject=named.subject or student.subject,
            **{name: getattr(criteria, name).strip() for name in Criteria.TEXTS},
        ),
        profile=student,
        student_id=request.context.student_id or None,
    )


def response_from(reply: Reply, prompt: Prompt, safety: SafetyVerdict | None = None) -> pb.GenerateResponse:
    """Converts a whole reply, with what its prompt told of the student's answer and what screening found."""
    return _reply_as(pb.GenerateResponse, reply, prompt, safety)


def piece_from(sequence: int, text: str) -> pb.GenerateStreamResponse:
    """Converts the next piece of a reply."""
    return pb.GenerateStreamResponse(sequence=sequence, text=text)


def finished_from(
    sequence: int, reply: Reply, prompt: Prompt, safety: SafetyVerdict | None = None
) -> pb.GenerateStreamResponse:
    """Converts the end of a stream, with what its prompt told of the student's answer and what screening found."""
    return pb.GenerateStreamResponse(sequence=sequence, finished=_reply_as(pb.Finished, reply, prompt, safety))


def broken_off_from(sequence: int, error: status_pb2.Status, *, text: str, model: str) -> pb.GenerateStreamResponse:
    """Converts the end of a stream that failed, with what it sent until then."""
    finished = pb.Finished(response=text, model=model, timestamp=_now(), error=error)
    return pb.GenerateStreamResponse(sequence=sequence, finished=finished)


def adapter_from(adapter: LoadedAdapter) -> adapter_pb2.Adapter:
    """Converts the identity of an adapter."""
    return adapter_pb2.Adapter(student_id=adapter.ref.student_id, version=adapter.ref.version, sha256=adapter.sha256)


def verdict_from(verdict: Verdict, safety: SafetyVerdict | None = None) -> pb.AssessResponse:
    """Converts a verdict, with what screening found."""
    likely, reply = verdict.grade.probabilities, verdict.reply
    return pb.AssessResponse(
        correctness=verdict.correctness,
        understanding_level=verdict.level.value,
        feedback=verdict.feedback.feedback,
        strengths=verdict.feedback.strengths,
        areas_for_improvement=verdict.feedback.areas_for_improvement,
        next_steps=verdict.feedback.next_steps,
        model=reply.model,
        tokens_used=verdict.tokens,
        timestamp=_now(),
        probabilities=pb.VerdictProbabilities(
            correct=likely.correct, partially_correct=likely.partially_correct, incorrect=likely.incorrect
        ),
        main_brain=reply.main_brain,
        grader=verdict.grade.grader,
        adapter=None if reply.adapter is None else adapter_from(reply.adapter),
        fallback=None if reply.fallback is None else _FALLBACKS[reply.fallback],
        safety=report_from(safety),
    )


def health_from(report: BrainHealthReport) -> pb.GetHealthResponse:
    """Converts the server's health."""
    facts = report.engine
    return pb.GetHealthResponse(
        status=report.status,
        model_loaded=report.model_loaded,
        device=facts.device,
        model_name=facts.model,
        gpu_available=facts.gpu_available,
        reason=report.reason,
        quantization=facts.quantization,
        dtype=facts.dtype,
        fallback_for=facts.fallback_for,
        main_brain=None if facts.main_brain is None else _main_brain_from(facts.main_brain),
        dependencies=[
            pb.Dependency(name=part.name, available=part.available, reason=part.reason) for part in report.dependencies
        ],
        safety=report.safety,
    )


def _main_brain_from(facts: MainBrainFacts) -> pb.MainBrain:
    return pb.MainBrain(
        digest=facts.digest, tutor=facts.tutor, grader=facts.grader, guard=facts.guard, problems=facts.problems
    )


def _profile_from(context: pb.StudentContext) -> StudentProfile:
    return parse_profile(
        grade=context.grade,
        subject=context.subject,
        learning_style=context.learning_style,
        disability=context.disability,
    )


def _reply_as(kind: type[ReplyMessage], reply: Reply, prompt: Prompt, safety: SafetyVerdict | None) -> ReplyMessage:
    timing = reply.timing
    return kind(
        response=reply.text,
        model=reply.model,
        main_brain=reply.main_brain,
        tokens_used=reply.prompt_tokens + reply.completion_tokens,
        timestamp=_now(),
        assessment=assessment_message(prompt.assessment),
        facts=prompt.facts,
        adapter=None if reply.adapter is None else adapter_from(reply.adapter),
        fallback=None if reply.fallback is None else _FALLBACKS[reply.fallback],
        finish_reason=_FINISHES[reply.finish_reason],
        usage=pb.Usage(prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens),
        timing=pb.Timing(
            queue_ms=round(timing.queue_ms, 2),
            adapter_load_ms=round(timing.adapter_load_ms, 2),
            first_token_ms=round(timing.first_token_ms, 2),
            total_ms=round(timing.total_ms, 2),
        ),
        safety=report_from(safety),
    )


def _now() -> Timestamp:
    """To the second: JSON then prints the timestamp without a fraction, as the frontend expects it."""
    return Timestamp(seconds=int(datetime.now(UTC).timestamp()))
