"""What all commands of `aivo` share: their options, and how a command is run and ends."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, NoReturn, overload

import typer
from rich.console import Console

from client.commands import FAILED, NOT_NOW, WRONG
from mesh.errors import AivoError, DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from mesh.rpc.errors import RemoteError

Brain = Annotated[str, typer.Option("--brain", envvar="BRAIN_ADDRESS", help="Address of the brain server.")]
Cloning = Annotated[str, typer.Option("--cloning", envvar="CLONING_ADDRESS", help="Address of the cloning server.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as REST gives it; one line per message of a stream.")]
Student = Annotated[str, typer.Option("--student", help="Id of the student: their model answers.")]
Grade = Annotated[str, typer.Option(help="School grade: K, 1 … 12.")]
Subject = Annotated[str, typer.Option(help="Subject, such as Science.")]

# The contract has seeds, versions and counts of tokens as uint32.
_MOST = 2**32 - 1

BRAIN_ADDRESS = "127.0.0.1:50051"
CLONING_ADDRESS = "127.0.0.1:50052"


def run_command(command: Coroutine[None, None, int]) -> NoReturn:
    """Runs a command and ends the process with its status."""
    try:
        status = asyncio.run(command)
    except AivoError as error:
        fail(f"{_name_of(error)}: {error}", _status_of(error))
    except KeyboardInterrupt:
        # By convention 128 and the number of SIGINT.
        status = 130
    raise typer.Exit(status)


@overload
def uint32(name: str, value: int) -> int: ...
@overload
def uint32(name: str, value: int | None) -> int | None: ...
def uint32(name: str, value: int | None) -> int | None:
    """Returns the value if the contract can hold it; ends the process otherwise."""
    if value is not None and not 0 <= value <= _MOST:
        fail(f"{name} must be 0 to {_MOST}", WRONG)
    return value


def _name_of(error: AivoError) -> str:
    return error.code.name if isinstance(error, RemoteError) else error.reason


def _status_of(error: AivoError) -> int:
    match error:
        case InvalidArgument():
            return WRONG
        case Unavailable() | ResourceExhausted() | DeadlineExceeded():
            return NOT_NOW
        case _:
            return FAILED


def fail(line: str, status: int) -> NoReturn:
    """Prints a line on standard error and ends the process with this status."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(line, style="red")
    raise typer.Exit(status)
