"""The `aivo` command: asks the brain and creates student models, from a terminal or a script.

Exit status: 0 done; 1 the call or the clone failed; 2 the request is wrong; 3 not available now, try again later.
"""

import json
from typing import Annotated

import typer
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from google.protobuf.json_format import Parse, ParseError

from client import commands
from client.commands import WRONG
from client.models_cli import models_app
from client.running import (
    BRAIN_ADDRESS,
    CLONING_ADDRESS,
    Brain,
    Cloning,
    Grade,
    Json,
    Student,
    Subject,
    fail,
    run_command,
    uint32,
)
from client.safety_cli import safety_app

app = typer.Typer(
    help="Ask the Main Brain and create student models.",
    no_args_is_help=True,
    add_completion=False,
    # Locals hold prompts and answers.
    pretty_exceptions_show_locals=False,
)
clone_app = typer.Typer(help="Create a student's model from a baseline assessment.", no_args_is_help=True)
app.add_typer(clone_app, name="clone")
app.add_typer(models_app, name="models")
app.add_typer(safety_app, name="safety")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the student asks.")],
    *,
    student: Student = "",
    grade: Grade = "",
    subject: Subject = "",
    learning_style: Annotated[str, typer.Option(help="visual, auditory, reading, kinesthetic, structured.")] = "",
    disability: Annotated[str, typer.Option(help="adhd, autism, dyslexia, anxiety.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to decode.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same reply.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that the reply ends before; may be repeated.")] = None,
    base_only: Annotated[bool, typer.Option("--base-only", help="Let the base model answer.")] = False,
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """Answer a prompt, word by word as it is decoded."""
    request = brain_pb.GenerateStreamRequest(
        prompt=prompt,
        context=brain_pb.StudentContext(
            student_id=student, grade=grade, subject=subject, learning_style=learning_style, disability=disability
        ),
        max_tokens=uint32("--max-tokens", max_tokens),
        seed=uint32("--seed", seed),
        stop=stop,
        adapter_policy=brain_pb.ADAPTER_POLICY_BASE_ONLY if base_only else brain_pb.ADAPTER_POLICY_PREFER,
    )
    run_command(commands.generate(brain, request, as_json=as_json))


@app.command()
def assess(
    answer: Annotated[str, typer.Argument(help="What the student answered.")],
    *,
    student: Annotated[str, typer.Option("--student", help="Id of the student: their model writes the feedback.")] = "",
    question: Annotated[str, typer.Option(help="The question that was asked.")] = "",
    reference: Annotated[str, typer.Option(help="A correct answer.")] = "",
    objective: Annotated[str, typer.Option(help="What the student should have understood.")] = "",
    rubric: Annotated[str, typer.Option(help="How to grade, in words.")] = "",
    grade: Grade = "",
    subject: Subject = "",
    as_json: Json = False,
    brain: Brain = BRAIN_ADDRESS,
) -> None:
    """Assess a student's answer."""
    criteria = brain_pb.AssessmentCriteria(
        subject=subject,
        grade=grade,
        learning_objective=objective,
        question=question,
        reference_answer=reference,
        rubric=rubric,
    )
    context = brain_pb.StudentContext(student_id=student, grade=grade, subject=subject)
    request = brain_pb.AssessRequest(student_response=answer, criteria=criteria, context=context)
    run_command(commands.assess(brain, request, as_json=as_json))


