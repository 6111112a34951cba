"""The exception tree: every fault that a caller can act on, as a reason and its facts.

A class says what went wrong; `mesh.rpc.errors` says which gRPC code that is. A reason is the name of a value of
`aivo.error.v1.Reason` without its prefix, and the facts are those of its example there; tests hold both equal. A class
with facts takes them as keyword arguments. Messages and facts never hold a student's words.

Knows nothing of gRPC.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

Fact = str | int | float


class AivoError(Exception):
    """A fault with a reason that a caller can act on.

    Attributes:
        reason: The machine-readable reason, upper snake case.
        facts: What the caller needs to act, such as ids and limits.
    """

    reason: ClassVar[str]

    def __init__(self, message: str, facts: Mapping[str, Fact | None] | None = None) -> None:
        """Takes what is wrong and what to do, and the facts; a fact that is None is not known and left out."""
        super().__init__(message)
        self.facts: dict[str, Fact] = {name: fact for name, fact in (facts or {}).items() if fact is not None}

    def __reduce__(self) -> tuple[object, ...]:
        # By default, exceptions with keyword arguments do not pickle; these cross process borders in Ray.
        return _rebuild, (type(self), str(self), self.__dict__.copy())


def _rebuild(kind: type[AivoError], message: str, state: dict[str, object]) -> AivoError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


# What the caller sent.


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault.

    Attributes:
        field: Path of the field in the request, such as `context.grade` or `baseline_data.responses[3].question`.
        description: What is wrong and what would be accepted, limit included; never the value itself.
    """

    field: str
    description: str


class InvalidArgument(AivoError):
    """The request is wrong in itself; sending it again cannot help."""


class InvalidField(InvalidArgument):
    """One or more fields are missing, malformed or out of range; the error names all of them."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations: tuple[Violation, ...] = tuple(violations)


class MalformedRequest(InvalidArgument):
    """The request could not be read as what the method takes."""

    reason = "MALFORMED_REQUEST"


class RequestTooLarge(InvalidArgument):
    """The body or the headers are larger than what is accepted."""

    reason = "REQUEST_TOO_LARGE"


class MethodNotFound(AivoError):
    """The server has no such method; it may be an older or a newer one than the caller takes it for."""

    reason = "METHOD_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("the server has no such method")


class UnsupportedMediaType(InvalidArgument):
    """The gateway reads bodies of JSON and gRPC alone."""

    reason = "UNSUPPORTED_MEDIA_TYPE"


# Who may not call.


class PermissionDenied(AivoError):
    """The caller may not do this."""


class HostNotAllowed(PermissionDenied):
    """The gateway does not serve the host that the request names."""

    reason = "HOST_NOT_ALLOWED"


class OriginNotAllowed(PermissionDenied):
    """The request is from a web page whose origin may not call."""

    reason = "ORIGIN_NOT_ALLOWED"


# What does not exist.


class NotFound(AivoError):
    """The thing named does not exist."""


class CloneNotFound(NotFound):
    """No clone has this id."""

    reason = "CLONE_NOT_FOUND"

    def __init__(self, *, clone_id: str) -> None:
        super().__init__(f"no clone has the id {clone_id}", {"clone_id": clone_id})


class AlertNotFound(NotFound):
    """No safety alert has this id."""

    reason = "ALERT_NOT_FOUND"

    def __init__(self, *, alert_id: str) -> None:
        super().__init__(f"no alert has the id {alert_id}", {"alert_id": alert_id})


class RouteNotFound(NotFound):
    """The gateway has no route for the method and path."""

    reason = "ROUTE_NOT_FOUND"


class StudentNotFound(NotFound):
    """Nothing is held of the student."""

    reason = "STUDENT_NOT_FOUND"

    def __init__(self, *, student_id: str) -> None:
        super().__init__(f"nothing is held of student {student_id}", {"student_id": student_id})


class StudentModelNotFound(NotFound):
    """The student has no active adapter, and the caller required one."""

    reason = "STUDENT_MODEL_NOT_FOUND"

    def __init__(self, *, student_id: str) -> None:
        super().__init__(f"student {student_id} has no active model", {"student_id": student_id})


class ModelVersionNotFound(NotFound):
    """The student has no adapter with this version."""

    reason = "MODEL_VERSION_NOT_FOUND"

    def __init__(self, *, student_id: str, version: int) -> None:
        message = f"student {student_id} has no model version {version}"
        super().__init__(message, {"student_id": student_id, "version": version})


# What stands in the way.


class AlreadyExists(AivoError):
    """The name in the request belongs to something else."""


class RequestIdReused(AlreadyExists):
    """The `request_id` belongs to an earlier request with another body."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, *, request_id: str, clone_id: str) -> None:
        facts = {"request_id": request_id, "clone_id": clone_id}
        super().__init__(f"request_id {request_id} was used with another body; use a new one", facts)


