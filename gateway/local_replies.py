"""What the gateway itself refuses, as JSON for browsers and as a gRPC status for gRPC callers.

Both are the error that a server would send: a `google.rpc.Status` with an `ErrorInfo`. By itself Envoy answers gRPC
callers without details, and with UNKNOWN or INTERNAL for what was wrong with their request.
"""

from base64 import b64encode
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

Json = dict[str, object]

_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
# Envoy's name for what it would have answered.
_ENVOYS_TEXT = "%LOCAL_REPLY_BODY%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error of the gateway.

    Attributes:
        http_code: By which Envoy tells it.
        grpc_code: Number of the gRPC code.
        reason: Of `aivo.error.v1.Reason`.
        message: For gRPC callers, and for all unless `says_more`.
        says_more: Whether Envoy's own text tells JSON callers more.
    """

    http_code: int
    grpc_code: int
    reason: str
    message: str
    says_more: bool = False


# What callers.lua refuses, in its words.
CALLERS_REFUSALS = (
    Refusal(
        http_code=403, grpc_code=7, reason="HOST_NOT_ALLOWED", message="the Host header is not one of ALLOWED_HOSTS"
    ),
    Refusal(
        http_code=403,
        grpc_code=7,
        reason="ORIGIN_NOT_ALLOWED",
        message="the Origin header is not one of CORS_ALLOW_ORIGINS",
    ),
)
ENVOYS_REFUSALS = (
    Refusal(http_code=400, grpc_code=3, reason="MALFORMED_REQUEST", message="the request is malformed", says_more=True),
    Refusal(http_code=404, grpc_code=5, reason="ROUTE_NOT_FOUND", message="there is no such method and path"),
    Refusal(http_code=408, grpc_code=4, reason="DEADLINE_EXCEEDED", message="the request did not arrive in time"),
    Refusal(http_code=413, grpc_code=3, reason="REQUEST_TOO_LARGE", message="the body is too large"),
    Refusal(http_code=431, grpc_code=3, reason="REQUEST_TOO_LARGE", message="the headers are too large"),
    Refusal(
        http_code=503,
        grpc_code=14,
        reason="SERVER_UNREACHABLE",
        message="the server behind the gateway does not answer",
    ),
    Refusal(http_code=504, grpc_code=4, reason="DEADLINE_EXCEEDED", message="the server did not answer in time"),
)


def local_replies() -> Json:
    """Returns Envoy's `local_reply_config`."""
    mappers: list[Json] = [
        *(_for_grpc(refusal, _was_refused(refusal.reason)) for refusal in CALLERS_REFUSALS),
        *(_for_grpc(_as_grpc_has_it(refusal), _has_code(refusal.http_code)) for refusal in ENVOYS_REFUSALS),
        {"filter": _is_grpc(), "body_format_override": {"text_format_source": {"inline_string": _ENVOYS_TEXT}}},
        {
            "filter": _was_refused(None),
            "body_format_override": _body(
                "%DYNAMIC_METADATA(aivo.refusal:code)%", "%DYNAMIC_METADATA(aivo.refusal:reason)%", _ENVOYS_TEXT
            ),
        },
        *map(_for_json, ENVOYS_REFUSALS),
    ]
    return {"mappers": mappers, "body_format": _body(13, "INTERNAL", _ENVOYS_TEXT)}


def _as_grpc_has_it(refusal: Refusal) -> Refusal:
    if refusal.http_code != 404:
        return refusal
    # Clients know by this code that a server lacks a method.
    return Refusal(http_code=404, grpc_code=12, reason="METHOD_NOT_FOUND", message="the server has no such method")


def _for_grpc(refusal: Refusal, reply_filter: Json) -> Json:
    return {
        "filter": {"and_filter": {"filters": [_is_grpc(), reply_filter]}},
        "headers_to_add": [
            {"header": {"key": "grpc-status", "value": str(refusal.grpc_code)}},
            {"header": {"key": "grpc-status-details-bin", "value": b64encode(_status(refusal)).decode()}},
        ],
        "body_format_override": {"text_format_source": {"inline_string": refusal.message}},
    }


def _for_json(refusal: Refusal) -> Json:
    message = _ENVOYS_TEXT if refusal.says_more else refusal.message
    return {
        "filter": _has_code(refusal.http_code),
        "body_format_override": _body(refusal.grpc_code, refusal.reason, message),
    }


def _status(refusal: Refusal) -> bytes:
    info = Any()
    info.Pack(ErrorInfo(reason=refusal.reason, domain="aivo"))
    return Status(code=refusal.grpc_code, message=refusal.message, details=[info]).SerializeToString()


def _body(code: int | str, reason: str, message: str) -> Json:
    return {
        "json_format": {
            "code": code,
            "message": message,
            "details": [{"@type": _ERROR_INFO, "reason": reason, "domain": "aivo"}],
        }
    }


def _is_grpc() -> Json:
    """Whether the caller speaks gRPC; a REST call has become gRPC, and keeps its path in another header."""
    content_type = {"name": "content-type", "string_match": {"safe_regex": {"regex": "application/grpc([+;].*)?"}}}
    original_path = {"name": "x-envoy-original-path", "present_match": False}
    return {
        "and_filter": {
            "filters": [{"header_filter": {"header": content_type}}, {"header_filter": {"header": original_path}}]
        }
    }


def _has_code(http_code: int) -> Json:
    return {"status_code_filter": {"comparison": {"value": {"default_value": http_code, "runtime_key": "none"}}}}


def _was_refused(reason: str | None) -> Json:
    """Whether callers.lua refused the request, for this reason or for any."""
    value = {"present_match": True} if reason is None else {"string_match": {"exact": reason}}
    matcher = {"filter": "aivo.refusal", "path": [{"key": "reason"}], "value": value}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}