@clone_app.command("start")
def start_clone(
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(help="The body of POST /v1/clone/start as JSON; - for standard input.")
    ],
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the clone has ended.")] = False,
    as_json: Json = False,
    cloning: Cloning = CLONING_ADDRESS,
) -> None:
    """Start a clone."""
    body = file.read()
    try:
        # UTF-8, UTF-16 or UTF-32, with or without a byte-order mark: spreadsheets and editors write any of them.
        text = body.decode(json.detect_encoding(body))
    except UnicodeDecodeError:
        fail(f"{file.name} is not a clone request: it is not text in UTF-8, UTF-16 or UTF-32", WRONG)
    if not text.lstrip().startswith("{"):
        # An empty list would be parsed as an empty request.
        fail(f"{file.name} is not a clone request: it holds no JSON object", WRONG)
    try:
        request = Parse(text, cloning_pb.StartCloneRequest())
    except ParseError as error:
        # Its message may quote the file, and so a student's words.
        fail(f"{file.name} is not a clone request: {type(error).__name__}", WRONG)
    run_command(commands.start_clone(cloning, request, watch=watch, as_json=as_json))


@clone_app.command("watch")
def watch_clones(
    clone_ids: Annotated[list[str] | None, typer.Argument(metavar="[CLONE]...", help="Ids of clones.")] = None,
    *,
    students: Annotated[
        list[str] | None,
        typer.Option("--student", help="Id of a student: their clones that have not ended, else the latest."),
    ] = None,
    as_json: Json = False,
    cloning: Cloning = CLONING_ADDRESS,
) -> None:
    """Follow clones until all have ended; status 1 unless all have completed."""
    match clone_ids or [], students or []:
        case [], []:
            fail("aivo clone watch takes clones, or students with --student", WRONG)
        case [clone_id], []:
            run_command(commands.watch_clone(cloning, clone_id, as_json=as_json))
        case clone_ids, student_ids:
            run_command(commands.watch_clones(cloning, clone_ids, student_ids, as_json=as_json))


@clone_app.command("status")
def show_clone(clone_id: str, *, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Show the state and progress of a clone."""
    run_command(commands.show_clone(cloning, clone_id, as_json=as_json))


@clone_app.command("cancel")
def cancel_clone(clone_id: str, *, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Cancel a clone that waits or runs."""
    run_command(commands.cancel_clone(cloning, clone_id, as_json=as_json))


@clone_app.command("list")
def list_clones(
    *,
    student: Annotated[str, typer.Option("--student", help="Only this student's.")] = "",
    page_token: Annotated[str, typer.Option(help="next_page_token of the page before.")] = "",
    as_json: Json = False,
    cloning: Cloning = CLONING_ADDRESS,
) -> None:
    """List clones, newest first."""
    request = cloning_pb.ListClonesRequest(student_id=student, page_token=page_token)
    run_command(commands.list_clones(cloning, request, as_json=as_json))


@app.command()
def activate(student_id: str, version: int, *, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Make a version of a student's model the active one: roll back, or forward again."""
    run_command(commands.activate_model(cloning, student_id, uint32("VERSION", version), as_json=as_json))


@app.command()
def pin(student_id: str, version: int, *, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Keep a version however many come after it."""
    run_command(commands.pin_model(cloning, student_id, uint32("VERSION", version), pinned=True, as_json=as_json))


@app.command()
def unpin(student_id: str, version: int, *, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Let a version go once enough come after it."""
    run_command(commands.pin_model(cloning, student_id, uint32("VERSION", version), pinned=False, as_json=as_json))


@app.command()
def delete(
    student_id: str,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: Json = False,
    cloning: Cloning = CLONING_ADDRESS,
) -> None:
    """Delete everything of a student, and print what was removed where; status 3 if the brain was not reached."""
    if not yes:
        typer.confirm(f"Delete all clones and models of {student_id}?", abort=True)
    run_command(commands.delete_student(cloning, student_id, as_json=as_json))


@app.command()
def export(student_id: str, *, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Print all that is held of a student, as JSON."""
    run_command(commands.export_student(cloning, student_id))


@app.command()
def health(*, as_json: Json = False, brain: Brain = BRAIN_ADDRESS, cloning: Cloning = CLONING_ADDRESS) -> None:
    """Show whether both servers can answer; status 3 if one can't. With --json: one object, a member per server."""
    run_command(commands.show_health(brain, cloning, as_json=as_json))