class Aborted(AivoError):
    """Another run holds what this one needs; try again when it has ended."""


class CloneAlreadyRunning(Aborted):
    """The student's earlier clone has not ended."""

    reason = "CLONE_ALREADY_RUNNING"

    def __init__(self, *, student_id: str, clone_id: str) -> None:
        facts = {"student_id": student_id, "clone_id": clone_id}
        super().__init__(
            f"clone {clone_id} of student {student_id} has not ended; wait for it, or set `queue_behind`", facts
        )


class PublishConflict(Aborted):
    """Another publisher took the version or moved the pointer first."""

    reason = "PUBLISH_CONFLICT"

    def __init__(self, message: str, *, student_id: str | None = None) -> None:
        super().__init__(message, {"student_id": student_id})


class FailedPrecondition(AivoError):
    """The data at rest does not allow it; the same call cannot succeed until that changes."""


class AdapterIncompatible(FailedPrecondition):
    """The adapter is sound but does not fit this base model or this server's limits."""

    reason = "ADAPTER_INCOMPATIBLE"

    def __init__(self, message: str, *, student_id: str | None = None, version: int | None = None) -> None:
        """Takes whose adapter it is where that is known; `adapter_errors_name` adds it further up."""
        super().__init__(message, {"student_id": student_id, "version": version})


class AdapterOutdated(AdapterIncompatible):
    """The adapter was made on another Main Brain than the one that runs; a new clone replaces it."""

    def __init__(self, *, student_id: str, version: int, base_digest: str) -> None:
        """Takes whose adapter it is, and the digest of the Main Brain that it was made on."""
        super().__init__(
            f"version {version} was made on another Main Brain ({base_digest[:12]}); clone the student again",
            student_id=student_id,
            version=version,
        )
        self.base_digest = base_digest


class NoTrainableExamples(FailedPrecondition):
    """The baseline leaves too few examples to train and to hold out."""

    reason = "NO_TRAINABLE_EXAMPLES"

    def __init__(self, *, responses: int, usable: int) -> None:
        """Takes how many responses the baseline has, and how many different items of them can be learned from."""
        needed = "training needs at least 2, to train on one and to hold one out"
        super().__init__(
            f"the baseline's {responses} responses leave {usable} different items to learn from; {needed}",
            {"responses": responses, "usable": usable},
        )


class TrainingDiverged(FailedPrecondition):
    """Training produced a loss or weights that are not finite."""

    reason = "TRAINING_DIVERGED"

    def __init__(self, *, step: int) -> None:
        super().__init__(f"the loss or the weights were not finite at step {step}", {"step": step})


