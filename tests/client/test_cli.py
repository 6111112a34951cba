"""The `aivo` command against real gRPC servers: what it sends, what it prints, how it ends."""

import json
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1.student_model_pb2 import StudentModel, TeachingPolicy
from aivo.cloning.v1.student_model_service_pb2 import ListStudentModelsRequest, ListStudentModelsResponse
from aivo.safety.v1 import safety_service_pb2 as safety_pb

from client.display import policy_lines
from testing.scripted.brain_server import ALERT_ID, PIECES
from testing.scripted.cloning_server import CLONE_ID, STATES
from testing.scripted.script import BASE_MODEL, Script, failure
from tests.client.conftest import Aivo

RESPONSES = [
    {"question": "Why?", "student_answer": "Light", "score": 1},
    {"question": "How?", "student_answer": "By day", "score": 0},
]
CLONE = {"student_id": "student123", "baseline_data": {"responses": RESPONSES, "max_score": 1}}


async def test_generate_prints_the_reply_and_who_gave_it(aivo: Aivo, brain: Script) -> None:
    result = await aivo("generate", "Why?", "--student", "student123", "--grade", "5", "--max-tokens", "8")

    assert (result.status, result.err) == (0, "")
    reply, author = result.out.strip().split("\n")
    assert reply == "".join(PIECES)
    assert author == f"— student123's model, version 1 ({'ab' * 6}), on {BASE_MODEL}"
    request = brain.calls[0].request
    assert isinstance(request, brain_pb.GenerateStreamRequest)
    assert (request.prompt, request.context.grade, request.max_tokens) == ("Why?", "5", 8)
    assert not request.HasField("seed")


async def test_a_stop_sequence_may_be_given_more_than_once(aivo: Aivo, brain: Script) -> None:
    await aivo("generate", "Why?", "--stop", "\n\n", "--stop", "END")

    request = brain.calls[0].request
    assert isinstance(request, brain_pb.GenerateStreamRequest)
    assert request.stop == ["\n\n", "END"]


async def test_calls_for_a_student_carry_the_header_of_the_gateways_ring(aivo: Aivo, brain: Script) -> None:
    await aivo("generate", "Why?", "--student", "student123")

    assert brain.calls[0].metadata["x-student-id"] == "student123"


async def test_generate_gives_a_json_line_a_message(aivo: Aivo, brain: Script) -> None:
    result = await aivo("generate", "Why?", "--json")

    messages = [json.loads(line) for line in result.out.splitlines()]
    assert [message.get("text") for message in messages] == [*PIECES, None]
    assert "tokens_used" not in messages[-1]["finished"], "what is absent is not printed, as REST does"


async def test_assess_prints_the_verdict(aivo: Aivo, brain: Script) -> None:
    result = await aivo(
        "assess", "Plants eat light", "--question", "What do plants eat?", "--student", "student123", "--grade", "5"
    )

    assert result.status == 0
    *verdict, author = result.out.splitlines()
    assert verdict == ["85 of 100, good", "Well done.", "Strengths: Names the Sun."]
    assert author == f"— student123's model, version 1 ({'ab' * 6}), on {BASE_MODEL}; graded by arithmetic"
    request = brain.calls[0].request
    assert isinstance(request, brain_pb.AssessRequest)
    assert (request.context.student_id, request.context.grade, request.criteria.grade) == ("student123", "5", "5")


async def test_a_clone_is_started_from_a_file_and_watched_to_its_end(aivo: Aivo, cloning: Script) -> None:
    result = await aivo("clone", "start", "-", "--watch", "--json", stdin=json.dumps(CLONE))

    assert result.status == 0
    started, *changes = [json.loads(line) for line in result.out.splitlines()]
    assert started["clone_id"] == CLONE_ID
    assert [change["status"] for change in changes] == list(STATES)
    assert changes[0]["attempt"] == 0, "zero values are printed, as REST does"
    request = cloning.calls[0].request
    assert isinstance(request, cloning_pb.StartCloneRequest)
    assert request.baseline_data.responses[0].question == "Why?"
    assert request.baseline_data.max_score == 1


async def test_a_clone_that_fails_ends_with_its_reason(aivo: Aivo, cloning: Script) -> None:
    cloning.late_error = failure(grpc.StatusCode.FAILED_PRECONDITION, "NO_TRAINABLE_EXAMPLES", responses="3")

    result = await aivo("clone", "watch", CLONE_ID)

    assert result.status == 1
    assert result.err == "NO_TRAINABLE_EXAMPLES: it failed with NO_TRAINABLE_EXAMPLES\n"


