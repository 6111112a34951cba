"""`python -m curriculum`: trains a role, counts the lessons, shows some.

Exit status: 0 done; 1 the training failed; 2 the lessons, the sets or the arguments have a fault.
"""

import json
import random
import resource
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from curriculum.lesson import Kind, Lesson
from curriculum.library import load_lessons
from curriculum.records import InvalidLine
from curriculum.train.grading_sets import InvalidGradedAnswer
from curriculum.train.guard_role import GUARD_SETTINGS, train_guard
from curriculum.train.labels import IndistinctLabels
from curriculum.train.role_training import RoleTraining, TrainedFactors
from curriculum.train.roles import (
    GRADER_SETTINGS,
    TUTOR_SETTINGS,
    train_grader,
    train_tutor,
)
from curriculum.train.training import RoleSettings, StepReport
from mesh.adapters.manifest import Lora
from mesh.errors import AivoError, BaseModelUnavailable
from mesh.lm.lora import to_safetensors
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.roles import (
    WEIGHTS_FILE,
    RoleManifest,
    RoleName,
    TrainedRole,
    remove_role,
    roles_folders,
    write_role,
)
from mesh.settings import BaseModelSettings, InvalidSettings, load_settings

_FAILED, _WRONG = 1, 2
_SETTINGS: dict[RoleName, RoleSettings] = {
    "tutor": TUTOR_SETTINGS,
    "grader": GRADER_SETTINGS,
    "guard": GUARD_SETTINGS,
}
_TRAININGS: dict[RoleName, Callable[[RoleTraining], TrainedFactors]] = {
    "tutor": train_tutor,
    "grader": train_grader,
    "guard": train_guard,
}
_NOTES = {
    "tutor": "It learned from lessons that the project wrote and from science questions with explanations "
    "(EntailmentBank, Apache-2.0). It is a small model: it can be wrong, and it replaces no teacher.",
    "grader": "It learned from pupils' and students' graded answers (SciEntsBank and Beetle, CC BY-SA 3.0; SAF, MIT) "
    "and from the project's lessons. It is no examiner: a teacher decides what counts.",
    "guard": "It learned from texts and lessons that the project wrote, and from texts that OpenAI labelled for "
    "moderation (MIT). It is a small model: it misses some harmful texts and blocks some harmless ones, so do not "
    "rely on it alone. The thresholds were chosen on the development texts. After a look at what an earlier guard had "
    "missed of SimpleSafetyTests, more texts of those kinds were written. Both figures are a little too good.",
}
app = typer.Typer(help="The curriculum of the Main Brain.", no_args_is_help=True, add_completion=False)
_console = Console(stderr=True)


@app.command("train")
def train_role(
    *,
    role: Annotated[
        RoleName, typer.Option(help="What to train. Grader and guard are trained on the tutor's Main Brain.")
    ],
    sets: Annotated[Path | None, typer.Option(help="Folder of the public sets; none: the lessons alone.")] = None,
    base_model: Annotated[str, typer.Option(help="Catalogue name, folder or repository; default: BASE_MODEL.")] = "",
    output: Annotated[Path, typer.Option(help="Roles folder, as in ROLES_DIR.")] = Path(".aivo/roles"),
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How often each example is seen; default: the role's. With 0 and --start, a role keeps its factors "
            "and is measured; a grader or guard is calibrated for the Main Brain that there is now.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1, help="Peak rate; default: the role's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples per step; default: the role's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first factors and of the order.")] = 0,
    start: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an earlier version of the role to begin with; of several, the mean."),
    ] = None,
) -> None:
    """Train a role of a base model and write it with manifest, calibration, evaluation and model card.

    Device, dtype and quantisation come from the variables that the servers read (DEVICE, DTYPE,
    USE_4BIT_QUANTIZATION …). A training that was interrupted goes on from its last checkpoint.
    """
    settings = _settings_of(role, epochs=epochs, learning_rate=learning_rate, batch=batch, seed=seed)
    if sets is not None and not sets.is_dir():
        _stop(f"--sets: there is no folder {sets}", _WRONG)
    folders = start or []
    if epochs == 0 and not folders:
        _stop("--epochs: 0 needs --start", _WRONG)
    for folder in folders:
        if not (folder / WEIGHTS_FILE).is_file():
            _stop(f"--start: there is no {WEIGHTS_FILE} in {folder}", _WRONG)
    try:
        starts = [(folder / WEIGHTS_FILE).read_bytes() for folder in folders]
        report = _train(role, settings, base_model=base_model, sets=sets, output=output, starts=starts)
    except (InvalidLine, InvalidGradedAnswer, InvalidSettings, IndistinctLabels) as error:
        _stop(str(error), _WRONG)
    except (AivoError, OSError) as error:
        _stop(str(error), _FAILED)
    print(json.dumps(report, indent=1))


