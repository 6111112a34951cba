"""Writes the proto of `buf.validate` out of protovalidate's wheel: `python protos/write_validate.py FOLDER`.

The wheel has the definitions of its rules as a descriptor alone, while protoc and buf read source. Comments and the
options of other languages are not in it, and nobody misses them.

Knows nothing of AIVO's own protos.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    message_factory,
    text_format,
    timestamp_pb2,
)
from google.protobuf.message import Message
from protovalidate._gen.buf.validate import validate_pb

_FIELD = descriptor_pb2.FieldDescriptorProto
# The last number that a field can have; in source it is written `max`.
_END = 536_870_912
_LABELS = {_FIELD.LABEL_OPTIONAL: "optional", _FIELD.LABEL_REPEATED: "repeated", _FIELD.LABEL_REQUIRED: "required"}


class Source:
    """The source of one proto2 file that extends only the options of descriptors.

    Args:
        file: The file, whose options may use the extensions that it defines.
    """

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._pool = descriptor_pool.DescriptorPool()
        for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
            self._pool.Add(descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
        self._pool.Add(file)

    def text(self) -> str:
        """The whole file."""
        file = self._file
        lines = ['syntax = "proto2";', "", f"package {file.package};", ""]
        lines += [f'import "{name}";' for name in file.dependency]
        for extension in file.extension:
            lines += ["", f"extend {extension.extendee} {{", f"  {self._field(extension)}", "}"]
        for enum in file.enum_type:
            lines += ["", *self._enum(enum)]
        for message in file.message_type:
            lines += ["", *self._message(message)]
        return "\n".join(lines) + "\n"

    def _message(self, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        yield f"message {message.name} {{"
        yield from (f"  {line}" for enum in message.enum_type for line in self._enum(enum))
        yield from (f"  {line}" for nested in message.nested_type for line in self._message(nested))
        for number, oneof in enumerate(message.oneof_decl):
            yield f"  oneof {oneof.name} {{"
            yield from (f"    {self._field(field, oneof=True)}" for field in _of_oneof(message, number))
            yield "  }"
        yield from (f"  {self._field(field)}" for field in message.field if not field.HasField("oneof_index"))
        for reserved in message.reserved_range:
            yield f"  reserved {reserved.start} to {reserved.end - 1};"
        for name in message.reserved_name:
            yield f'  reserved "{name}";'
        for extensions in message.extension_range:
            last = "max" if extensions.end == _END else extensions.end - 1
            yield f"  extensions {extensions.start} to {last};"
        yield "}"

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[str]:
        yield f"enum {enum.name} {{"
        if enum.options.allow_alias:
            yield "  option allow_alias = true;"
        yield from (f"  {value.name} = {value.number};" for value in enum.value)
        for reserved in enum.reserved_range:
            yield f"  reserved {reserved.start} to {reserved.end};"
        for name in enum.reserved_name:
            yield f'  reserved "{name}";'
        yield "}"

    def _field(self, field: descriptor_pb2.FieldDescriptorProto, *, oneof: bool = False) -> str:
        label = "" if oneof else f"{_LABELS[field.label]} "
        kind = field.type_name or _FIELD.Type.Name(field.type).removeprefix("TYPE_").lower()
        options = [f"default = {field.default_value}"] if field.HasField("default_value") else []
        options += self._options(field.options)
        suffix = f" [{', '.join(options)}]" if options else ""
        return f"{label}{kind} {field.name} = {field.number}{suffix};"

    def _options(self, options: Message) -> Iterator[str]:
        kind = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        for option, value in kind.FromString(options.SerializeToString()).ListFields():
            if isinstance(value, Message):
                yield f"({option.full_name}) = {{{text_format.MessageToString(value, as_one_line=True)}}}"
            elif isinstance(value, bool):
                yield f"{option.name} = {str(value).lower()}"


def _of_oneof(message: descriptor_pb2.DescriptorProto, number: int) -> Sequence[descriptor_pb2.FieldDescriptorProto]:
    return [field for field in message.field if field.HasField("oneof_index") and field.oneof_index == number]


def main(folder: Path) -> None:
    """Writes `buf/validate/validate.proto` below a folder."""
    file = descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Source(file).text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