async def test_several_clones_are_watched_in_one_stream(aivo: Aivo, cloning: Script) -> None:
    as_json = await aivo("clone", "watch", "c1", "c2", "--student", "alex", "--json")
    for_people = await aivo("clone", "watch", "--student", "alex", "--student", "kim")

    assert (as_json.status, as_json.err) == (0, "")
    changes = [json.loads(line) for line in as_json.out.splitlines()]
    assert len(changes) == 3 * len(STATES)
    assert {change["clone_id"] for change in changes} == {"c1", "c2", "clone_of_alex"}
    assert for_people.status == 0
    assert for_people.out.splitlines()[-2:] == ["alex, clone_of_alex: completed", "kim, clone_of_kim: completed"]
    requests = [call.request for call in cloning.calls]
    assert requests == [
        cloning_pb.WatchClonesRequest(clone_ids=["c1", "c2"], student_ids=["alex"]),
        cloning_pb.WatchClonesRequest(student_ids=["alex", "kim"]),
    ]


async def test_a_watch_of_nothing_is_refused_before_any_call(aivo: Aivo, cloning: Script) -> None:
    result = await aivo("clone", "watch")

    assert (result.status, cloning.calls) == (2, [])
    assert "--student" in result.err


async def test_a_malformed_clone_file_is_refused_without_its_words(aivo: Aivo, cloning: Script) -> None:
    result = await aivo("clone", "start", "-", stdin='{"student_id": "secret')

    assert (result.status, cloning.calls) == (2, [])
    assert "not a clone request" in result.err
    assert "secret" not in result.err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_a_clone_file_is_read_in_whatever_unicode_it_was_saved(
    aivo: Aivo, cloning: Script, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "clone.json"
    path.write_bytes(json.dumps(CLONE | {"student_id": "ångström"}, ensure_ascii=False).encode(encoding))

    result = await aivo("clone", "start", str(path))

    assert (result.status, result.err) == (0, "")
    request = cloning.calls[0].request
    assert isinstance(request, cloning_pb.StartCloneRequest)
    assert request.student_id == "ångström"


@pytest.mark.parametrize(
    "body",
    [b"[]", b"", b'"secret"', b'{"student_id": "secret \xff"}', b"\xff\xfe{\x00s", '{"secret'.encode("utf-16")],
)
async def test_a_file_without_an_object_or_of_another_encoding_is_refused_in_one_line(
    aivo: Aivo, cloning: Script, tmp_path: Path, *, body: bytes
) -> None:
    path = tmp_path / "clone.json"
    path.write_bytes(body)

    result = await aivo("clone", "start", str(path))

    assert (result.status, cloning.calls) == (2, [])
    assert result.err.count("\n") == 1
    assert "not a clone request" in result.err
    assert "secret" not in result.err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("activate", "student123", "5000000000"), "VERSION"),
        (("pin", "student123", "5000000000"), "VERSION"),
        (("generate", "Why?", "--seed", "99999999999"), "--seed"),
        (("generate", "Why?", "--max-tokens", "99999999999"), "--max-tokens"),
    ],
)
async def test_a_number_that_the_contract_can_not_hold_is_refused_in_one_line(
    aivo: Aivo, brain: Script, cloning: Script, *, words: tuple[str, ...], name: str
) -> None:
    result = await aivo(*words)

    assert (result.status, result.err) == (2, f"{name} must be 0 to 4294967295\n")
    assert (brain.calls, cloning.calls) == ([], [])


async def test_an_id_that_no_header_can_hold_is_the_servers_to_refuse(aivo: Aivo, brain: Script) -> None:
    brain.failures.append(failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"))

    result = await aivo("generate", "Why?", "--student", "\u00e9")

    assert (result.status, result.err) == (2, "INVALID_FIELD: it failed with INVALID_FIELD\n")
    assert "x-student-id" not in brain.calls[0].metadata


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("models", "list"), "Missing argument 'STUDENT'"),
        (("models", "outdated", "--page-token", "second"), "No such option: --page-token"),
        (("models", "export", "student123"), "Missing option '--output'"),
        (("models", "export", "student123", "--output", "folder", "--version", "0"), "greater than or equal to 1"),
    ],
)
async def test_a_list_without_a_student_or_with_a_page_of_none_is_refused(
    aivo: Aivo, cloning: Script, *, words: tuple[str, ...], line: str
) -> None:
    result = await aivo(*words)

    assert (result.status, cloning.calls) == (2, [])
    assert line in result.err