class GateNotPassed(FailedPrecondition):
    """The new version is not better than the one it would replace, which stays active."""

    reason = "GATE_NOT_PASSED"

    def __init__(
        self,
        *,
        faults: Mapping[str, str],
        heldout_loss: float,
        heldout_loss_base: float,
        heldout_loss_previous: float | None,
        replies: Mapping[str, float],
        base_replies: Mapping[str, float],
    ) -> None:
        """Takes what the version fails in, and what was measured.

        Args:
            faults: A word for each test that failed, with what it tells a teacher: a clause about the new model.
            heldout_loss: Of the version on the held-out examples, nats per token.
            heldout_loss_base: Of the base model on the same.
            heldout_loss_previous: Of the active version on the same; None if there is none.
            replies: Figures of the version's greedy replies to held-out prompts.
            base_replies: The same of the base model's replies.
        """
        facts: dict[str, Fact | None] = {
            "faults": ",".join(faults),
            "heldout_loss": round(heldout_loss, 4),
            "heldout_loss_base": round(heldout_loss_base, 4),
            "heldout_loss_previous": None if heldout_loss_previous is None else round(heldout_loss_previous, 4),
            **{f"replies_{name}": round(figure, 1) for name, figure in replies.items()},
            **{f"base_replies_{name}": round(figure, 1) for name, figure in base_replies.items()},
        }
        super().__init__(f"the new model is not better, so it is not used: {'; '.join(faults.values())}", facts)


class CloneFinal(FailedPrecondition):
    """The clone has ended, or its version is committed, so it can no longer be cancelled."""

    reason = "CLONE_FINAL"

    def __init__(self, *, clone_id: str, state: str) -> None:
        facts = {"clone_id": clone_id, "state": state}
        super().__init__(f"clone {clone_id} is {state} and can no longer be cancelled", facts)


class ConsentRequired(FailedPrecondition):
    """The server requires a consent, and the request has none or an expired one."""

    reason = "CONSENT_REQUIRED"

    def __init__(self, *, student_id: str) -> None:
        super().__init__(
            f"using the data of student {student_id} requires a consent that has not expired; set `consent`",
            {"student_id": student_id},
        )


class BaselineUnreadable(FailedPrecondition):
    """The clone's baseline is sealed, and this server can't open it; the clone ends."""

    reason = "BASELINE_UNREADABLE"

    def __init__(self, why: str, *, clone_id: str, key: str) -> None:
        """Takes why not, and the name of the master key that the baseline needs."""
        message = f"the baseline of clone {clone_id} can't be opened: {why}"
        super().__init__(message, {"clone_id": clone_id, "key": key})


class DataLoss(AivoError):
    """Stored bytes are not what was written."""


class AdapterCorrupt(DataLoss):
    """The adapter's bytes fail their checks: hash, header, shapes, dtype or non-finite values."""

    reason = "ADAPTER_CORRUPT"

    def __init__(self, message: str, *, student_id: str | None = None, version: int | None = None) -> None:
        """Takes whose adapter it is where that is known; `adapter_errors_name` adds it further up."""
        super().__init__(message, {"student_id": student_id, "version": version})


class CloneCorrupt(DataLoss):
    """What the clone store holds of a clone can't be read."""

    reason = "CLONE_CORRUPT"

    def __init__(self, *, clone_id: str) -> None:
        super().__init__(f"the record of clone {clone_id} can't be read; start another clone", {"clone_id": clone_id})


class AlertCorrupt(DataLoss):
    """What the alert store holds of a safety alert can't be read."""

    reason = "ALERT_CORRUPT"

    def __init__(self, *, alert_id: str) -> None:
        super().__init__(f"the record of alert {alert_id} can't be read", {"alert_id": alert_id})


# What may pass without the caller's doing.


class ResourceExhausted(AivoError):
    """A limit is reached for now."""


