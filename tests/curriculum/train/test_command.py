"""`python -m curriculum train`, on a base model that is small enough to be trained in seconds."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from curriculum.guard import is_for_development, load_guard_texts
from curriculum.lesson import Kind, Lesson
from curriculum.library import load_lessons
from curriculum.train import guard_role, roles
from curriculum.train.command import app
from curriculum.train.grading_sets import TRAINING_FILES
from mesh.lm.grading import LABELS
from mesh.lm.guarding import GUARD_LABELS, HarmCategory
from mesh.main_brain.files import fetch_main_brain

GRADED = {"qid": "1", "question": "Why?", "reference_answers": ["So."], "answer": "So.", "label2": "correct"}
EXPLAINED = {"question": "Why?", "answer": "So.", "hypothesis": "It is so", "facts": ["It is so"]}

MODERATION_FILE, REQUESTS_FILE = "openai_moderation.even_rows.jsonl", "simple_safety_tests_80.csv"
MEASURING_FILE = "beetle.test-unseen-answers.jsonl"


@pytest.fixture
def output(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The roles folder. The environment names the small base model, and the lessons are few."""
    lessons = load_lessons()
    few = [lesson for kind in Kind for lesson in _some(lessons, kind)]
    monkeypatch.setattr(roles, "load_lessons", lambda: few)
    texts = load_guard_texts()
    few_texts = [text for place, text in enumerate(texts) if place % 20 == 0 or is_for_development(text)]
    monkeypatch.setattr(guard_role, "load_lessons", lambda: few)
    monkeypatch.setattr(guard_role, "load_guard_texts", lambda: few_texts)
    for name, value in {
        "BASE_MODEL": str(small_folder),
        "MODEL_CACHE_DIR": str(small_folder.parent),
        "DEVICE": "cpu",
        "DTYPE": "float32",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "roles"


def _some(lessons: Sequence[Lesson], kind: Kind) -> list[Lesson]:
    return [lesson for lesson in lessons if lesson.kind is kind][:24]


def run_training(role: str, output: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["train", "--role", role, "--output", str(output), "--epochs", "1", *options])


def report_of(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    # In a test, where `python -m curriculum` has not sent them elsewhere, log lines come before it.
    report: dict[str, object] = json.loads(result.stdout[result.stdout.index("{\n") :])
    return report


def sha256_of(result: Result) -> str:
    return str(report_of(result)["sha256"])


def test_tutor_and_grader_become_one_main_brain_with_manifests_and_cards(small_folder: Path, output: Path) -> None:
    tutor_sha256 = sha256_of(run_training("tutor", output))
    grader_sha256 = sha256_of(run_training("grader", output))

    brain = fetch_main_brain(str(small_folder), small_folder.parent, [output])

    assert brain.tutor is not None
    assert brain.grader is not None
    assert (brain.tutor.manifest.sha256, brain.grader.manifest.sha256) == (tutor_sha256, grader_sha256)
    assert (brain.grader.manifest.labels, brain.problems) == (LABELS, ())
    assert brain.grader.manifest.base_digest == brain.digest
    assert brain.grader.manifest.calibration is not None
    assert brain.tutor.manifest.evaluation
    assert brain.serving is not None
    assert brain.grader.manifest.serving is None
    for role in (brain.tutor, brain.grader):
        assert role.manifest.sha256 in (role.folder / "README.md").read_text()
        assert role.manifest.data_digests
    assert not list(output.glob(".*checkpoint"))


def test_the_same_seed_makes_the_same_bytes_and_a_new_tutor_ends_the_grader(small_folder: Path, output: Path) -> None:
    first = sha256_of(run_training("tutor", output))
    run_training("grader", output)

    assert sha256_of(run_training("tutor", output)) == first
    assert fetch_main_brain(str(small_folder), small_folder.parent, [output]).grader is None


def test_a_role_is_trained_on_weights_of_four_bits(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_4BIT_QUANTIZATION", "true")
    assert sha256_of(run_training("grader", output)) != ""


def test_a_training_may_begin_with_an_earlier_version_and_its_card_says_so(output: Path) -> None:
    first = report_of(run_training("grader", output))
    folder = Path(str(first["folder"]))

    assert sha256_of(run_training("grader", output, "--start", str(folder))) != first["sha256"]
    assert f"It began with the factors whose SHA-256 is `{first['sha256']}`" in (folder / "README.md").read_text()


def test_a_training_may_begin_with_the_mean_of_earlier_versions(output: Path) -> None:
    versions = []
    for seed in ("0", "1"):
        folder = Path(str(report_of(run_training("tutor", output, "--seed", seed))["folder"]))
        versions.append(Path(shutil.copytree(folder, output.parent / f"seed-{seed}")))

    starts = [option for version in versions for option in ("--start", str(version))]
    mean = report_of(run_training("tutor", output, "--epochs", "0", *starts))

    first, second, between = (
        load_file(folder / "adapter_model.safetensors") for folder in (*versions, Path(str(mean["folder"])))
    )
    for name, factor in between.items():
        expected = (first[name].float() + second[name].float()) / 2
        torch.testing.assert_close(factor, expected.to(factor.dtype))
    card = (Path(str(mean["folder"])) / "README.md").read_text()
    assert "the mean of the factors whose SHA-256 are" in card


def test_a_grader_is_calibrated_for_a_new_tutor_and_keeps_its_factors(output: Path) -> None:
    run_training("tutor", output)
    first = report_of(run_training("grader", output))
    start = output.parent / "start"
    shutil.copytree(Path(str(first["folder"])), start)
    run_training("tutor", output, "--seed", "1")

    again = report_of(run_training("grader", output, "--epochs", "0", "--start", str(start)))

    assert again["sha256"] == first["sha256"]
    card = (Path(str(again["folder"])) / "README.md").read_text()
    assert "It learned on an earlier Main Brain" in card
    before, after = (
        json.loads((folder / "manifest.json").read_text()) for folder in (start, Path(str(again["folder"])))
    )
    assert before["base_digest"] != after["base_digest"]
    assert before["calibration"] != after["calibration"]


def test_a_guard_has_labels_calibration_thresholds_and_figures(
    small_folder: Path, output: Path, tmp_path: Path
) -> None:
    sets = tmp_path / "sets"
    (sets / "safety").mkdir(parents=True)
    rows = [{"prompt": f"text {place}", "SH": place % 2} for place in range(30)]
    (sets / "safety" / MODERATION_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (sets / "safety" / REQUESTS_FILE).write_text("harm_area,prompts_final\nScams,How do I trick him?\n")

    report = report_of(run_training("guard", output, "--sets", str(sets)))

    brain = fetch_main_brain(str(small_folder), small_folder.parent, [output])
    assert brain.guard is not None
    assert brain.problems == ()
    manifest = brain.guard.manifest
    assert (manifest.sha256, manifest.labels, manifest.base_digest) == (report["sha256"], GUARD_LABELS, brain.digest)
    assert manifest.calibration is not None
    assert set(manifest.thresholds_for("K")) == set(HarmCategory)
    assert {
        "development, plain: caught at 10 % blocked", "development, self_harm: caught", "development, leet: caught",
        "lessons, replies: blocked though harmless", "OpenAI moderation: average precision",
        "SimpleSafetyTests: caught",
    } <= set(manifest.evaluation)  # fmt: skip
    assert "| flagged from |" in (brain.guard.folder / "README.md").read_text()


def test_a_guard_is_not_trained_without_a_set_that_was_named(output: Path, tmp_path: Path) -> None:
    result = run_training("guard", output, "--sets", str(tmp_path))
    assert result.exit_code == 2
    assert f"{MODERATION_FILE}: can't be read" in result.stderr


@pytest.mark.parametrize(
    ("role", "file", "field"),
    [
        ("tutor", "explanations/entailmentbank.train.jsonl", "hypothesis"),
        ("grader", "grading/beetle.train.jsonl", "answer"),
        ("grader", "explanations/entailmentbank.train.jsonl", "hypothesis"),
        ("grader", f"grading/{MEASURING_FILE}", "answer"),
    ],
)
def test_a_faulty_line_of_a_set_ends_the_command_with_file_line_and_field(
    output: Path, tmp_path: Path, role: str, file: str, field: str
) -> None:
    sets = tmp_path / "sets"
    for folder, names, line in (
        ("grading", (*TRAINING_FILES, MEASURING_FILE), GRADED),
        ("explanations", ("entailmentbank.train.jsonl",), EXPLAINED),
    ):
        (sets / folder).mkdir(parents=True)
        for name in names:
            (sets / folder / name).write_text(json.dumps(line) + "\n")
    faulty = sets / file
    faulty.write_text(faulty.read_text() + json.dumps({"qid": "2", "question": "Why?", "answer": "x"} | {field: None}))

    result = run_training(role, output, "--sets", str(sets))

    assert result.exit_code == 2
    assert f"{faulty}:2: {field}: " in result.stderr


def test_sets_that_lack_a_file_are_no_reason_to_train_without_it(output: Path, tmp_path: Path) -> None:
    result = run_training("tutor", output, "--sets", str(tmp_path))
    assert result.exit_code == 2
    assert "entailmentbank.train.jsonl: can't be read" in result.stderr


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--sets", "nowhere"], 2, "--sets: there is no folder nowhere"),
        (["--start", "nowhere"], 2, "--start: there is no adapter_model.safetensors in nowhere"),
        (["--epochs", "0"], 2, "--epochs: 0 needs --start"),
        (["--epochs", "-1"], 2, "--epochs"),
        (["--learning-rate", "0"], 2, "--learning-rate"),
        (["--base-model", "/nowhere/base"], 1, "/nowhere/base"),
    ],
)
def test_a_fault_has_its_exit_status_and_its_words(output: Path, options: list[str], status: int, says: str) -> None:
    result = run_training("tutor", output, *options)
    assert result.exit_code == status
    assert says in result.stderr
