"""Roles: LoRA adapters that AIVO trains for a base model, as folders on disk.

A role is what the Main Brain is for: the tutor is merged into the base weights, the grader and the guard run beside it.

```
{roles folder}/{base model, "/" as "--"}/{role}/adapter_model.safetensors   PEFT's names and layout, bf16
                                                adapter_config.json         for `PeftModel.from_pretrained`
                                                manifest.json               see `RoleManifest`
                                                README.md                   the model card
```

The weights' digest decides whether a role fits, not the folder's name: a local folder of the same base weights finds
the same roles. Knows nothing of torch.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE, peft_config
from mesh.errors import AdapterCorrupt, AdapterIncompatible
from mesh.log import get_logger
from mesh.main_brain.role_manifest import Calibration, RoleManifest, RoleName, model_card

__all__ = [
    "PACKAGED_ROLES",
    "WEIGHTS_FILE",
    "Calibration",
    "RoleManifest",
    "RoleName",
    "RoleProblem",
    "RoleSearch",
    "TrainedRole",
    "find_role",
    "remove_role",
    "role_folder",
    "roles_folders",
    "write_role",
]

_log = get_logger(__name__)

# The roles that are committed with the product.
PACKAGED_ROLES = Path(__file__).parent / "roles_data"

_MANIFEST_FILE = "manifest.json"
_CARD_FILE = "README.md"

# A rank-64 adapter on every linear module of a 7B model in fp32 has about 640 MB.
_LIMITS = AdapterLimits(rank=256, size_bytes=1024**3)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRole:
    """A role on disk whose files have been checked.

    Attributes:
        folder: Holds its files.
        manifest: What it is and fits.
    """

    folder: Path
    manifest: RoleManifest

    @property
    def identity(self) -> str:
        """How replies and health name it: `lora:` and the sha256 of its weights."""
        return f"lora:{self.manifest.sha256}"

    def read_weights(self) -> bytes:
        """Returns the weights file.

        Raises:
            AdapterCorrupt: It has changed since it was checked, or is gone.
        """
        return _read_weights(self.folder, self.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleProblem:
    """A role that is there but can't be used.

    Attributes:
        role: The role.
        reason: A sentence for operators: which folder, and what is wrong.
        is_damaged: Whether the role says that it was trained on these weights, so that it should fit.
    """

    role: RoleName
    reason: str
    is_damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSearch:
    """What was found of a role.

    Attributes:
        role: The role that fits; None if there is none that can be used.
        problems: Those that were looked at before it and can't be used.
    """

    role: TrainedRole | None
    problems: tuple[RoleProblem, ...]


def roles_folders(configured: Path | None) -> tuple[Path, ...]:
    """Returns the folders to look for roles in, in order: the configured one (`ROLES_DIR`), then the product's own."""
    return (PACKAGED_ROLES,) if configured is None else (configured, PACKAGED_ROLES)


def role_folder(roles_dir: Path, base_model: str, role: RoleName) -> Path:
    """Returns where a roles folder keeps a role of a base model."""
    return roles_dir / base_model.replace("/", "--") / role


def find_role(roles_dirs: Sequence[Path], *, base_model: str, role: RoleName, base_digest: str) -> RoleSearch:
    """Looks for the role that was trained on these weights, and for why others of its name can't be used.

    The first of the folders that has the role for this digest decides, also if its files are damaged: another role in
    its place could be one that was meant to be replaced. A role of other weights, for a base model of this name, hides
    none. Never raises. Logs problems.

    Args:
        roles_dirs: See `roles_folders`.
        base_model: Name of the base model.
        role: The role.
        base_digest: Digest of what the role must have been trained on; see `RoleManifest.base_digest`.
    """
    problems: list[RoleProblem] = []
    for roles_dir in roles_dirs:
        outcome = _find_in(roles_dir, base_model=base_model, role=role, base_digest=base_digest)
        if isinstance(outcome, TrainedRole):
            return RoleSearch(role=outcome, problems=tuple(problems))
        if outcome is not None:
            _log.warning("role_unusable", role=role, base_model=base_model, reason=outcome.reason)
            problems.append(outcome)
            if outcome.is_damaged:
                break
    return RoleSearch(role=None, problems=tuple(problems))


