"""Writes the API reference from the protos: `python docs/api.py DESCRIPTORS TARGET.md`.

The descriptors are a `FileDescriptorSet` with source info and imports, as `buf build` writes it. The set also holds the
definitions of the options (routes, field behavior, limits), so that no generated code is needed to read them.

Knows nothing of what the services do.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

PACKAGE = "aivo."
HEAD = """# API reference

<!-- Written by `make docs` from the comments and options in protos/. Do not edit. -->

Every RPC can be called over gRPC, on a server's own port or through the gateway. Those with a route can be called with
JSON as well; [the gateway's page](../gateway/README.md) has a curl line for each, and what holds for all of them:
limits of time and size, errors, streams. A field of a JSON body has the name given here. [The glossary](glossary.md)
explains the words.
"""
# Rules of buf.validate in words; what is not here is written as it is named.
LIMITS = {
    "max_len": "at most {} characters",
    "min_len": "at least {} characters",
    "max_bytes": "at most {} bytes",
    "max_items": "at most {} items",
    "min_items": "at least {} items",
    "gt": "above {}",
    "gte": "at least {}",
    "lt": "below {}",
    "lte": "at most {}",
    "in": "one of {}",
}
# Numbers in the paths of `SourceCodeInfo`: the fields of FileDescriptorProto, DescriptorProto and so on.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_CEL_RULE = "buf.validate.Rule"
_NESTED, _NESTED_ENUM, _FIELD, _VALUE, _METHOD, _ONEOF = 3, 4, 2, 2, 2, 8


class Options:
    """The options of elements, with the extensions that the descriptors define."""

    def __init__(self, files: Sequence[descriptor_pb2.FileDescriptorProto]) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        # In the order of the set, in which a file comes after those that it imports.
        for file in files:
            self._pool.Add(file)

    def of(self, options: Message) -> dict[str, object]:
        """Values by the full name of the extension, or by the name of the option."""
        kind = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        known = kind.FromString(options.SerializeToString())
        return {field.full_name if field.is_extension else field.name: value for field, value in known.ListFields()}


class File:
    """One proto file: its elements, and their comments by path."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self.proto = file
        self._comments = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }

    def comment(self, path: Sequence[int], indent: str = "") -> str:
        """The comment before an element, each line indented; ends without a line break."""
        text = self._comments.get(tuple(path), "").strip("\n")
        lines = [line.removeprefix(" ") for line in text.splitlines()]
        return "\n".join(f"{indent}{line}".rstrip() for line in lines).removeprefix(indent)

    def messages(self) -> Iterator[tuple[str, tuple[int, ...], descriptor_pb2.DescriptorProto]]:
        """Name, path and descriptor of each message, those in messages too."""
        for index, message in enumerate(self.proto.message_type):
            yield from self._messages("", (_MESSAGE, index), message)

    def _messages(
        self, scope: str, path: tuple[int, ...], message: descriptor_pb2.DescriptorProto
    ) -> Iterator[tuple[str, tuple[int, ...], descriptor_pb2.DescriptorProto]]:
        if message.options.map_entry:
            return
        yield scope + message.name, path, message
        for index, inner in enumerate(message.nested_type):
            yield from self._messages(f"{scope}{message.name}.", (*path, _NESTED, index), inner)

    def enums(self) -> Iterator[tuple[str, tuple[int, ...], descriptor_pb2.EnumDescriptorProto]]:
        """Name, path and descriptor of each enum, those in messages too."""
        for index, enum in enumerate(self.proto.enum_type):
            yield enum.name, (_ENUM, index), enum
        for name, path, message in self.messages():
            for index, enum in enumerate(message.enum_type):
                yield f"{name}.{enum.name}", (*path, _NESTED_ENUM, index), enum


def reference(descriptors: descriptor_pb2.FileDescriptorSet) -> str:
    """Returns the whole page."""
    files = [File(file) for file in descriptors.file if file.package.startswith(PACKAGE)]
    options = Options(descriptors.file)
    # What anyone may call comes first.
    files.sort(key=lambda file: not _has_routes(file, options))
    sections = [HEAD, _overview(files, options)]
    for file in files:
        sections += _services(file, options)
    for package in sorted({file.proto.package for file in files}):
        inside = [file for file in files if file.proto.package == package]
        sections.append(f"## Types of {package}\n")
        for file in inside:
            sections += _messages(file, options)
        for file in inside:
            sections += _enums(file)
    return "\n".join(sections).rstrip() + "\n"


def _overview(files: Sequence[File], options: Options) -> str:
    rows = ["| service | RPC | route |", "| --- | --- | --- |"]
    for file in files:
        for service in file.proto.service:
            for method in service.method:
                route = _route(options.of(method.options)) or ""
                link = f"[{method.name}](#{file.proto.package}.{service.name}.{method.name})"
                rows.append(f"| {service.name} | {link} | {route} |")
    return "\n".join(rows) + "\n"


def _services(file: File, options: Options) -> Iterator[str]:
    for index, service in enumerate(file.proto.service):
        path = (_SERVICE, index)
        name = f"{file.proto.package}.{service.name}"
        yield f"## {name}\n"
        yield file.comment(path) + "\n"
        for number, method in enumerate(service.method):
            yield _heading(f"{service.name}.{method.name}", f"{name}.{method.name}")
            request, response = _link(method.input_type), _link(method.output_type)
            stream = "a stream of " if method.server_streaming else ""
            route = _route(options.of(method.options))
            yield f"{request} → {stream}{response}" + (f", {route}" if route else ", gRPC only") + "\n"
            yield file.comment((*path, _METHOD, number)) + "\n"


