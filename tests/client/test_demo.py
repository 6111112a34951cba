"""The demo as `make demo` runs it, against real gRPC servers: what it prints, and how it ends."""

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from google.rpc.status_pb2 import Status

from testing.scripted.brain_server import PIECES, ScriptedBrain
from testing.scripted.cloning_server import CLONE_ID, ScriptedCloning
from testing.scripted.script import BASE_MODEL, failure
from tests.client.conftest import CommandResult, run_module

Demo = Callable[..., Awaitable[CommandResult]]

SAMPLES = Path(__file__).parents[2] / "demo"
# Nothing listens there.
NOWHERE = "127.0.0.1:9"
NOT_UP = "The stack does not answer: run `make up` in another terminal first.\n"


@pytest.fixture
def cloning_servicer(cloning_server: tuple[ScriptedCloning, str]) -> ScriptedCloning:
    return cloning_server[0]


@pytest.fixture
def brain_servicer(brain_server: tuple[ScriptedBrain, str]) -> ScriptedBrain:
    return brain_server[0]


@pytest.fixture
def demo(addresses: Mapping[str, str]) -> Demo:
    async def run(*words: str, env: Mapping[str, str] | None = None) -> CommandResult:
        return await run_module("client.demo", *words, env={**addresses, "COLUMNS": "120", **(env or {})})

    return run


def sample_with(folder: Path, name: str, text: str | None) -> str:
    """A copy of the sample, with another text in one file; without the file for None."""
    shutil.copytree(SAMPLES, folder, dirs_exist_ok=True)
    path = folder / name
    path.unlink() if text is None else path.write_text(text)
    return str(folder)


def gate_not_passed(**facts: str) -> Status:
    return failure(grpc.StatusCode.FAILED_PRECONDITION, "GATE_NOT_PASSED", faults="loss_above_base", **facts)


async def test_a_clone_that_completes_is_asked_and_writes_feedback(
    demo: Demo, brain_servicer: ScriptedBrain, cloning_servicer: ScriptedCloning
) -> None:
    result = await demo()

    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "Creating a model for demo-alex from 24 answers."
    assert lines[1].startswith("completed ")
    assert "100%" in lines[1]
    assert lines[2] == (
        f"Version 1, sha256 {'ab' * 6}. Loss on held-out replies: 2.50 for the base model, 1.50 for the student's."
    )
    question, answer = (lines.index(line) for line in ("Why do clouds form?", "The grader: good, 85 of 100."))
    titles, replies = lines[question + 1 : question + 3]
    assert titles.index("the Main Brain") < titles.index("demo-alex's model")
    assert replies.count("".join(PIECES)) == 2
    assert lines[answer - 1] == "Answer: The ice on the window melts because the sun warms it up."
    title, feedback, strength = lines[answer + 1 : answer + 4]
    assert "demo-alex's model" in title
    assert "Well done." in feedback
    assert "Names the Sun." in strength
    (start,) = (
        call.request for call in cloning_servicer.script.calls if isinstance(call.request, cloning_pb.StartCloneRequest)
    )
    assert len(start.baseline_data.responses) == 24
    assert [
        call.request.adapter_policy
        for call in brain_servicer.script.calls
        if isinstance(call.request, brain_pb.GenerateRequest)
    ] == [brain_pb.ADAPTER_POLICY_BASE_ONLY, brain_pb.ADAPTER_POLICY_REQUIRE]


async def test_texts_are_printed_as_they_are(demo: Demo, tmp_path: Path) -> None:
    text = "Is [red]this[/red] :cat:?"

    result = await demo(sample_with(tmp_path, "question.json", f'{{"prompt": "{text}"}}'))

    assert text in result.out.splitlines()


@pytest.mark.parametrize("name", ["BRAIN_ADDRESS", "CLONING_ADDRESS"])
async def test_without_one_of_the_servers_it_says_how_to_start_them(
    demo: Demo, cloning_servicer: ScriptedCloning, name: str
) -> None:
    result = await demo(env={name: NOWHERE})

    assert (result.status, result.out, result.err) == (1, "", NOT_UP)
    assert "StartClone" not in [call.rpc for call in cloning_servicer.script.calls]


async def test_a_brain_that_still_loads_is_named(
    demo: Demo, brain_servicer: ScriptedBrain, cloning_servicer: ScriptedCloning
) -> None:
    brain_servicer.status = "loading"

    result = await demo()

    assert (result.status, result.out) == (1, "")
    assert result.err == "The brain server is loading.\n"
    assert "StartClone" not in [call.rpc for call in cloning_servicer.script.calls]


async def test_a_clone_waits_for_a_trainer_that_still_loads(demo: Demo, cloning_servicer: ScriptedCloning) -> None:
    cloning_servicer.status = "loading"

    assert (await demo()).status == 0