class QueueFull(ResourceExhausted):
    """The queue is full, or as full as some calls may make it: those of one student, say, or of one caller."""

    reason = "QUEUE_FULL"

    def __init__(
        self,
        *,
        limit: int,
        retry_seconds: float,
        whose: Literal["all", "one student", "no student", "students without a model", "one caller"] = "all",
    ) -> None:
        """Takes the limit, when to try again, and whose calls it bounds."""
        message = {
            "all": f"the queue is full with {limit} waiting; try again later",
            "one student": f"one student may have {limit} calls at a time; wait until one of them ends",
            "no student": f"calls that name no student, and Assess, may be {limit} at a time; try again later",
            "students without a model": f"students without a model may have {limit} calls at a time; try again later",
            "one caller": f"one caller may have {limit} calls at a time; wait until one of them ends",
        }[whose]
        super().__init__(message, {"limit": limit})
        self.retry_seconds = retry_seconds


class TooManyWatches(ResourceExhausted):
    """As many watches are open as the server takes."""

    reason = "TOO_MANY_WATCHES"

    def __init__(self, *, limit: int) -> None:
        super().__init__(
            f"{limit} watches are open on this server, the most it takes; try again later", {"limit": limit}
        )


class Unavailable(AivoError):
    """A part does not answer at the moment; the same call may succeed later."""


class ModelNotLoaded(Unavailable):
    """The base model is still loading, or could not be loaded."""

    reason = "MODEL_NOT_LOADED"


class BaseModelUnavailable(ModelNotLoaded):
    """The base model's files can't be fetched or read; the message says why."""


class BaseModelOutOfMemory(BaseModelUnavailable):
    """The base model does not fit the memory of the device."""


class SafetyUnavailable(Unavailable):
    """The guard can't judge a text, and calls without its judgement are refused."""

    reason = "SAFETY_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the guard can't judge the text now, and SAFETY_REQUIRED refuses calls without its judgement")


class AlertStoreUnavailable(Unavailable):
    """Redis, which keeps the safety alerts, does not answer, or there is none."""

    reason = "ALERT_STORE_UNAVAILABLE"


class ServerDraining(Unavailable):
    """The server is shutting down and takes no new calls."""

    reason = "SERVER_DRAINING"


class ServerUnreachable(Unavailable):
    """No server answers, as the gateway or a client sees it."""

    reason = "SERVER_UNREACHABLE"


class AdapterStoreUnavailable(Unavailable):
    """The adapter store (S3) does not answer."""

    reason = "ADAPTER_STORE_UNAVAILABLE"


class CloneStoreUnavailable(Unavailable):
    """The clone store (Redis/Valkey) does not answer."""

    reason = "CLONE_STORE_UNAVAILABLE"


class KeyServiceUnavailable(Unavailable):
    """The service that keeps the master key (AWS KMS) does not answer, or refuses."""

    reason = "KEY_SERVICE_UNAVAILABLE"


class BrainUnavailable(Unavailable):
    """The brain server does not answer."""

    reason = "BRAIN_UNAVAILABLE"

    def __init__(self, message: str, *, waited_seconds: int | None = None) -> None:
        """Takes how long a clone waited for the brain; None if it did not wait."""
        super().__init__(message, {"waited_seconds": waited_seconds})


class TrainerUnavailable(Unavailable):
    """The training actor is missing or died."""

    reason = "TRAINER_UNAVAILABLE"


class DeadlineExceeded(AivoError):
    """The caller's deadline passed; the work was stopped."""

    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("the deadline passed before the work was done")


class TrainingTooLong(DeadlineExceeded):
    """A clone's training took longer than the server allows."""

    def __init__(self, *, seconds: float) -> None:
        AivoError.__init__(self, f"the training did not end within {seconds:g} s, TRAIN_TIMEOUT_SECONDS")


@contextmanager
def adapter_errors_name(student_id: str, version: int | None = None) -> Iterator[None]:
    """Adds the student and the version to errors about an adapter that are raised inside.

    The code that checks bytes and keys does not know whose they are; a caller further up does, and adds it.
    """
    try:
        yield
    except (AdapterCorrupt, AdapterIncompatible) as error:
        error.facts.setdefault("student_id", student_id)
        if version is not None:
            error.facts.setdefault("version", version)
        raise
    except PublishConflict as error:
        error.facts.setdefault("student_id", student_id)
        raise