@app.command()
def counts() -> None:
    """Count the lessons by kind, subject, grade band, disability and learning style."""
    lessons = _lessons()
    table = {
        "lessons": len(lessons),
        "kind": Counter(str(lesson.kind) for lesson in lessons),
        "subject": Counter(str(lesson.subject) for lesson in lessons),
        "band": Counter(str(lesson.band) for lesson in lessons),
        "disability": Counter(str(lesson.profile.disability) or "none" for lesson in lessons),
        "learning style": Counter(str(lesson.profile.learning_style) or "none" for lesson in lessons),
    }
    print(json.dumps(table, indent=1))


@app.command()
def show(
    kind: Annotated[Kind, typer.Argument(help="Kind of the lessons.")],
    *,
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
) -> None:
    """Show some lessons of a kind, drawn at random."""
    lessons = [lesson for lesson in _lessons() if lesson.kind is kind]
    # Repeatable on purpose; it need not be hard to guess.
    for lesson in random.Random(seed).sample(lessons, min(count, len(lessons))):  # noqa: S311
        profile = lesson.profile
        words = (f"grade {profile.grade}", profile.disability, profile.learning_style, lesson.standard)
        print(f"{lesson.id} ({', '.join(filter(None, words))})")
        for place, turn in enumerate(lesson.turns):
            print(f"  {'tutor' if place % 2 else 'student'}: {turn}")
        if lesson.assessment:
            print(f"  told: {lesson.assessment.verdict}; {lesson.assessment.reference_answer}")
        print(f"  tutor: {lesson.reply}\n")


def _train(
    role: RoleName,
    settings: RoleSettings,
    *,
    base_model: str,
    sets: Path | None,
    output: Path,
    starts: Sequence[bytes],
) -> dict[str, object]:
    """Trains and writes a role; returns what was made, for people and programs."""
    started_at = time.monotonic()
    base = _load(base_model, role, output)
    checkpoint = output / f".{base.name.replace('/', '--')}-{role}.checkpoint"
    output.mkdir(parents=True, exist_ok=True)
    with _StepBar(f"training the {role}") as watch:
        training = RoleTraining(
            base=base, sets=sets, settings=settings, starts=starts, checkpoint=checkpoint, watch=watch
        )
        factors = _TRAININGS[role](training)
    trained_role = _write(role, base, factors, output, starts=starts)
    checkpoint.unlink(missing_ok=True)
    return {
        "role": role,
        "folder": str(trained_role.folder),
        "sha256": trained_role.manifest.sha256,
        "megabytes": round(trained_role.manifest.size_bytes / 1e6, 1),
        "minutes": round((time.monotonic() - started_at) / 60, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1),
        "examples": factors.examples,
        "device": str(base.device),
        "evaluation": factors.evaluation,
    }


def _settings_of(
    role: RoleName, *, epochs: int | None, learning_rate: float | None, batch: int | None, seed: int
) -> RoleSettings:
    defaults = _SETTINGS[role]
    return replace(
        defaults,
        epochs=defaults.epochs if epochs is None else epochs,
        learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
        batch=defaults.batch if batch is None else batch,
        seed=seed,
    )


