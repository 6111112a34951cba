"""Between the contract's messages and the domain, both ways. Knows neither the engine's insides nor gRPC."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

from aivo.brain.v1 import adapter_pb2
from aivo.brain.v1 import brain_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from brain_server.assess.assessor import Assessment, Verdict
from brain_server.assess.grading import Criteria
from brain_server.edge.health import HealthReport
from brain_server.engine.contract import (
    AdapterPolicy,
    Fallback,
    FinishReason,
    Generation,
    LoadedAdapter,
    Reply,
    Sampling,
)
from mesh.adapters.ref import validate_student_id
from mesh.errors import InvalidField
from mesh.lm.chat import Prompt, Role, Turn
from mesh.rpc.validation import Fields
from mesh.tutoring.profile import StudentProfile, parse_profile

MAX_PROMPT_CHARS = 8_000
MAX_TURNS = 32
MAX_CRITERION_CHARS = 2_000
MAX_TOKENS = 1024
MAX_STOPS = 4
MAX_STOP_CHARS = 64
# Four times what the default base model's context window holds in English. Whether a conversation fits the window, only
# the engine can tell; this keeps it from having to read what can't.
MAX_CONVERSATION_CHARS = 131_072

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
}
_FINISHES: Mapping[FinishReason, pb.FinishReason.ValueType] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}

ReplyMessage = TypeVar("ReplyMessage", pb.GenerateResponse, pb.Finished)
AnyGenerateRequest = pb.GenerateRequest | pb.GenerateStreamRequest


def generation_from(request: AnyGenerateRequest, *, deadline: float | None) -> Generation:
    """Parses a conversation to continue.

    Args:
        request: Unary or streamed; the fields are the same.
        deadline: `time.monotonic()` seconds after which nobody waits.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    fields.require_text("prompt", request.prompt, max_chars=MAX_PROMPT_CHARS)
    profile = _profile_from(fields, request.context)
    sampling = _sampling_from(fields, request)
    turns = _turns_from(fields, request)
    policy = _policy_from(fields, request)
    fields.raise_if_any()
    return Generation(
        prompt=Prompt(profile=profile, turns=(*turns, Turn(role=Role.STUDENT, text=request.prompt))),
        student_id=request.context.student_id or None,
        policy=policy,
        version=request.adapter_version if request.HasField("adapter_version") else None,
        sampling=sampling,
        deadline=deadline,
    )


def assessment_from(request: pb.AssessRequest) -> Assessment:
    """Parses an answer to assess.

    Raises:
        InvalidField: With every fault of the request.
    """
    fields = Fields()
    fields.require_text("student_response", request.student_response, max_chars=MAX_PROMPT_CHARS)
    criteria = request.criteria
    within = fields.within("criteria")
    texts = {name: getattr(criteria, name) for name in Criteria.TEXTS}
    for name, text in texts.items():
        within.text(name, text, max_chars=MAX_CRITERION_CHARS)
    if not any(text.strip() for text in texts.values()):
        fields.refuse("criteria", f"must have at least one of {', '.join(Criteria.TEXTS)}")
    asked = _parse_profile(fields, "criteria.", grade=criteria.grade, subject=criteria.subject)
    student = _profile_from(fields, request.context)
    fields.raise_if_any()
    return Assessment(
        answer=request.student_response.strip(),
        criteria=Criteria(
            grade=asked.grade or student.grade,
            subject=asked.subject or student.subject,
            **{name: text.strip() for name, text in texts.items()},
        ),
        profile=student,
    )


def response_from(reply: Reply) -> pb.GenerateResponse:
    """Tells a whole reply."""
    return _reply_as(pb.GenerateResponse, reply)


def piece_from(sequence: int, text: str) -> pb.GenerateStreamResponse:
    """Tells the next piece of a reply."""
    return pb.GenerateStreamResponse(sequence=sequence, text=text)


def finished_from(sequence: int, reply: Reply) -> pb.GenerateStreamResponse:
    """Tells the end of a stream."""
    return pb.GenerateStreamResponse(sequence=sequence, finished=_reply_as(pb.Finished, reply))


def broken_off_from(sequence: int, error: status_pb2.Status, *, text: str, model: str) -> pb.GenerateStreamResponse:
    """Tells that a stream ends too early, with what it sent until then."""
    finished = pb.Finished(response=text, model=model, timestamp=_now(), error=error)
    return pb.GenerateStreamResponse(sequence=sequence, finished=finished)


def adapter_from(adapter: LoadedAdapter) -> adapter_pb2.Adapter:
    """Tells the identity of an adapter."""
    return adapter_pb2.Adapter(student_id=adapter.ref.student_id, version=adapter.ref.version, sha256=adapter.sha256)


