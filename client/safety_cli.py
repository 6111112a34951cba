"""`aivo safety`: checks texts, and reads the alerts that adults are told of."""

from typing import Annotated

import typer
from aivo.safety.v1.safety_service_pb2 import (
    AcknowledgeAlertRequest,
    CheckTextRequest,
    ListAlertsRequest,
    WatchAlertsRequest,
    WriterContext,
)

from client import safety_commands
from client.running import BRAIN_ADDRESS, Brain, Grade, Json, run_command, uint32

safety_app = typer.Typer(help="Check texts, and read the alerts that adults are told of.", no_args_is_help=True)

OneStudent = Annotated[str, typer.Option("--student", help="Only this student's.")]


@safety_app.command("check")
def check_text(
    text: Annotated[str, typer.Argument(help="What a student writes.")],
    *,
    grade: Grade = "",
    reply: Annotated[bool, typer.Option("--reply", help="It is a tutor's, not a student's.")] = False,
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """Show what is thought of a text; nobody is told."""
    request = CheckTextRequest(text=text, context=WriterContext(grade=grade), is_reply=reply)
    run_command(safety_commands.check_text(brain, request, as_json=as_json))


@safety_app.command("alerts")
def list_alerts(
    *,
    student: OneStudent = "",
    page_token: Annotated[str, typer.Option(help="next_page_token of the page before.")] = "",
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """List alerts, the latest change first."""
    request = ListAlertsRequest(student_id=student, page_token=page_token)
    run_command(safety_commands.list_alerts(brain, request, as_json=as_json))


@safety_app.command("watch")
def watch_alerts(
    *,
    student: OneStudent = "",
    after: Annotated[
        int | None, typer.Option(min=0, help="Number of the last change that you have seen: resumes there.")
    ] = None,
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """Show open alerts, then every alert as it changes, until Ctrl-C."""
    request = WatchAlertsRequest(student_id=student, after_sequence=uint32("--after", after))
    run_command(safety_commands.watch_alerts(brain, request, as_json=as_json))


@safety_app.command("acknowledge")
def acknowledge_alert(
    alert_id: str,
    *,
    by: Annotated[str, typer.Option(help="Who took care of it.")] = "",
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """Say that an adult has taken care of an alert."""
    request = AcknowledgeAlertRequest(alert_id=alert_id, acknowledged_by=by)
    run_command(safety_commands.acknowledge_alert(brain, request, as_json=as_json))
