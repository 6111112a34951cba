"""What the `aivo` command shows: replies, clones and their progress, on a terminal or as JSON for programs.

Knows nothing of calls.
"""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias, TypeVar

from aivo.brain.v1.brain_service_pb2 import (
    FALLBACK_REASON_SAFETY,
    AssessResponse,
    FallbackReason,
    Finished,
    GenerateResponse,
)
from aivo.brain.v1.brain_service_pb2 import GetHealthResponse as BrainHealth
from aivo.cloning.v1.cloning_service_pb2 import GetHealthResponse as CloningHealth
from aivo.cloning.v1.cloning_service_pb2 import ListClonesResponse, WatchCloneResponse, WatchClonesResponse
from aivo.cloning.v1.student_model_service_pb2 import ListOutdatedStudentsResponse, ListStudentModelsResponse
from aivo.cloning.v1.student_service_pb2 import Residue, ResiduePlace
from google.protobuf.json_format import MessageToDict, MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreachableHealth:
    """The health of a server that does not answer.

    Attributes:
        status: In place of a server's own word.
        reason: Why it does not, for people.
    """

    status: str = "unreachable"
    reason: str


ChangeT = TypeVar("ChangeT", WatchCloneResponse, WatchClonesResponse)
Health: TypeAlias = BrainHealth | CloningHealth | UnreachableHealth


def print_json(console: Console, message: Message, *, indent: int | None = 2) -> None:
    """Prints the JSON that the REST surface gives for a message; on one line without an indent."""
    text = MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=indent
    )
    # Not with the console's own method, which would wrap and colour the text.
    print(text, file=console.file, flush=True)


def print_healths(console: Console, healths: Mapping[str, Health]) -> None:
    """Prints one JSON object: by the name of each server its health, as REST gives it if the server answers."""
    document = {
        name: asdict(health)
        if isinstance(health, UnreachableHealth)
        else MessageToDict(health, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for name, health in healths.items()
    }
    print(json.dumps(document, indent=2), file=console.file, flush=True)


def health_line(health: Health) -> str:
    """Returns a server's health in words."""
    if isinstance(health, UnreachableHealth):
        return f"no answer ({health.reason})"
    return f"{health.status}{health.reason and ': '}{health.reason}"


def author_of(reply: GenerateResponse | Finished | AssessResponse) -> str:
    """Returns who answered, or wrote the feedback: the student's model and its version, or the base model and why."""
    if reply.HasField("adapter"):
        adapter = reply.adapter
        return f"{adapter.student_id}'s model, version {adapter.version} ({adapter.sha256[:12]}), on {reply.model}"
    if reply.fallback == FALLBACK_REASON_SAFETY:
        return "written by people, for safety"
    why = FallbackReason.Name(reply.fallback).removeprefix("FALLBACK_REASON_").lower().replace("_", " ")
    return f"base model {reply.model} ({why})"


async def show_progress(changes: AsyncIterator[ChangeT], console: Console) -> list[ChangeT]:
    """Shows a progress bar for each clone until the changes end; returns the last change of each clone."""
    bars = Progress(
        TextColumn("{task.fields[status]:<20}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    last_changes: dict[str, ChangeT] = {}
    with bars:
        async for change in changes:
            last_changes[change.clone_id] = change
            if change.clone_id not in tasks:
                tasks[change.clone_id] = bars.add_task("", total=100, status="")
            description = change.message
            if isinstance(change, WatchClonesResponse):
                description = f"{change.student_id}: {description}"
            bars.update(
                tasks[change.clone_id], completed=change.progress, description=description, status=change.status
            )
    return list(last_changes.values())


def clones_table(page: ListClonesResponse) -> Table:
    """Returns a table with a row per clone."""
    table = Table("clone", "student", "status", "progress", "updated")
    for clone in page.clones:
        updated = clone.update_time.ToJsonString() if clone.HasField("update_time") else ""
        table.add_row(*map(Text, (clone.clone_id, clone.student_id, clone.status, f"{clone.progress} %", updated)))
    return table


def models_table(models: ListStudentModelsResponse) -> Table:
    """Returns a table with a row per version."""
    table = Table("version", "active", "sha256", "examples", "held-out loss: base", "adapter", "base model")
    for model in models.models:
        metrics = model.metrics
        cells = (
            str(model.version),
            "yes" if model.active else "",
            model.sha256[:12],
            f"{model.examples.train} + {model.examples.heldout} held out",
            f"{metrics.heldout_loss_base:.3f}",
            f"{metrics.heldout_loss_adapter:.3f}",
            model.base_model,
        )
        table.add_row(*map(Text, cells))
    return table


def policy_lines(models: ListStudentModelsResponse, *, is_first_page: bool) -> Text:
    """Returns the teaching policy of the version that answers, or of the newest if none does, as a line per dimension.

    Empty if that version is not on this page, or if it has no policy.
    """
    if models.HasField("active_version"):
        model = next((model for model in models.models if model.version == models.active_version), None)
    else:
        model = next(iter(models.models), None) if is_first_page else None
    if model is None or not model.HasField("policy"):
        return Text()
    policy = model.policy
    parts = (policy.writing, policy.scaffolding, policy.mistakes, policy.guidance, policy.interests)
    lines = "\n".join(f"  {part.sentence}" for part in parts)
    return Text(f"How to teach {models.student_id}, from the answers behind version {model.version}:\n{lines}")


def outdated_table(outdated: ListOutdatedStudentsResponse) -> Table:
    """Returns a table with a row per student who should be cloned again."""
    table = Table(
        "student", "version", "base model", "made on Main Brain", title=f"Main Brain {outdated.main_brain[:12]}"
    )
    for student in outdated.students:
        cells = (student.student_id, str(student.version), student.base_model, student.base_digest[:12])
        table.add_row(*map(Text, cells))
    return table


def residue_line(residue: Residue) -> str:
    """Returns where something of a deleted student may be left, and until when."""
    place = ResiduePlace.Name(residue.place).removeprefix("RESIDUE_PLACE_").lower().replace("_", " ")
    until = residue.until.ToJsonString() if residue.HasField("until") else "you remove it, or its store does"
    return f"may be left in {place} until {until}"
