"""The Main Brain: a base model with its tutor merged into it, and the roles that run beside it.

Serving, training, vLLM and the benchmarks all read the folder that `fetch_main_brain` returns. It is merged once per
machine. Without a tutor it is the base model's own folder.

The digest covers the base weights, the tutor and the way they are merged, not the merged bytes: these can differ in the
last bit between machines, and an adapter fits all of them. Knows nothing of torch.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mesh.adapters.manifest import Serving
from mesh.errors import AdapterCorrupt, AdapterIncompatible, BaseModelUnavailable
from mesh.lm.base_files import BaseModelFiles, fetch
from mesh.lm.digests import digest_folder, weight_files, write_atomically
from mesh.lm.grading import LABELS
from mesh.lm.guarding import GUARD_LABELS
from mesh.lm.locks import exclusive
from mesh.log import get_logger
from mesh.main_brain.merging import MERGE_VERSION, OnProgress, merge_adapter
from mesh.main_brain.role_manifest import RoleManifest
from mesh.main_brain.roles import PACKAGED_ROLES, RoleName, TrainedRole, find_role
from mesh.tutoring.overlap import OVERLAP_FEATURES

_log = get_logger(__name__)

_RECORD = "aivo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MainBrainFiles:
    """A Main Brain on disk.

    Attributes:
        path: Folder in the transformers layout: config, tokenizer, safetensors.
        name: The requested name of the base model.
        digest: Identity of the Main Brain, 64 hex digits; the `base_digest` of the adapters that fit it. The digest of
            the base weights if there is no tutor.
        base_weights_digest: sha256 over the base model's weight files, 64 hex digits.
        tutor: What is merged into the base weights; None if nothing is.
        grader: What judges answers; None if the Main Brain itself does.
        guard: What judges texts; None if rules alone do.
        problems: Why a role that is there can't be used, one sentence each.
    """

    path: Path
    name: str
    digest: str
    base_weights_digest: str
    tutor: TrainedRole | None = None
    grader: TrainedRole | None = None
    guard: TrainedRole | None = None
    problems: tuple[str, ...] = ()

    @property
    def serving(self) -> Serving | None:
        """How its replies are decoded, as its tutor's manifest says; None as the engines do by default."""
        return self.tutor.manifest.serving if self.tutor else None

    @property
    def side_roles(self) -> tuple[TrainedRole, ...]:
        """The roles that run beside the Main Brain, each with an adapter of its own."""
        return tuple(role for role in (self.grader, self.guard) if role is not None)

    def without(self, role: RoleName, problem: str) -> "MainBrainFiles":
        """Returns the same Main Brain without a role that runs beside it, and with one problem more."""
        return replace(
            self,
            grader=None if role == "grader" else self.grader,
            guard=None if role == "guard" else self.guard,
            problems=(*self.problems, problem),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _MergeRecord:
    """What a merged folder was made of, and the digest of what was written.

    Stored, so `base_digest`, the digest of the base weights, keeps its name: with another, each folder is merged again.
    """

    merge_version: int
    base_digest: str
    tutor_sha256: str
    weights_sha256: str


def fetch_main_brain(
    name: str,
    cache_dir: Path,
    roles_dirs: Sequence[Path] = (PACKAGED_ROLES,),
    *,
    console: Console | None = None,
) -> MainBrainFiles:
    """Returns the files of a Main Brain; fetches the base model and merges the tutor first if this machine has not yet.

    Of two processes that call this at once, one merges and the other waits. A role that can't be used is left out, and
    `problems` says why.

    Args:
        name: A name of the catalogue, a local folder, or a repository of the Hugging Face hub.
        cache_dir: Holds converted and merged models and digests; created if missing.
        roles_dirs: Where to look for roles, see `mesh.main_brain.roles.roles_folders`. None at all give the plain base
            model.
        console: Shows progress if it is a terminal; standard error by default.

    Raises:
        BaseModelUnavailable: If there is no such model, it can't be reached, its files are damaged, or the merged files
            can't be written.
    """
    console = console or Console(stderr=True)
    base = fetch(name, cache_dir, console=console)
    problems: list[str] = []

    def find(role: RoleName, digest: str) -> TrainedRole | None:
        search = find_role(roles_dirs, base_model=name, role=role, base_digest=digest)
        problems.extend(problem.reason for problem in search.problems)
        if search.role and (fault := _FAULTS_OF.get(role, _no_fault)(search.role.manifest)):
            reason = f"the {role} in {search.role.folder} can't be used: {fault}"
            _log.warning("role_unusable", role=role, base_model=name, reason=reason)
            problems.append(reason)
            return None
        return search.role

    path, digest, tutor = base.path, base.digest, find("tutor", base.digest)
    if tutor is not None:
        try:
            path = _Merge(base, tutor, cache_dir).folder(console)
            digest = main_brain_digest(base.digest, tutor.manifest.sha256)
        except (AdapterCorrupt, AdapterIncompatible) as error:
            reason = f"the tutor in {tutor.folder} can't be merged: {error}"
            _log.warning("role_unusable", role="tutor", base_model=name, reason=reason)
            problems.append(reason)
            tutor = None
        except OSError as error:
            raise BaseModelUnavailable(f"{name}: the tutor could not be merged into it: {error}") from error
    return MainBrainFiles(
        path=path,
        name=name,
        digest=digest,
        base_weights_digest=base.digest,
        tutor=tutor,
        grader=find("grader", digest),
        guard=find("guard", digest),
        problems=tuple(problems),
    )


def main_brain_digest(base_weights_digest: str, tutor_sha256: str) -> str:
    """Returns the digest of the Main Brain that a base model and a tutor make, 64 hex digits."""
    return sha256(f"merge {MERGE_VERSION}\nbase {base_weights_digest}\ntutor {tutor_sha256}\n".encode()).hexdigest()


def merged_folder_name(base_model: str, digest: str) -> str:
    """Returns the name of the folder, in the cache of models, of a Main Brain that has a tutor."""
    # Of a repository or a local folder the last part; the digest makes it unique.
    return f"{Path(base_model).name or 'model'}-{digest[:16]}"


def _grader_fault(manifest: RoleManifest) -> str:
    """Returns why `Assess` can't ask a grader, as one of another version of the product; empty if it can."""
    if manifest.labels != LABELS:
        return f"its labels are not {', '.join(LABELS)}"
    slopes = manifest.calibration.slopes if manifest.calibration else ()
    if any(len(row) != len(OVERLAP_FEATURES) for row in slopes):
        return f"its calibration has not {len(OVERLAP_FEATURES)} slopes per label"
    return ""


def _guard_fault(manifest: RoleManifest) -> str:
    """Returns why a guard can't screen texts, as one of another version of the product; empty if it can."""
    if manifest.labels != GUARD_LABELS:
        return f"its labels are not {', '.join(GUARD_LABELS)}"
    return "" if manifest.thresholds else "it has no thresholds"


def _no_fault(_manifest: RoleManifest) -> str:
    return ""


_FAULTS_OF: Mapping[RoleName, Callable[[RoleManifest], str]] = {"grader": _grader_fault, "guard": _guard_fault}


class _Merge:
    """One base model and tutor, and the folder that they are merged into."""

    def __init__(self, base: BaseModelFiles, tutor: TrainedRole, cache_dir: Path) -> None:
        self._base = base
        self._tutor = tutor
        self._cache_dir = cache_dir
        self._name = merged_folder_name(base.name, main_brain_digest(base.digest, tutor.manifest.sha256))

    def folder(self, console: Console) -> Path:
        """Returns the merged folder; makes it first if it is missing or damaged."""
        folder = self._cache_dir / self._name
        if self._is_sound(folder):
            return folder
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with exclusive(self._cache_dir / f".{self._name}.lock"):
            if self._is_sound(folder):
                return folder
            # Leftovers of a merge that was killed; the lock rules out one that is running.
            for leftover in self._cache_dir.glob(f".{self._name}.part-*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(dir=self._cache_dir, prefix=f".{self._name}.part-") as workspace:
                merged = Path(workspace) / "merged"
                self._write(merged, console)
                if folder.exists():
                    _log.warning("main_brain_files_replaced", base_model=self._base.name)
                    shutil.rmtree(folder)
                merged.replace(folder)
        return folder

    def _is_sound(self, folder: Path) -> bool:
        """Whether a folder is the complete merge of these two by this code, with its weights unchanged."""
        try:
            record = _MergeRecord(**json.loads((folder / _RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return False
        return (
            bool(weight_files(folder))
            and (folder / "config.json").is_file()
            and record == self._record(digest_folder(folder, self._cache_dir / ".digests"))
        )

    def _write(self, merged: Path, console: Console) -> None:
        manifest = self._tutor.manifest
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tensors"))
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            on_progress = _bar(progress, f"merging the tutor into {self._base.name}")
            merge_adapter(
                self._base.path,
                self._tutor.read_weights(),
                merged,
                scaling=manifest.scaling,
                on_progress=on_progress,
            )
        record = self._record(digest_folder(merged, merged.parent))
        write_atomically(merged / _RECORD, json.dumps(asdict(record), indent=1))
        _log.info("main_brain_merged", base_model=self._base.name, tutor=manifest.sha256)

    def _record(self, weights_sha256: str) -> _MergeRecord:
        return _MergeRecord(
            merge_version=MERGE_VERSION,
            base_digest=self._base.digest,
            tutor_sha256=self._tutor.manifest.sha256,
            weights_sha256=weights_sha256,
        )


def _bar(progress: Progress, label: str) -> OnProgress:
    task = progress.add_task(label, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)
