"""Checks requests by the rules that their protos state (`buf.validate`), and names all violations at once.

A description says what would be accepted and never repeats the value, which may be a student's words. A rule about
several fields of a message names the field at fault in its id: `history.too_long` is about `history`.

Knows no message in particular. See https://protovalidate.com.
"""

from collections.abc import Iterator

from buf.validate import validate_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from protovalidate import Validator
from protovalidate import Violation as RuleViolation

from mesh.errors import InvalidField, Violation

_validator = Validator()


def check(request: Message) -> None:
    """Returns if the request follows all rules of its proto.

    Raises:
        InvalidField: Names every violation. If lists are too long, it names only those: checking the rest of a huge
            request would delay all other calls.
    """
    if violations := list(_long_lists(request, "")) or list(map(_violation, _validator.collect_violations(request))):
        raise InvalidField(violations)


def prepare(service: str) -> None:
    """Compiles the rules of a service's requests before its first call: up to 0.1 s per message.

    Args:
        service: Full name, such as `aivo.brain.v1.BrainService`.
    """
    for method in descriptor_pool.Default().FindServiceByName(service).methods:
        _validator.collect_violations(message_factory.GetMessageClass(method.input_type)())


def _long_lists(message: Message, path: str) -> Iterator[Violation]:
    for field, value in message.ListFields():
        if field.is_repeated:
            limit = _rules_of(field).repeated.max_items
            if limit and len(value) > limit:
                yield Violation(f"{path}{field.name}", f"must contain no more than {limit} items")
        elif isinstance(value, Message):
            yield from _long_lists(value, f"{path}{field.name}.")


def _rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def _violation(broken: RuleViolation) -> Violation:
    proto = broken.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        index = element.subscript
        path += f".{element.field_name}"
        if index and index.field == "index":
            path += f"[{index.value}]"
    path = path.removeprefix(".")
    if not proto.rule:
        # A rule of a message, whose id begins with the path of the field at fault.
        path = f"{path}.{proto.rule_id.rpartition('.')[0]}".removeprefix(".")
    return Violation(path, proto.message)