def _messages(file: File, options: Options) -> Iterator[str]:
    for name, path, message in file.messages():
        yield _heading(name, f"{file.proto.package}.{name}")
        yield file.comment(path) + "\n"
        yield from _rules_between_fields(options.of(message.options))
        maps = {inner.name: inner for inner in message.nested_type if inner.options.map_entry}
        for index, field in enumerate(message.field):
            facts = [_type(field, maps), *_presence(message, field), *_rules(options.of(field.options))]
            facts = list(dict.fromkeys(facts))
            comment = file.comment((*path, _FIELD, index), indent="  ")
            yield f"- `{field.name}` ({', '.join(facts)}): {comment}"
        if message.field:
            yield ""


def _enums(file: File) -> Iterator[str]:
    for name, path, enum in file.enums():
        yield _heading(name, f"{file.proto.package}.{name}")
        yield file.comment(path) + "\n"
        for index, value in enumerate(enum.value):
            yield f"- `{value.name}`: {file.comment((*path, _VALUE, index), indent='  ')}"
        yield ""


def _has_routes(file: File, options: Options) -> bool:
    return any(_route(options.of(method.options)) for service in file.proto.service for method in service.method)


def _route(options: Mapping[str, object]) -> str | None:
    rule = options.get("google.api.http")
    if not isinstance(rule, Message):
        return None
    for field, value in rule.ListFields():
        if field.name in {"get", "post", "put", "patch", "delete"}:
            return f"`{field.name.upper()} {value}`"
    return None


def _type(field: descriptor_pb2.FieldDescriptorProto, maps: Mapping[str, descriptor_pb2.DescriptorProto]) -> str:
    if entry := maps.get(field.type_name.rsplit(".", 1)[-1]):
        key, value = (_type(part, {}) for part in entry.field)
        return f"map of {key} to {value}"
    if field.type_name:
        name = _link(field.type_name)
    else:
        name = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.label == field.LABEL_REPEATED else name


def _presence(message: descriptor_pb2.DescriptorProto, field: descriptor_pb2.FieldDescriptorProto) -> Iterator[str]:
    if field.proto3_optional:
        yield "may be absent"
    elif field.HasField("oneof_index"):
        yield f"one of `{message.oneof_decl[field.oneof_index].name}`"


def _rules(options: Mapping[str, object]) -> Iterator[str]:
    behaviors = options.get("google.api.field_behavior", ())
    if isinstance(behaviors, Sequence):
        # Values of google.api.FieldBehavior; what is not required is the rule and is not said.
        names = {2: "required", 3: "output only", 4: "input only", 5: "immutable"}
        yield from (names[behavior] for behavior in behaviors if behavior in names)
    for name, value in options.items():
        if name.startswith("buf.validate.") and isinstance(value, Message):
            yield from (_limit(names, limit) for names, limit in _leaves(value, ()))


def _rules_between_fields(options: Mapping[str, object]) -> Iterator[str]:
    """The rules about several fields of a message. Their ids begin with the path of the field that they are about."""
    for value in options.values():
        if isinstance(value, Message) and value.DESCRIPTOR.full_name == "buf.validate.MessageRules":
            for field, rules in value.ListFields():
                if field.name == "cel":
                    sentences = [f"`{rule.id.rpartition('.')[0]}` {rule.message}." for rule in rules]
                    yield " ".join(sentences) + "\n"


def _leaves(rules: Message, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    # By their numbers, upper bounds would come before lower ones.
    for field, value in sorted(rules.ListFields(), key=lambda pair: pair[0].name in {"lt", "lte"}):
        if _is_rules(field):
            for part in value if field.is_repeated else (value,):
                # A rule in CEL says itself, in words, what it wants.
                is_cel = part.DESCRIPTOR.full_name == _CEL_RULE
                yield from [((_CEL_RULE,), part.message)] if is_cel else _leaves(part, (*names, field.name))
        else:
            yield (*names, field.name), value


def _is_rules(field: FieldDescriptor) -> bool:
    message = field.message_type
    return message is not None and message.full_name.startswith("buf.validate.")


def _limit(names: Sequence[str], limit: object) -> str:
    *scope, name = names
    if name == _CEL_RULE:
        return str(limit)
    values = limit if isinstance(limit, Sequence) and not isinstance(limit, str | bytes) else [limit]
    text = LIMITS.get(name, name.replace("_", " ") + ("" if limit is True else " {}"))
    text = text.format(", ".join(f"`{_spelled(value)}`" for value in values))
    # The kinds of values, as in `string.max_len`, repeat the type; these say what of a field is meant.
    return " ".join([f"{part}:" for part in scope if part in {"items", "keys", "values"}] + [text])


def _spelled(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _link(type_name: str) -> str:
    name = type_name.removeprefix(".")
    if not name.startswith(PACKAGE):
        return f"`{name}`"
    # Package names are lower case, names of types are not.
    short = ".".join(part for part in name.split(".") if part[:1].isupper())
    return f"[{short}](#{name})"


def _heading(text: str, anchor: str) -> str:
    # Two packages may have a type of one name, so the anchor is the full name.
    return f'### <a id="{anchor}"></a>{text}\n'


def main() -> None:
    """Reads the descriptors and writes the page that the command line names."""
    source, target = map(Path, sys.argv[1:])
    target.write_text(reference(descriptor_pb2.FileDescriptorSet.FromString(source.read_bytes())))


if __name__ == "__main__":
    main()