def write_role(roles_dir: Path, weights: bytes, manifest: RoleManifest, *, notes: str = "") -> TrainedRole:
    """Writes a role to where `find_role` looks for it, in place of an earlier one.

    A reader sees the complete role or none.

    Args:
        roles_dir: The roles folder; created if missing.
        weights: Content of the weights file.
        manifest: What the weights are; its `sha256` and `size_bytes` are theirs.
        notes: Markdown to add to the model card, such as the licences of the data.

    Raises:
        AdapterCorrupt: The weights are not those that the manifest describes.
        AdapterIncompatible: The rank or the size is above the limits.
    """
    _require_sound(weights, manifest)
    folder = role_folder(roles_dir, manifest.base_model, manifest.role)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.part-") as workspace:
        complete_folder = Path(workspace) / "role"
        complete_folder.mkdir()
        (complete_folder / WEIGHTS_FILE).write_bytes(weights)
        config = peft_config(
            base_model=manifest.base_model,
            rank=manifest.lora.rank,
            alpha=manifest.lora.alpha,
            target_modules=manifest.lora.target_modules,
        )
        (complete_folder / CONFIG_FILE).write_bytes(config + b"\n")
        (complete_folder / _MANIFEST_FILE).write_bytes(manifest.to_json() + b"\n")
        (complete_folder / _CARD_FILE).write_text(model_card(manifest, notes))
        _put_in_place(complete_folder, folder, spare=Path(workspace) / "earlier")
    return TrainedRole(folder=folder, manifest=manifest)


def _put_in_place(complete_folder: Path, folder: Path, *, spare: Path) -> None:
    """Renames a folder to where an earlier one may be, which moves to `spare`; if that fails, the earlier one stays."""
    has_earlier = folder.exists()
    if has_earlier:
        # A folder can't be renamed onto one that has files.
        folder.replace(spare)
    try:
        complete_folder.replace(folder)
    except OSError:
        if has_earlier:
            spare.replace(folder)
        raise


def remove_role(roles_dir: Path, base_model: str, role: RoleName) -> None:
    """Removes a role if it is there, as after a new tutor, to which the other roles do not belong."""
    shutil.rmtree(role_folder(roles_dir, base_model, role), ignore_errors=True)


def _find_in(roles_dir: Path, *, base_model: str, role: RoleName, base_digest: str) -> TrainedRole | RoleProblem | None:
    named_folder = role_folder(roles_dir, base_model, role)
    problem = None
    for folder in _folders_of(roles_dir, role, first=named_folder):
        try:
            manifest = _read_manifest(folder, role)
            if manifest.base_digest == base_digest:
                _read_weights(folder, manifest)
                return TrainedRole(folder=folder, manifest=manifest)
            fault = f"it was trained on other weights ({manifest.base_digest[:12]}, not {base_digest[:12]})"
        except (AdapterCorrupt, AdapterIncompatible) as error:
            fault = str(error)
            if _claims_digest(folder, base_digest):
                return _problem(folder, role, fault, is_damaged=True)
        if folder == named_folder:
            problem = _problem(folder, role, fault, is_damaged=False)
    return problem


def _problem(folder: Path, role: RoleName, fault: str, *, is_damaged: bool) -> RoleProblem:
    return RoleProblem(role=role, reason=f"the {role} in {folder} can't be used: {fault}", is_damaged=is_damaged)


def _folders_of(roles_dir: Path, role: RoleName, *, first: Path) -> Iterator[Path]:
    """Yields the folders of this role for any base model, beginning with one of them."""
    if first.is_dir():
        yield first
    try:
        others = sorted(path for path in roles_dir.glob(f"*/{role}") if path != first)
    except OSError:
        return
    yield from others


def _read_manifest(folder: Path, role: RoleName) -> RoleManifest:
    try:
        manifest = RoleManifest.from_json((folder / _MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise AdapterCorrupt(f"its manifest can't be read ({type(error).__name__})") from None
    if manifest.role != role:
        raise AdapterCorrupt(f"its manifest describes a {manifest.role}")
    return manifest


def _claims_digest(folder: Path, base_digest: str) -> bool:
    """Whether a manifest, valid or not, says that the role belongs to these weights."""
    try:
        document = json.loads((folder / _MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("base_digest") == base_digest


def _read_weights(folder: Path, manifest: RoleManifest) -> bytes:
    try:
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise AdapterCorrupt(f"its weights can't be read ({type(error).__name__})") from None
    _require_sound(weights, manifest)
    return weights


def _require_sound(weights: bytes, manifest: RoleManifest) -> None:
    if len(weights) != manifest.size_bytes or sha256(weights).hexdigest() != manifest.sha256:
        raise AdapterCorrupt("its weights do not have the sha256 of its manifest")
    inspect(weights, lora=manifest.lora, limits=_LIMITS)
