"""The demo: creates a model for the sample student, asks it and the Main Brain a question, and assesses an answer.

`python -m client.demo [FOLDER]` reads the bodies of three requests from the folder (default `demo`): `student.json`
starts the clone, `question.json` is for Generate, and `answer.json` for Assess. What stops the demo is one sentence on
standard error.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import TypeVar

from aivo.brain.v1.brain_service_pb2 import (
    ADAPTER_POLICY_BASE_ONLY,
    ADAPTER_POLICY_REQUIRE,
    FALLBACK_REASON_SAFETY,
    AssessRequest,
    AssessResponse,
    GenerateRequest,
    GenerateResponse,
)
from aivo.cloning.v1.cloning_service_pb2 import StartCloneRequest
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import Message
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from client.brain import BrainClient
from client.cloning import CloningClient
from client.display import author_of, health_line, show_progress
from client.running import BRAIN_ADDRESS, CLONING_ADDRESS
from mesh.errors import AivoError, CloneAlreadyRunning, GateNotPassed, Unavailable
from mesh.rpc.errors import error_from

RequestT = TypeVar("RequestT", bound=Message)

# A running stack answers at once; after this, it does not run.
_HEALTH_SECONDS = 5


class DemoStopped(Exception):
    """The demo can't go on; the message says why and, where it helps, what to do."""


async def run(folder: Path, console: Console) -> None:
    """Clones, asks and assesses.

    Raises:
        AivoError: If a call or the clone fails.
        DemoStopped: If a file is no request, if the stack does not run or is not ready, if the clone ends without a
            model and there is no earlier one, or if the student's model does not write the reply.
    """
    start = _read_request(folder / "student.json", StartCloneRequest())
    question = _read_request(folder / "question.json", GenerateRequest())
    answer = _read_request(folder / "answer.json", AssessRequest())
    async with (
        CloningClient(os.environ.get("CLONING_ADDRESS", CLONING_ADDRESS)) as cloning,
        BrainClient(os.environ.get("BRAIN_ADDRESS", BRAIN_ADDRESS)) as brain,
    ):
        await _require_ready(cloning, brain)
        await _clone(cloning, start, console)
        await _ask(brain, question, console)
        await _assess(brain, answer, console)


def _read_request(path: Path, request: RequestT) -> RequestT:
    try:
        return Parse(path.read_bytes(), request)
    except OSError as error:
        raise DemoStopped(f"{path} can't be read: {error.strerror}.") from None
    except (ParseError, UnicodeDecodeError):
        # Their messages may quote the file, and so a student's words.
        raise DemoStopped(f"{path} is no {request.DESCRIPTOR.name} in JSON.") from None


async def _require_ready(cloning: CloningClient, brain: BrainClient) -> None:
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            cloning_health, brain_health = await asyncio.gather(cloning.health(), brain.health())
    except (Unavailable, TimeoutError):
        raise DemoStopped("The stack does not answer: run `make up` in another terminal first.") from None
    # A clone waits for a trainer that still loads.
    if cloning_health.status not in {"healthy", "degraded", "loading"}:
        raise DemoStopped(f"The cloning server is {health_line(cloning_health)}.")
    if brain_health.status not in {"healthy", "degraded"}:
        raise DemoStopped(f"The brain server is {health_line(brain_health)}.")


async def _clone(cloning: CloningClient, request: StartCloneRequest, console: Console) -> None:
    count = len(request.baseline_data.responses)
    console.print(f"Creating a model for {request.student_id} from {count} answers.")
    try:
        clone_id = (await cloning.start(request)).clone_id
    except CloneAlreadyRunning as error:
        clone_id = str(error.facts["clone_id"])
        console.print(f"{clone_id} is already running.")
    last = next(iter(await show_progress(cloning.watch(clone_id), console)), None)
    if last is not None and last.HasField("error"):
        failure = error_from(last.error)
        if not isinstance(failure, GateNotPassed):
            raise failure
        if "heldout_loss_previous" not in failure.facts:
            raise DemoStopped(f"{failure}; {request.student_id} has no earlier model to ask.")
        # A second run of the demo learns nothing new.
        console.print(f"{failure}; the earlier model stays active.")
        return
    if last is None or last.status != "completed":
        raise DemoStopped(f"{clone_id} made no model: its last state is {last.status if last else 'unknown'}.")
    loss = last.model.metrics
    console.print(
        f"Version {last.model.version}, sha256 {last.model.sha256[:12]}. Loss on held-out replies:"
        f" {loss.heldout_loss_base:.2f} for the base model, {loss.heldout_loss_adapter:.2f} for the student's."
    )


async def _ask(brain: BrainClient, question: GenerateRequest, console: Console) -> None:
    replies = []
    for policy in (ADAPTER_POLICY_BASE_ONLY, ADAPTER_POLICY_REQUIRE):
        question.adapter_policy = policy
        with console.status("asking"):
            replies.append(await brain.generate(question))
    console.print(f"\n{question.prompt}", style="bold")
    # Two beside each other, with a blank between, where the terminal is wide enough.
    width = max(38, console.width // 2 - 1)
    console.print(Columns([_panel(reply, width) for reply in replies], padding=(0, 1)))
    if not replies[-1].HasField("adapter"):
        raise DemoStopped(_not_by_student(question.context.student_id, replies[-1]))


async def _assess(brain: BrainClient, answer: AssessRequest, console: Console) -> None:
    with console.status("assessing"):
        verdict = await brain.assess(answer)
    console.print(f"\n{answer.criteria.question}", style="bold")
    console.print(f"Answer: {answer.student_response}")
    console.print(f"The grader: {verdict.understanding_level}, {verdict.correctness:.0f} of 100.")
    lines = [verdict.feedback, *verdict.strengths, *verdict.areas_for_improvement, verdict.next_steps]
    console.print(Panel(Text("\n".join(filter(None, lines))), title=Text(_name_of(verdict))))
    if not verdict.HasField("adapter"):
        # The stack is sound: the brain may reject an adapter's feedback, and the verdict stands.
        console.print(_not_by_student(answer.context.student_id, verdict))


def _panel(reply: GenerateResponse, width: int) -> Panel:
    return Panel(Text(reply.response), title=Text(_name_of(reply)), width=width)


def _name_of(reply: GenerateResponse | AssessResponse) -> str:
    """Who wrote it, in few words: the title of a panel is short."""
    if reply.HasField("adapter"):
        return f"{reply.adapter.student_id}'s model"
    return "people, for safety" if reply.fallback == FALLBACK_REASON_SAFETY else "the Main Brain"


def _not_by_student(student_id: str, reply: GenerateResponse | AssessResponse) -> str:
    return f"{student_id}'s model did not write this: {author_of(reply)}."


def main() -> int:
    """Returns the exit status: 0 if both models answered, 1 if not, 130 after Ctrl-C."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    # Plain: a text may hold what the console would take for markup.
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        asyncio.run(run(folder, console))
    except DemoStopped as error:
        return _fail(str(error))
    except AivoError as error:
        return _fail(f"The demo failed: {error}.")
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(sentence: str) -> int:
    Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(sentence, style="red")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
