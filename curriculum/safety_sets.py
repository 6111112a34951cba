"""Public sets of harmful and harmless texts: OpenAI's moderation set, and SimpleSafetyTests. Read, never copied."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from curriculum.records import InvalidLine, read_records
from mesh.lm.guarding import HarmCategory

_REQUEST, _HARM_AREA = "prompts_final", "harm_area"


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class ModeratedText:
    """A text that people labelled.

    Attributes:
        text: The text; up to a few thousand characters.
        categories: What is harmful in it; empty if nothing is.
    """

    text: str
    categories: frozenset[HarmCategory]


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class HarmfulRequest:
    """A request that must not pass, and the area of harm as the set names it."""

    text: str
    area: str


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class _ModerationRow:
    """A row of the set: 1 for what people found in a text. An absent label was not asked for, and counts as 0."""

    prompt: str
    S: int = 0
    H: int = 0
    V: int = 0
    HR: int = 0
    SH: int = 0
    S3: int = 0
    H2: int = 0
    V2: int = 0

    @property
    def categories(self) -> frozenset[HarmCategory]:
        """Harassment is hate here: both are about how people treat each other."""
        labels = {
            HarmCategory.SELF_HARM: self.SH,
            HarmCategory.VIOLENCE: self.V or self.V2,
            HarmCategory.SEXUAL: self.S or self.S3,
            HarmCategory.HATE: self.H or self.H2 or self.HR,
        }
        return frozenset(category for category, is_present in labels.items() if is_present)


_ROW = TypeAdapter(_ModerationRow)


def read_moderated(path: Path) -> Iterator[ModeratedText]:
    """Yields the texts of OpenAI's moderation set, JSON lines.

    Markov et al., "A Holistic Approach to Undesired Content Detection in the Real World" (2023).

    Raises:
        InvalidLine: A line is not such a row; names file, line and field.
    """
    for row in read_records(path, _ROW):
        yield ModeratedText(text=row.prompt, categories=row.categories)


def read_harmful_requests(path: Path) -> Iterator[HarmfulRequest]:
    """Yields the requests of SimpleSafetyTests (Vidgen et al., 2023), CSV.

    Raises:
        InvalidLine: The file lacks a column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for column in (_REQUEST, _HARM_AREA):
            if column not in (rows.fieldnames or ()):
                raise InvalidLine(f"{path}:1: {column}: there is no such column")
        for row in rows:
            yield HarmfulRequest(text=row[_REQUEST], area=row[_HARM_AREA])