def verdict_from(verdict: Verdict) -> pb.AssessResponse:
    """Tells a verdict."""
    likely = verdict.probabilities
    return pb.AssessResponse(
        correctness=verdict.correctness,
        understanding_level=verdict.level.value,
        feedback=verdict.feedback.feedback,
        strengths=verdict.feedback.strengths,
        areas_for_improvement=verdict.feedback.areas_for_improvement,
        next_steps=verdict.feedback.next_steps,
        model=verdict.model,
        tokens_used=verdict.tokens,
        timestamp=_now(),
        probabilities=pb.VerdictProbabilities(
            correct=likely.correct, partially_correct=likely.partially_correct, incorrect=likely.incorrect
        ),
    )


def health_from(report: HealthReport) -> pb.GetHealthResponse:
    """Tells of the server's health."""
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
        dependencies=[
            pb.Dependency(name=part.name, available=part.available, reason=part.reason) for part in report.dependencies
        ],
    )


def _profile_from(fields: Fields, context: pb.StudentContext) -> StudentProfile:
    if context.student_id:
        try:
            validate_student_id(context.student_id, field="context.student_id")
        except InvalidField as error:
            fields.include(error)
    return _parse_profile(
        fields,
        "context.",
        grade=context.grade,
        subject=context.subject,
        learning_style=context.learning_style,
        disability=context.disability,
    )


def _parse_profile(fields: Fields, prefix: str, **words: str) -> StudentProfile:
    try:
        return parse_profile(prefix, **words)
    except InvalidField as error:
        fields.include(error)
        return StudentProfile()


def _sampling_from(fields: Fields, request: AnyGenerateRequest) -> Sampling:
    sampling = Sampling(
        temperature=request.temperature if request.HasField("temperature") else None,
        top_p=request.top_p if request.HasField("top_p") else None,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        seed=request.seed if request.HasField("seed") else None,
        stop=_stop_from(fields, request),
    )
    fields.between("temperature", sampling.temperature, low=0, high=2)
    fields.between("top_p", sampling.top_p, low=0, high=1, above_low=True)
    fields.between("max_tokens", sampling.max_tokens, low=1, high=MAX_TOKENS)
    return sampling


def _stop_from(fields: Fields, request: AnyGenerateRequest) -> tuple[str, ...]:
    fields.count("stop", len(request.stop), high=MAX_STOPS)
    for index, sequence in enumerate(request.stop[:MAX_STOPS]):
        # White space is fine: a blank line is what most often ends a reply.
        if not 1 <= len(sequence) <= MAX_STOP_CHARS:
            fields.refuse(f"stop[{index}]", f"must have 1 to {MAX_STOP_CHARS} characters")
    return tuple(request.stop)


def _turns_from(fields: Fields, request: AnyGenerateRequest) -> list[Turn]:
    history = request.history
    fields.count("history", len(history), high=MAX_TURNS)
    # Some chat templates refuse any other order; the prompt is the student's next turn.
    if len(history) % 2:
        fields.refuse("history", "must end with the tutor's turn, as the prompt is the student's next")
    turns = []
    # A request that is too long by far is not worth reading on.
    for index, (turn, expected) in enumerate(zip(history[:MAX_TURNS], (*Role,) * MAX_TURNS, strict=False)):
        within = fields.within(f"history[{index}]")
        if _ROLES.get(turn.role) is not expected:
            within.refuse("role", f"must be ROLE_{expected.name}; turns alternate, beginning with the student's")
        within.require_text("text", turn.text, max_chars=MAX_PROMPT_CHARS)
        turns.append(Turn(role=expected, text=turn.text))
    if len(request.prompt) + sum(len(turn.text) for turn in turns) > MAX_CONVERSATION_CHARS:
        fields.refuse("history", f"must be at most {MAX_CONVERSATION_CHARS:,} characters, together with the prompt")
    return turns


def _policy_from(fields: Fields, request: AnyGenerateRequest) -> AdapterPolicy:
    named = request.adapter_policy if request.HasField("adapter_policy") else pb.ADAPTER_POLICY_PREFER
    policy = _POLICIES.get(named)
    if policy is None:
        fields.refuse("adapter_policy", f"must be one of {', '.join(pb.AdapterPolicy.keys()[1:])}")
        policy = AdapterPolicy.PREFER
    pinned = request.HasField("adapter_version")
    if pinned and request.adapter_version < 1:
        fields.refuse("adapter_version", "must be 1 or more")
    if pinned and policy is AdapterPolicy.BASE_ONLY:
        fields.refuse("adapter_version", "must be unset with ADAPTER_POLICY_BASE_ONLY")
    if not request.context.student_id and (pinned or policy is AdapterPolicy.REQUIRE):
        why = "adapter_version" if pinned else "ADAPTER_POLICY_REQUIRE"
        fields.refuse("context.student_id", f"must not be empty with {why}")
    return policy


def _reply_as(kind: type[ReplyMessage], reply: Reply) -> ReplyMessage:
    timing = reply.timing
    return kind(
        response=reply.text,
        model=reply.model,
        tokens_used=reply.prompt_tokens + reply.completion_tokens,
        timestamp=_now(),
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
    )


def _now() -> Timestamp:
    """To the second: JSON then prints the timestamp without a fraction, as the frontend expects it."""
    return Timestamp(seconds=int(datetime.now(UTC).timestamp()))
