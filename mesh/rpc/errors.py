"""Converts `AivoError` to gRPC statuses and back: the only place that knows gRPC codes and `google.rpc` details.

The rich error model is that of AIP-193: a `google.rpc.Status` in the trailer `grpc-status-details-bin`, whose details
hold an `ErrorInfo` with a reason of `aivo.error.v1.Reason`, a `BadRequest` if fields are at fault, and a `RetryInfo` if
the server knows when to try again.
"""

from collections.abc import Iterator, Mapping, Sequence

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from mesh.errors import (
    Aborted,
    AivoError,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    Fact,
    FailedPrecondition,
    InvalidArgument,
    InvalidField,
    MethodNotFound,
    NotFound,
    PermissionDenied,
    QueueFull,
    ResourceExhausted,
    ServerUnreachable,
    Unavailable,
    Violation,
)

DOMAIN = "aivo"
DETAILS_KEY = "grpc-status-details-bin"

# gRPC and proxies refuse trailers of more than 8 KiB. The message is in them twice, once percent-encoded. These bounds
# keep messages in ASCII below that, with room for the facts.
MAX_MESSAGE_CHARS = 1000
MAX_VIOLATIONS_BYTES = 3000

_CODES: Mapping[type[AivoError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    MethodNotFound: grpc.StatusCode.UNIMPLEMENTED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    Aborted: grpc.StatusCode.ABORTED,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CODE_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class RemoteError(AivoError):
    """A call failed for a reason that callers can't act on: a bug in the server, a broken connection, a foreign peer.

    A server that does not handle it answers as for a bug of its own.

    Attributes:
        code: What the call ended with.
        details: What the peer said. Not part of the message, as it may hold what must not be logged.
    """

    reason = "INTERNAL"

    def __init__(self, details: str, *, code: grpc.StatusCode) -> None:
        super().__init__(f"the call failed with {code.name}")
        self.code = code
        self.details = details


def code_of(error: BaseException) -> grpc.StatusCode:
    """Returns the code of an error; INTERNAL for what callers can't act on."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), grpc.StatusCode.INTERNAL)


def status_of(error: BaseException, call_id: str) -> status_pb2.Status:
    """Returns the status that a caller gets for an error.

    An `AivoError` has its reason, message and facts. Anything else is a bug: the caller gets the id under which the
    server logged it, and nothing else, as the exception's message may hold a student's words.
    """
    code = code_of(error)
    if not isinstance(error, AivoError) or code is grpc.StatusCode.INTERNAL:
        message = f"the server failed; its log says why under call id {call_id}"
        return _status(code, message, [_error_info(RemoteError.reason, {"call_id": call_id})])
    message = str(error)
    details: list[Message] = [_error_info(error.reason, error.facts)]
    if isinstance(error, InvalidField):
        message, bad_request = _bad_request(error.violations)
        details.append(bad_request)
    if isinstance(error, QueueFull):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_seconds * 1e9))
        details.append(retry)
    return _status(code, message, details)


def error_of(error: grpc.aio.AioRpcError, *, unreachable: type[Unavailable] = ServerUnreachable) -> AivoError:
    """Returns the error that a server raised, from the failed call.

    Args:
        error: How the call failed.
        unreachable: What it means for the caller that the server does not answer at all, such as `BrainUnavailable`.

    Returns:
        An error of the class that has the reason, with the facts as strings; `DeadlineExceeded` also if the deadline
        passed on the way; `unreachable` if nobody answered; `RemoteError` for all else.
    """
    status = _status_in(error)
    if status is not None:
        return error_from(status)
    code, details = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded()
    if code is grpc.StatusCode.UNAVAILABLE:
        return unreachable(details)
    return RemoteError(details, code=code)


def error_from(status: status_pb2.Status) -> AivoError:
    """Returns the error that a status stands for, as `error_of` does."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad_request, retry):
            detail.Unpack(message)
    if info.domain != DOMAIN or info.reason not in _CLASS_BY_REASON:
        code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
        return _remote(status.message, code=code, facts=info.metadata)
    error = revive(info.reason, status.message, info.metadata)
    match error:
        case InvalidField():
            error.violations = tuple(Violation(v.field, v.description) for v in bad_request.field_violations)
        case QueueFull():
            error.retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    return error


def revive(reason: str, message: str, facts: Mapping[str, Fact]) -> AivoError:
    """Returns the error that was stored as these, such as why a clone failed; `RemoteError` for an unknown reason."""
    kind = _CLASS_BY_REASON.get(reason)
    if kind is None:
        return _remote(message, code=grpc.StatusCode.INTERNAL, facts=facts)
    # Without the class's own constructor, whose arguments were not stored.
    error = kind.__new__(kind)
    AivoError.__init__(error, message)
    error.facts = dict(facts)
    match error:
        case InvalidField():
            error.violations = ()
        case QueueFull():
            error.retry_seconds = 0
    return error


def _remote(details: str, *, code: grpc.StatusCode, facts: Mapping[str, Fact]) -> RemoteError:
    error = RemoteError(details, code=code)
    error.facts = dict(facts)
    return error


def _error_classes(root: type[AivoError]) -> Iterator[type[AivoError]]:
    for kind in root.__subclasses__():
        if "reason" in vars(kind):
            yield kind
        yield from _error_classes(kind)


_CLASS_BY_REASON: Mapping[str, type[AivoError]] = {
    kind.reason: kind for kind in _error_classes(AivoError) if kind is not RemoteError
}


def _status(code: grpc.StatusCode, message: str, details: Sequence[Message]) -> status_pb2.Status:
    if len(message) > MAX_MESSAGE_CHARS:
        message = f"{message[: MAX_MESSAGE_CHARS - 1]}…"
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _error_info(reason: str, facts: Mapping[str, Fact]) -> error_details_pb2.ErrorInfo:
    metadata = {name: str(fact) for name, fact in facts.items()}
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _bad_request(violations: Sequence[Violation]) -> tuple[str, error_details_pb2.BadRequest]:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        added = bad_request.field_violations.add(field=violation.field, description=violation.description)
        if bad_request.ByteSize() > MAX_VIOLATIONS_BYTES:
            bad_request.field_violations.remove(added)
            break
    count = len(bad_request.field_violations)
    message = "; ".join(f"{v.field}: {v.description}" for v in violations[:count])
    if count < len(violations):
        message = f"{len(violations)} violations, of which these are the first {count}: {message}"
    return message, bad_request


def _status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    packed = (error.trailing_metadata() or {}).get(DETAILS_KEY)
    if not isinstance(packed, bytes):
        return None
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