async def test_clones_and_models_are_listed(aivo: Aivo, cloning: Script) -> None:
    status = await aivo("clone", "status", CLONE_ID)
    clones = await aivo("clone", "list", "--student", "student123")
    models = await aivo("models", "student123", "--json")

    assert status.out.startswith(f"{CLONE_ID}: fine_tuning, 55 %")
    assert CLONE_ID in clones.out
    assert json.loads(models.out)["models"][0]["metrics"]["heldout_loss_adapter"] == 1.5


async def test_options_may_come_before_the_student(aivo: Aivo, cloning: Script) -> None:
    result = await aivo("models", "--page-token", "second", "--json", "student123")

    assert (result.status, result.err) == (0, "")
    (call,) = cloning.calls
    assert call.request == ListStudentModelsRequest(student_id="student123", page_token="second")


async def test_models_are_listed_with_how_to_teach_their_student(aivo: Aivo, cloning: Script) -> None:
    table = await aivo("models", "student123")
    document = await aivo("models", "student123", "--json")

    assert "How to teach student123, from the answers behind version 1:" in table.out
    assert "  Writes short answers for grade 4." in table.out
    (model,) = json.loads(document.out)["models"]
    assert model["policy"]["writing"]["level"] == "WRITING_LEVEL_BELOW"
    assert model["policy"]["interests"]["interests"] == ["cats"]


@pytest.mark.parametrize(
    ("active_version", "token", "versions", "version_told"),
    [
        (3, "", [25, 24], None),
        (3, "page-2", [4, 3], 3),
        (None, "", [25, 24], 25),
        (None, "page-2", [4, 3], None),
    ],
)
def test_only_the_version_that_answers_or_else_the_newest_says_how_to_teach(
    active_version: int | None, token: str, versions: list[int], version_told: int | None
) -> None:
    models = [
        StudentModel(version=version, active=version == active_version, policy=TeachingPolicy()) for version in versions
    ]
    page = ListStudentModelsResponse(student_id="student123", active_version=active_version, models=models)
    lines = policy_lines(page, is_first_page=not token).plain
    assert lines.startswith("" if version_told is None else "How to teach student123")
    assert bool(lines) is (version_told is not None)
    assert version_told is None or f"behind version {version_told}:" in lines


async def test_outdated_models_are_listed_to_the_last_page(aivo: Aivo, cloning: Script) -> None:
    table = await aivo("models", "outdated")
    document = await aivo("models", "outdated", "--json")

    assert all(student_id in table.out for student_id in ("student123", "student456", "dddddddddddd"))
    students = json.loads(document.out)["students"]
    assert [student["student_id"] for student in students] == ["student123", "student456"]
    assert [call.rpc for call in cloning.calls] == ["ListOutdatedStudents"] * 4


@pytest.mark.parametrize("student_id", ["outdated", "list", "export", "student123"])
async def test_a_student_of_any_name_is_listed(aivo: Aivo, cloning: Script, *, student_id: str) -> None:
    result = await aivo("models", "list", student_id, "--json")

    assert (result.status, result.err) == (0, "")
    (call,) = cloning.calls
    assert call.request == ListStudentModelsRequest(student_id=student_id)


@pytest.mark.parametrize("words", [("student123", "student456"), ("list", "student123", "student456")])
async def test_more_than_one_student_at_a_time_is_refused(
    aivo: Aivo, cloning: Script, *, words: tuple[str, ...]
) -> None:
    result = await aivo("models", *words)

    assert (result.status, cloning.calls) == (2, [])
    assert "unexpected extra argument(s) (student456)" in result.err


async def test_a_clone_is_cancelled_and_versions_are_pinned_and_activated(aivo: Aivo, cloning: Script) -> None:
    cancelled = await aivo("clone", "cancel", CLONE_ID)
    activated = await aivo("activate", "student123", "1")
    pinned = await aivo("pin", "student123", "1")
    unpinned = await aivo("unpin", "student123", "1")

    assert cancelled.out == f"{CLONE_ID}: cancelled\n"
    assert activated.out == "student123: version 1 is active (before: version 2)\n"
    assert [pinned.out, unpinned.out] == [
        "student123: version 1 is pinned\n",
        "student123: version 1 is not pinned\n",
    ]


