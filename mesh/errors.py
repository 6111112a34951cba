"""The exception tree: every fault a caller can act on, as a reason and its facts.

A class here answers "what went wrong"; which wire code that is, `mesh.rpc.errors` says. A reason is the name of a
value of `aivo.error.v1.Reason` without its prefix; a test holds the two equal. Messages and facts never hold a
student's words.

Knows nothing of gRPC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Fact = str | int | float


class AivoError(Exception):
    """A fault with a reason that a caller can act on.

    Attributes:
        reason: The machine-readable reason, upper snake case.
        facts: What the caller needs to act, such as ids and limits.
    """

    reason: ClassVar[str]

    def __init__(self, message: str, **facts: Fact) -> None:
        super().__init__(message)
        self.facts: dict[str, Fact] = facts

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not pickle by default, and these cross Ray's process border.
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
    """One or more fields are missing, malformed or out of range; all faults are told at once."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations: tuple[Violation, ...] = tuple(violations)


class MalformedRequest(InvalidArgument):
    """The gateway could not read the request."""

    reason = "MALFORMED_REQUEST"


class RequestTooLarge(InvalidArgument):
    """The gateway does not let in as much."""

    reason = "REQUEST_TOO_LARGE"


# What is not there.


class NotFound(AivoError):
    """The thing named does not exist."""


class CloneNotFound(NotFound):
    """No clone has this id."""

    reason = "CLONE_NOT_FOUND"

    def __init__(self, *, clone_id: str) -> None:
        super().__init__(f"no clone has the id {clone_id}", clone_id=clone_id)


class RouteNotFound(NotFound):
    """The gateway has no route for the method and path."""

    reason = "ROUTE_NOT_FOUND"


class StudentModelNotFound(NotFound):
    """The student has no active adapter, and the caller required one."""

    reason = "STUDENT_MODEL_NOT_FOUND"

    def __init__(self, *, student_id: str) -> None:
        super().__init__(f"student {student_id} has no active model", student_id=student_id)


class ModelVersionNotFound(NotFound):
    """The student has no adapter with this version."""

    reason = "MODEL_VERSION_NOT_FOUND"

    def __init__(self, *, student_id: str, version: int) -> None:
        super().__init__(f"student {student_id} has no model version {version}", student_id=student_id, version=version)


# What stands in the way.


class AlreadyExists(AivoError):
    """The name asked for is taken by something else."""


class RequestIdReused(AlreadyExists):
    """The `request_id` belongs to an earlier request with another body."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, *, request_id: str, clone_id: str) -> None:
        super().__init__(
            f"request_id {request_id} was used with another body", request_id=request_id, clone_id=clone_id
        )


class Aborted(AivoError):
    """Another run holds what this one needs; try again once it ended."""


class CloneAlreadyRunning(Aborted):
    """The student's earlier clone has not ended."""

    reason = "CLONE_ALREADY_RUNNING"

    def __init__(self, *, student_id: str, clone_id: str) -> None:
        super().__init__(
            f"clone {clone_id} of student {student_id} is still running", student_id=student_id, clone_id=clone_id
        )


class PublishConflict(Aborted):
    """Another publisher took the version or moved the pointer first."""

    reason = "PUBLISH_CONFLICT"


class FailedPrecondition(AivoError):
    """The data at rest does not allow it; the same call cannot succeed until that changes."""


class AdapterIncompatible(FailedPrecondition):
    """The adapter is sound but does not fit this base model or this server's limits."""

    reason = "ADAPTER_INCOMPATIBLE"


class NoTrainableExamples(FailedPrecondition):
    """The baseline leaves too few examples to train and to hold out."""

    reason = "NO_TRAINABLE_EXAMPLES"


class TrainingDiverged(FailedPrecondition):
    """Training produced a loss or weights that are not finite."""

    reason = "TRAINING_DIVERGED"


class GateNotPassed(FailedPrecondition):
    """The new version is not better than what it would replace, which stays; the facts are what was measured."""

    reason = "GATE_NOT_PASSED"


class CloneFinal(FailedPrecondition):
    """The clone has ended, or its version is committed, so it can't be cancelled any more."""

    reason = "CLONE_FINAL"

    def __init__(self, *, clone_id: str, state: str) -> None:
        super().__init__(f"clone {clone_id} is {state} and can't be cancelled any more", clone_id=clone_id, state=state)


class ConsentRequired(FailedPrecondition):
    """No consent was given where one is wanted, or the one given has expired."""

    reason = "CONSENT_REQUIRED"

    def __init__(self, *, student_id: str) -> None:
        super().__init__(
            f"the data of student {student_id} wants a consent that has not expired", student_id=student_id
        )


class DataLoss(AivoError):
    """Stored bytes are not what was written."""


class AdapterCorrupt(DataLoss):
    """The adapter's bytes fail their checks: hash, header, shapes, dtype or non-finite values."""

    reason = "ADAPTER_CORRUPT"


# What may pass by itself.


class ResourceExhausted(AivoError):
    """A limit is reached for now."""


class QueueFull(ResourceExhausted):
    """The queue holds all it may, or all it may of the one who asks."""

    reason = "QUEUE_FULL"

    def __init__(self, *, limit: int, retry_seconds: float, of_one_student: bool = False) -> None:
        full = f"the queue holds {limit} and is full"
        many = f"one student may have {limit} calls at a time"
        super().__init__(many if of_one_student else full, limit=limit)
        self.retry_seconds = retry_seconds


class Unavailable(AivoError):
    """A part is not there at the moment; the same call may succeed later."""


class ModelNotLoaded(Unavailable):
    """The base model is still loading, or could not be loaded."""

    reason = "MODEL_NOT_LOADED"


class BaseModelUnavailable(ModelNotLoaded):
    """The base model's files can't be had or can't be read; the message says why."""


class BaseModelOutOfMemory(BaseModelUnavailable):
    """The base model does not fit the memory of the device."""


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


class BrainUnavailable(Unavailable):
    """The brain server does not answer."""

    reason = "BRAIN_UNAVAILABLE"


class TrainerUnavailable(Unavailable):
    """The training actor is not there or died."""

    reason = "TRAINER_UNAVAILABLE"


class DeadlineExceeded(AivoError):
    """The caller's deadline passed; the work was stopped."""

    reason = "DEADLINE_EXCEEDED"

    def __init__(self) -> None:
        super().__init__("the deadline passed before the work was done")
