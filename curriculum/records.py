"""Strict JSON lines: every line is a record, and a fault is told with file, line and field."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class InvalidLine(ValueError):
    """A line of the curriculum can't be used; the message names file, line and field."""


def read_records(path: Path, record: TypeAdapter[T]) -> Iterator[T]:
    """Yields the records of a file.

    Raises:
        InvalidLine: A line is not such a record.
    """
    # As bytes, so that a line that is not UTF-8 is a fault like any other.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield record.validate_json(line)
            except ValidationError as error:
                fault = error.errors(include_url=False, include_input=False)[0]
                field = ".".join(map(str, fault["loc"])) or "record"
                raise InvalidLine(f"{path}:{number}: {field}: {fault['msg']}") from None


def require_unique(ids: Iterable[str], folder: Path) -> None:
    """Returns if no id occurs twice.

    Raises:
        InvalidLine: One does.
    """
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise InvalidLine(f"{folder}: id: {repeated[0]} occurs twice")
