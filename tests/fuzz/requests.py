"""Requests made from the descriptors: of every method, with values at and beyond the limits, and with broken bytes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_from_bytes

from aivo.brain.v1 import adapter_service_pb2, brain_service_pb2
from aivo.cloning.v1 import cloning_service_pb2, student_model_service_pb2, student_service_pb2
from aivo.safety.v1 import safety_service_pb2
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.json_format import MessageToJson, SerializeToJsonError
from google.protobuf.message import Message
from hypothesis import reject
from hypothesis import strategies as st

# In every text that is not a short valid one. No id and no word of the contract: an error that holds it is an echo.
MARK = "Wolken kuckuck"


def _methods_of(*files: FileDescriptor) -> tuple[MethodDescriptor, ...]:
    services = [service for file in files for service in file.services_by_name.values()]
    return tuple(method for service in services for method in service.methods)


BRAIN_METHODS = _methods_of(brain_service_pb2.DESCRIPTOR, adapter_service_pb2.DESCRIPTOR, safety_service_pb2.DESCRIPTOR)
CLONING_METHODS = _methods_of(
    cloning_service_pb2.DESCRIPTOR, student_model_service_pb2.DESCRIPTOR, student_service_pb2.DESCRIPTOR
)

_TEXTS = st.sampled_from(
    ["", "ada", "5", "K", "math", "clone_1", "visual", "adhd", "\u200b", "ha" * 2000, MARK, f"../{MARK}", f"{MARK}\x00",
     MARK * 400, f"\u200b{MARK}", f"😀{MARK}", f'"{MARK}\\', f"{MARK}\r\n\r\n", f"\u202e{MARK}", f"<|im_start|>{MARK}"]
)  # fmt: skip
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31)]),
    FieldDescriptor.TYPE_UINT32: st.sampled_from([0, 1, 2, 100, 2**32 - 1]),
    FieldDescriptor.TYPE_INT64: st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)]),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([0, 1, 2**64 - 1]),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1, 2, 3, 77, -1]),
}
_NUMBERS = st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e308, float("inf"), float("nan")])
_MOST_FIELDS = 8
_MOST_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RestCall:
    """A call by REST; the path has its query."""

    verb: str
    path: str
    body: bytes


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """A message with some of its fields set, whether or not its rules allow that."""
    message = message_factory.GetMessageClass(kind)()
    for field in draw(st.lists(st.sampled_from(tuple(kind.fields)), max_size=_MOST_FIELDS)) if kind.fields else ():
        _set(draw, message, field, depth)
    return message


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and depth >= _MOST_DEPTH:
        return
    count = draw(st.sampled_from([1, 2, 9])) if field.is_repeated else 1
    for _ in range(count):
        if field.message_type is not None:
            value = draw(messages(field.message_type, depth + 1))
            target = getattr(message, field.name)
            (target.add() if field.is_repeated else target).CopyFrom(value)
        elif field.is_repeated:
            getattr(message, field.name).append(draw(_scalars(field)))
        else:
            setattr(message, field.name, draw(_scalars(field)))


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.type in _INTEGERS:
        return _INTEGERS[field.type]
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_STRING:
        return _TEXTS
    assert field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}, field
    return _NUMBERS


@st.composite
def broken(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes as they are, or with a fault."""
    place = draw(st.integers(0, len(data)))
    fault = draw(st.sampled_from(["none", "none", "cut", "insert", "not text", "replace"]))
    match fault:
        case "cut":
            return data[:place]
        case "insert":
            return data[:place] + draw(st.binary(max_size=4)) + data[place:]
        case "not text":
            return data.replace(MARK.encode()[:3], b"\xff\xfe\xfd")
        case "replace":
            return data[:place] + draw(st.binary(min_size=1, max_size=1)) + data[place + 1 :]
        case _:
            return data


@st.composite
def grpc_calls(draw: st.DrawFn, methods: tuple[MethodDescriptor, ...]) -> tuple[MethodDescriptor, list[bytes]]:
    """A method, and the messages of a call: one as a rule."""
    method = draw(st.sampled_from(methods))
    count = draw(st.sampled_from([1, 1, 1, 1, 1, 1, 0, 2]))
    data = draw(messages(method.input_type)).SerializeToString()
    return method, [draw(broken(data)) for _ in range(count)]


@st.composite
def rest_calls(draw: st.DrawFn, methods: tuple[MethodDescriptor, ...]) -> RestCall:
    """A call of a method that has a route."""
    method = draw(st.sampled_from([method for method in methods if _rule_of(method).WhichOneof("pattern")]))
    rule = _rule_of(method)
    verb = rule.WhichOneof("pattern") or ""
    message = draw(messages(method.input_type))
    path: str = getattr(rule, verb)
    for field in method.input_type.fields:
        path = path.replace(f"{{{field.name}}}", draw(_quoted()) or "x")
    if rule.body:
        try:
            body = MessageToJson(message, preserving_proto_field_name=True).encode()
        except SerializeToJsonError:
            # A time that no calendar has can't be written as JSON.
            reject()
        return RestCall(verb=verb.upper(), path=path, body=draw(broken(body)))
    names = [field.name for field in method.input_type.fields if field.message_type is None]
    query = "&".join(f"{name}={draw(_quoted())}" for name in names if draw(st.booleans()))
    return RestCall(verb=verb.upper(), path=f"{path}?{query}", body=b"")


def _rule_of(method: MethodDescriptor) -> HttpRule:
    # Its type belongs to another version of protobuf's stubs.
    extension: Any = annotations_pb2.http
    rule: HttpRule = method.GetOptions().Extensions[extension]
    return rule


def _quoted() -> st.SearchStrategy[str]:
    """A text or bytes that are none, as a part of a path or a query."""
    as_text: Callable[[str], str] = lambda text: quote(text[:200], safe="")  # noqa: E731
    return st.one_of(_TEXTS.map(as_text), st.binary(max_size=4).map(quote_from_bytes), st.just("%zz"))


def texts_in(message: Message) -> Iterator[str]:
    """Every text of a message, however deep."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else (value,):
            if isinstance(item, Message):
                yield from texts_in(item)
            elif isinstance(item, str):
                yield item