def _load(name: str, role: RoleName, output: Path) -> BaseModel:
    """Loads what a role is trained on: the plain base model for the tutor, the Main Brain for the others."""
    settings = load_settings(BaseModelSettings)
    base = load_base(
        name or settings.base_model,
        cache_dir=settings.model_cache_dir,
        roles_dirs=() if role == "tutor" else roles_folders(output),
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
    )
    # An earlier grader or guard is a problem only because a new tutor came: it is what this training replaces.
    problems = [problem for problem in base.main_brain.problems if problem.startswith("the tutor")]
    if problems:
        raise BaseModelUnavailable(problems[0])
    return base


def _write(
    role: RoleName, base: BaseModel, factors: TrainedFactors, output: Path, *, starts: Sequence[bytes]
) -> TrainedRole:
    weights = to_safetensors(factors.weights)
    settings = factors.settings
    manifest = RoleManifest(
        role=role,
        base_model=base.name,
        base_digest=base.digest,
        lora=Lora(
            rank=settings.rank,
            alpha=float(settings.alpha),
            target_modules=settings.lora.target_modules,
            dtype="BF16",
        ),
        sha256=sha256(weights).hexdigest(),
        size_bytes=len(weights),
        created_time=datetime.now(UTC),
        seed=settings.seed,
        command=f"python -m curriculum {shlex.join(sys.argv[1:])}",
        labels=factors.labels,
        calibration=factors.calibration,
        thresholds=factors.thresholds,
        serving=factors.serving,
        evaluation=factors.evaluation,
        data_digests=factors.data_digests,
    )
    trained_role = write_role(output, weights, manifest, notes=_notes(role, base, factors, starts=starts))
    if role == "tutor":
        # They belong to the Main Brain before.
        remove_role(output, base.name, "grader")
        remove_role(output, base.name, "guard")
    return trained_role


def _notes(role: RoleName, base: BaseModel, factors: TrainedFactors, *, starts: Sequence[bytes]) -> str:
    settings = factors.settings
    device = torch.cuda.get_device_name() if base.device.type == "cuda" else "CPU"
    how = (
        f"Trained on {factors.examples} examples, {settings.epochs} epoch{'s' if settings.epochs > 1 else ''}, batches "
        f"of {settings.batch}, peak learning rate {settings.learning_rate:g}, in {base.dtype} on {device}."
    )
    if not settings.epochs:
        how = f"It was measured, and not trained any further, in {base.dtype} on {device}."
        if role != "tutor":
            how = f"It learned on an earlier Main Brain; for this one it was calibrated and measured, in {base.dtype}."
    if starts:
        digests = " and ".join(f"`{sha256(start).hexdigest()}`" for start in starts)
        origin = "the factors whose SHA-256 is" if len(starts) == 1 else "the mean of the factors whose SHA-256 are"
        how += f" It began with {origin} {digests}."
    return f"{_NOTES[role]}\n\n{how}"


class _StepBar:
    """Shows the steps of a training as a progress bar, or as a line per tenth where there is no terminal."""

    def __init__(self, label: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
        )
        self._label = label
        self._progress = Progress(*columns, console=_console, disable=not _console.is_terminal)

    def __enter__(self) -> Callable[[StepReport], None]:
        self._progress.start()
        task = self._progress.add_task(self._label, total=None, loss=float("nan"))

        def watch(report: StepReport) -> None:
            self._progress.update(task, completed=report.step, total=report.steps, loss=report.loss)
            if not _console.is_terminal and report.step % max(1, report.steps // 10) == 0:
                _console.print(f"{self._label}: step {report.step} of {report.steps}, loss {report.loss:.3f}")

        return watch

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _lessons() -> list[Lesson]:
    try:
        return load_lessons()
    except InvalidLine as error:
        _stop(str(error), _WRONG)


def _stop(message: str, status: int) -> NoReturn:
    _console.print(message, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(status)