async def test_a_fault_of_a_server_is_not_taken_for_its_absence(demo: Demo, brain_servicer: ScriptedBrain) -> None:
    brain_servicer.script.failures.append(failure(grpc.StatusCode.INTERNAL, "INTERNAL"))

    result = await demo()

    assert (result.status, result.err) == (1, "The demo failed: the call failed with INTERNAL.\n")


async def test_a_clone_that_fails_ends_it_with_the_reason(
    demo: Demo, brain_servicer: ScriptedBrain, cloning_servicer: ScriptedCloning
) -> None:
    cloning_servicer.script.late_error = failure(grpc.StatusCode.FAILED_PRECONDITION, "TRAINING_DIVERGED", step="3")

    result = await demo()

    assert (result.status, result.err) == (1, "The demo failed: it failed with TRAINING_DIVERGED.\n")
    assert [call.rpc for call in brain_servicer.script.calls] == ["GetHealth"]


async def test_a_clone_that_is_cancelled_is_no_version_0(
    demo: Demo, brain_servicer: ScriptedBrain, cloning_servicer: ScriptedCloning
) -> None:
    cloning_servicer.states = ("queued", "cancelled")

    result = await demo()

    assert (result.status, result.err) == (1, f"{CLONE_ID} made no model: its last state is cancelled.\n")
    assert "Version" not in result.out
    assert [call.rpc for call in brain_servicer.script.calls] == ["GetHealth"]


async def test_a_version_that_the_gate_refuses_leaves_the_earlier_model_to_ask(
    demo: Demo, cloning_servicer: ScriptedCloning
) -> None:
    cloning_servicer.script.late_error = gate_not_passed(heldout_loss_previous="0.97")

    result = await demo()

    assert (result.status, result.err) == (0, "")
    assert "it failed with GATE_NOT_PASSED; the earlier model stays active." in result.out.splitlines()
    assert "demo-alex's model" in result.out


async def test_a_first_version_that_the_gate_refuses_ends_it(
    demo: Demo, brain_servicer: ScriptedBrain, cloning_servicer: ScriptedCloning
) -> None:
    cloning_servicer.script.late_error = gate_not_passed()

    result = await demo()

    assert result.status == 1
    assert result.err == "it failed with GATE_NOT_PASSED; demo-alex has no earlier model to ask.\n"
    assert "stays active" not in result.out
    assert [call.rpc for call in brain_servicer.script.calls] == ["GetHealth"]


async def test_a_clone_that_already_runs_is_watched(demo: Demo, cloning_servicer: ScriptedCloning) -> None:
    already = failure(
        grpc.StatusCode.ABORTED, "CLONE_ALREADY_RUNNING", student_id="demo-alex", clone_id="clone_earlier"
    )
    # Its health is asked first.
    cloning_servicer.script.failures.extend([None, already])

    result = await demo()

    assert (result.status, result.err) == (0, "")
    assert "clone_earlier is already running." in result.out.splitlines()
    (watch,) = (
        call.request for call in cloning_servicer.script.calls if isinstance(call.request, cloning_pb.WatchCloneRequest)
    )
    assert watch.clone_id == "clone_earlier"


async def test_a_reply_that_the_students_model_did_not_write_is_shown_and_ends_it(
    demo: Demo, brain_servicer: ScriptedBrain
) -> None:
    brain_servicer.generate_fallback = brain_pb.FALLBACK_REASON_SAFETY

    result = await demo()

    assert result.status == 1
    assert result.err == "demo-alex's model did not write this: written by people, for safety.\n"
    assert "people, for safety" in result.out
    assert "demo-alex's model" not in result.out
    assert "The grader" not in result.out


async def test_feedback_that_the_students_model_did_not_write_is_no_fault(
    demo: Demo, brain_servicer: ScriptedBrain
) -> None:
    brain_servicer.assess_fallback = brain_pb.FALLBACK_REASON_FEEDBACK_REJECTED

    result = await demo()

    assert (result.status, result.err) == (0, "")
    *_, last = result.out.splitlines()
    assert last == f"demo-alex's model did not write this: base model {BASE_MODEL} (feedback rejected)."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "can't be read: No such file or directory."),
        ('{"secret": 1}', "is no AssessRequest in JSON."),
        ("secret", "is no AssessRequest in JSON."),
    ],
)
async def test_a_file_that_is_no_request_is_named_without_its_words(
    demo: Demo, cloning_servicer: ScriptedCloning, tmp_path: Path, *, text: str | None, sentence: str
) -> None:
    folder = sample_with(tmp_path, "answer.json", text)

    result = await demo(folder)

    assert (result.status, result.out, cloning_servicer.script.calls) == (1, "", [])
    assert result.err == f"{tmp_path / 'answer.json'} {sentence}\n"
