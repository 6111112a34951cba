"""The demo: creates a model for the sample student, asks it and the Main Brain a question, and assesses an answer.

`python -m client.demo [FOLDER]` reads the bodies of three requests from the folder (default `demo`): `student.json`
starts the clone, `question.json` is for Generate, and `answer.json` for Assess.
"""

import asyncio
import os
import sys
from pathlib import Path

from aivo.brain.v1.brain_service_pb2 import (
    ADAPTER_POLICY_BASE_ONLY,
    ADAPTER_POLICY_REQUIRE,
    AssessRequest,
    AssessResponse,
    GenerateRequest,
    GenerateResponse,
)
from aivo.cloning.v1.cloning_service_pb2 import StartCloneRequest
from google.protobuf.json_format import Parse
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from client.brain import BrainClient
from client.cloning import CloningClient
from client.display import show_progress
from mesh.errors import AivoError, CloneAlreadyRunning, GateNotPassed
from mesh.rpc.errors import error_from

# A running stack answers at once; after this, it does not run.
_HEALTH_SECONDS = 5


class NotUp(Exception):
    """The stack is not ready; the message says why and what to do."""


async def run(folder: Path, console: Console) -> None:
    """Clones, asks and assesses.

    Raises:
        AivoError: If a call or the clone fails.
        NotUp: If the stack does not run or is not ready.
    """
    start = Parse((folder / "student.json").read_text(), StartCloneRequest())
    question = Parse((folder / "question.json").read_text(), GenerateRequest())
    answer = Parse((folder / "answer.json").read_text(), AssessRequest())
    async with (
        CloningClient(os.environ.get("CLONING_ADDRESS", "127.0.0.1:50052")) as cloning,
        BrainClient(os.environ.get("BRAIN_ADDRESS", "127.0.0.1:50051")) as brain,
    ):
        await _require_ready(cloning, brain)
        await _clone(cloning, start, console)
        await _ask(brain, question, console)
        await _assess(brain, answer, console)


async def _require_ready(cloning: CloningClient, brain: BrainClient) -> None:
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            cloning_health, brain_health = await asyncio.gather(cloning.health(), brain.health())
    except (AivoError, TimeoutError):
        raise NotUp("The stack does not answer: run `make up` in another terminal first.") from None
    # A clone waits for a trainer that still loads.
    if cloning_health.status not in {"healthy", "degraded", "loading"}:
        raise NotUp(f"The cloning server is {cloning_health.status}: {cloning_health.reason}")
    if brain_health.status not in {"healthy", "degraded"}:
        raise NotUp(f"The brain server is {brain_health.status}: {brain_health.reason}")


async def _clone(cloning: CloningClient, request: StartCloneRequest, console: Console) -> None:
    count = len(request.baseline_data.responses)
    console.print(f"Creating a model for {request.student_id} from {count} answers about the water cycle.")
    try:
        clone_id = (await cloning.start(request)).clone_id
    except CloneAlreadyRunning as error:
        clone_id = str(error.facts["clone_id"])
        console.print(f"{clone_id} is already running.")
    last = await show_progress(cloning.watch(clone_id), console)
    if last is None:
        raise RuntimeError("the watch ended without a message")
    if last.HasField("error"):
        failure = error_from(last.error)
        if not isinstance(failure, GateNotPassed):
            raise failure
        # A second run of the demo learns nothing new.
        console.print(f"{failure}; the earlier model stays active.")
        return
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
    console.print(f"\n{question.prompt}", style="bold", markup=False)
    # Two beside each other, with a blank between, where the terminal is wide enough.
    width = max(38, console.width // 2 - 1)
    console.print(Columns([_panel(reply, width) for reply in replies], padding=(0, 1)))


async def _assess(brain: BrainClient, answer: AssessRequest, console: Console) -> None:
    with console.status("assessing"):
        verdict = await brain.assess(answer)
    console.print(f"\n{answer.criteria.question}", style="bold", markup=False)
    console.print(f"Answer: {answer.student_response}", markup=False)
    console.print(f"The grader: {verdict.understanding_level}, {verdict.correctness:.0f} of 100.")
    lines = [verdict.feedback, *verdict.strengths, *verdict.areas_for_improvement, verdict.next_steps]
    console.print(Panel(Text("\n".join(filter(None, lines))), title=Text(_name_of(verdict))))


def _panel(reply: GenerateResponse, width: int) -> Panel:
    return Panel(Text(reply.response), title=Text(_name_of(reply)), width=width)


def _name_of(reply: GenerateResponse | AssessResponse) -> str:
    """Who wrote it, in few words: the title of a panel is short."""
    return f"{reply.adapter.student_id}'s model" if reply.HasField("adapter") else "the Main Brain"


def main() -> int:
    """Returns the exit status: 0 if both models answered."""
    console = Console(highlight=False)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    try:
        asyncio.run(run(folder, console))
    except NotUp as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except AivoError as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