async def test_a_student_is_deleted_only_by_who_means_it(aivo: Aivo, cloning: Script) -> None:
    unconfirmed = await aivo("delete", "student123", stdin="n\n")
    assert (unconfirmed.status, cloning.calls) == (1, [])
    confirmed = await aivo("delete", "student123", "--yes")
    assert confirmed.status == 3, "the brain was not reached: repeat the call"
    assert "3 clones" in confirmed.out
    assert "2 versions" in confirmed.out


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", 2),
        (grpc.StatusCode.NOT_FOUND, "STUDENT_MODEL_NOT_FOUND", 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 3),
    ],
)
async def test_an_error_is_one_line_with_its_reason(
    aivo: Aivo, brain: Script, *, code: grpc.StatusCode, reason: str, status: int
) -> None:
    brain.failures.append(failure(code, reason))

    result = await aivo("generate", "Why?")

    assert (result.status, result.out) == (status, "")
    assert result.err == f"{reason}: it failed with {reason}\n"


async def test_health_shows_both_servers_and_fails_if_one_is_away(aivo: Aivo) -> None:
    both = await aivo("health")
    without_cloning = await aivo("health", "--cloning", "127.0.0.1:9")

    assert (both.status, both.out) == (0, "brain: healthy\ncloning: healthy\n")
    assert without_cloning.status == 3
    assert without_cloning.out.splitlines()[0] == "brain: healthy"
    assert without_cloning.out.splitlines()[1].startswith("cloning: no answer")


async def test_health_is_one_json_object_that_names_the_server_that_is_away(aivo: Aivo) -> None:
    both = await aivo("health", "--json")
    without_brain = await aivo("health", "--json", "--brain", "127.0.0.1:9")

    healths = json.loads(both.out)
    assert both.status == 0
    assert {name: health["status"] for name, health in healths.items()} == {"brain": "healthy", "cloning": "healthy"}
    assert (without_brain.status, without_brain.err) == (3, "")
    partial_healths = json.loads(without_brain.out)
    assert partial_healths["brain"]["status"] == "unreachable"
    assert partial_healths["brain"]["reason"]
    assert partial_healths["cloning"] == healths["cloning"]


async def test_a_text_is_checked_and_nobody_is_told(aivo: Aivo, brain: Script) -> None:
    result = await aivo("safety", "check", "I feel so alone", "--grade", "4")

    assert result.status == 0
    assert result.out.splitlines() == [
        "support, adults are told; judged by rules",
        "self harm: 0.970",
        "I am glad you said it.",
    ]
    request = brain.calls[0].request
    assert isinstance(request, safety_pb.CheckTextRequest)
    assert (request.text, request.context.grade, request.is_reply) == ("I feel so alone", "4", False)


async def test_alerts_are_listed_watched_from_a_number_on_and_acknowledged(aivo: Aivo, brain: Script) -> None:
    listed = await aivo("safety", "alerts", "--student", "ada", "--json")
    assert [alert["student_id"] for alert in json.loads(listed.out)["alerts"]] == ["ada"]

    watched = await aivo("safety", "watch", "--after", "1")
    assert [line.split(" · ")[:5] for line in watched.out.splitlines()] == [
        [ALERT_ID, "ada", "self harm", "support", str(count)] for count in (2, 3)
    ]
    acknowledged = await aivo("safety", "acknowledge", ALERT_ID, "--by", "Ms. Rivera")
    assert acknowledged.out.strip().endswith("Ms. Rivera")
    assert [call.rpc for call in brain.calls] == ["ListAlerts", "WatchAlerts", "AcknowledgeAlert"]


async def test_an_export_is_one_json_object_of_all_pages(aivo: Aivo, cloning: Script) -> None:
    result = await aivo("export", "student123")

    export = json.loads(result.out)
    assert [exported["clone"]["clone_id"] for exported in export["clones"]] == [CLONE_ID, "clone_2"]
    assert (len(export["models"]), export["next_page_token"]) == (1, "")
    assert [call.rpc for call in cloning.calls] == ["ExportStudent", "ExportStudent"]
