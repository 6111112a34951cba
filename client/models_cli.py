"""`aivo models`: lists the versions of students' models, and exports them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from aivo.cloning.v1.student_model_service_pb2 import ListStudentModelsRequest
from typer.core import TyperGroup

from client import commands
from client.commands import WRONG
from client.running import CLONING_ADDRESS, Cloning, Json, fail, run_command, uint32
from mesh.settings import InvalidSettings, load_settings


class _ModelsGroup(TyperGroup):
    """Takes `aivo models STUDENT` for `aivo models list STUDENT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer exports no name for its type
        """Names the command `list` if none is named."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


models_app = typer.Typer(
    cls=_ModelsGroup,
    help="List and export the versions of a student's model. `list` may be left out.",
    no_args_is_help=True,
)


@models_app.command("list")
def list_models(
    student_id: Annotated[str, typer.Argument(metavar="STUDENT")],
    *,
    page_token: Annotated[str, typer.Option(help="next_page_token of the page before.")] = "",
    as_json: Json = False,
    cloning: Cloning = CLONING_ADDRESS,
) -> None:
    """List the versions of a student's model, newest first."""
    request = ListStudentModelsRequest(student_id=student_id, page_token=page_token)
    run_command(commands.list_models(cloning, request, as_json=as_json))


@models_app.command("outdated")
def list_outdated(*, as_json: Json = False, cloning: Cloning = CLONING_ADDRESS) -> None:
    """List all students who need a new clone."""
    run_command(commands.list_outdated(cloning, as_json=as_json))


@models_app.command("export")
def export_model(
    student_id: Annotated[str, typer.Argument(metavar="STUDENT")],
    *,
    output: Annotated[Path, typer.Option(help="Folder to create; it may exist if it is empty.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Version to export; the one that answers by default.")
    ] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Add the Main Brain that the version fits.")] = False,
) -> None:
    """Write a version as a folder that PEFT and vLLM load.

    Reads the adapter store itself: set S3_ENDPOINT_URL, S3_BUCKET, TENANT and AWS's variables as for the servers.
    --with-base makes the Main Brain if this machine has not yet: set MODEL_CACHE_DIR and ROLES_DIR too.
    """
    # Not for every command: boto3 takes as long to import as all the rest.
    from client.export import ExportSettings, export_version  # noqa: PLC0415

    try:
        settings = load_settings(ExportSettings)
    except InvalidSettings as error:
        fail(str(error), WRONG)
    number = uint32("--version", version)
    run_command(export_version(settings, student_id, number, output, with_base=with_base))
