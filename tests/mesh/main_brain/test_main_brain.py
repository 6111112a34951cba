"""The Main Brain on disk: what it is made of, that it is made once, and what happens to damaged parts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.errors import BaseModelUnavailable
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.lora import to_safetensors
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain, main_brain_digest
from mesh.main_brain.roles import PACKAGED_ROLES, Calibration, RoleName, TrainedRole, role_folder, write_role
from testing.models.random_roles import random_role_state, role_manifest, write_random_role
from tests.mesh.main_brain.reference_models import load, logits_of


def test_without_a_tutor_the_main_brain_is_the_base_model(
    base_folder: Path, cache: Path, base_weights_digest: str
) -> None:
    brain = fetch_main_brain(str(base_folder), cache, [cache / "no-roles"])

    assert brain == MainBrainFiles(
        path=base_folder, name=str(base_folder), digest=base_weights_digest, base_weights_digest=base_weights_digest
    )
    assert not list(cache.glob("small-*"))


def test_a_second_fetch_reads_what_the_first_wrote(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    first = fetch_main_brain(str(base_folder), cache, [roles_dir])
    stamps = {path.name: path.stat().st_mtime_ns for path in first.path.iterdir()}
    second = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert second == first
    assert {path.name: path.stat().st_mtime_ns for path in second.path.iterdir()} == stamps


def test_another_tutor_makes_another_main_brain_beside_the_first(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, base_weights_digest: str
) -> None:
    first = fetch_main_brain(str(base_folder), cache, [roles_dir])
    write_random_role(
        roles_dir, base_folder, role="tutor", base_digest=base_weights_digest, base_model=str(base_folder), seed=9
    )
    second = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert second.digest != first.digest
    assert first.path.is_dir()
    assert second.path != first.path


def test_a_tutor_of_other_weights_hides_none_that_fits_and_is_a_problem(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, tmp_path: Path
) -> None:
    own = write_random_role(
        tmp_path / "own", base_folder, role="tutor", base_digest="b" * 64, base_model=str(base_folder)
    )
    brain = fetch_main_brain(str(base_folder), cache, [tmp_path / "own", roles_dir])

    assert brain.tutor == tutor
    assert brain.digest == fetch_main_brain(str(base_folder), cache, [roles_dir]).digest
    assert [str(own.folder) in problem and "other weights" in problem for problem in brain.problems] == [True]


def _cut_weights(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])


def _flip_weights(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _remove_shard(folder: Path) -> None:
    min(folder.glob("*.safetensors")).unlink()


def _remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _remove_record(folder: Path) -> None:
    (folder / "aivo.json").unlink()


def _age_record(folder: Path) -> None:
    record = json.loads((folder / "aivo.json").read_text())
    (folder / "aivo.json").write_text(json.dumps(record | {"merge_version": 0}))


@pytest.mark.parametrize(
    "damage", [_cut_weights, _flip_weights, _remove_shard, _remove_config, _remove_record, _age_record]
)
def test_a_damaged_folder_is_made_again(
    damage: Callable[[Path], None], base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])
    before = logits_of(load(brain.path))
    damage(brain.path)

    again = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert again == brain
    assert torch.equal(logits_of(load(again.path)), before)


def test_grader_and_guard_belong_to_the_main_brain(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, base_weights_digest: str
) -> None:
    digest = main_brain_digest(base_weights_digest, tutor.manifest.sha256)
    roles: dict[RoleName, TrainedRole] = {
        name: write_random_role(roles_dir, base_folder, role=name, base_digest=digest, base_model=str(base_folder))
        for name in ("grader", "guard")
    }

    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])
    plain = fetch_main_brain(str(base_folder), cache, ())

    assert {"grader": brain.grader, "guard": brain.guard} == roles
    assert (plain.grader, plain.guard, plain.problems) == (None, None, ())


def test_a_grader_of_the_plain_base_model_is_a_problem_once_there_is_a_tutor(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, base_weights_digest: str
) -> None:
    write_random_role(
        roles_dir, base_folder, role="grader", base_digest=base_weights_digest, base_model=str(base_folder)
    )

    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert (brain.tutor, brain.grader) == (tutor, None)
    assert "trained on other weights" in brain.problems[0]


@pytest.mark.parametrize(
    ("name", "foreign", "why"),
    [
        ("guard", {"labels": tuple("abcdefg")}, "its labels are not"),
        ("guard", {"thresholds": None}, "it has no thresholds"),
        ("grader", {"labels": (" yes", " partly", " no")}, "its labels are not"),
        (
            "grader",
            {"calibration": Calibration(scale=1.0, biases=(0.0, 0.0, 0.0), slopes=((0.0, 0.0),) * 3)},
            "its calibration has not",
        ),
    ],
)
def test_a_grader_or_guard_that_cannot_be_asked_is_left_out_and_said(
    *,
    name: RoleName,
    foreign: dict[str, Any],
    why: str,
    base_folder: Path,
    cache: Path,
    roles_dir: Path,
    base_weights_digest: str,
) -> None:
    weights = to_safetensors(random_role_state(base_folder, seed=1))
    manifest = role_manifest(weights, role=name, base_digest=base_weights_digest, base_model=str(base_folder))
    write_role(roles_dir, weights, dataclasses.replace(manifest, **foreign))

    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert (brain.grader, brain.guard) == (None, None)
    assert why in brain.problems[0]


def test_a_corrupt_tutor_is_left_out_and_said(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, base_weights_digest: str
) -> None:
    (tutor.folder / "adapter_model.safetensors").write_bytes(b"damage")

    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert (brain.tutor, brain.digest, brain.path) == (None, base_weights_digest, base_folder)
    assert "do not have the sha256" in brain.problems[0]


def test_a_tutor_that_does_not_fit_the_weights_is_left_out_and_said(
    base_folder: Path, cache: Path, roles_dir: Path, base_weights_digest: str
) -> None:
    other_shape = random_role_state(base_folder, seed=0)
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    other_shape[name] = torch.zeros(4, 7).bfloat16()
    too_large = random_role_state(base_folder, seed=0)
    for side in ("A", "B"):
        factor = name.replace("lora_A", f"lora_{side}")
        too_large[factor] = torch.full_like(too_large[factor], 3e38)
    other_module = {
        key.replace("layers.1", "layers.5"): value for key, value in random_role_state(base_folder, seed=0).items()
    }
    for state, fault in (
        (other_shape, "its factors give (64, 7)"),
        (too_large, "a value that is not finite"),
        (other_module, "the base model has no model.layers.5"),
    ):
        weights = to_safetensors(state)
        write_role(roles_dir, weights, role_manifest(weights, role="tutor", base_digest=base_weights_digest))

        brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

        assert (brain.tutor, brain.digest, brain.path) == (None, base_weights_digest, base_folder)
        assert fault in brain.problems[0]
        assert not list(cache.glob("small-*")) + list(cache.glob("*.part-*"))


def test_a_cache_that_can_not_be_written_is_said(
    base_folder: Path, tmp_path: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()

    with pytest.raises(BaseModelUnavailable, match="the tutor could not be merged"):
        fetch_main_brain(str(base_folder), not_a_folder, [roles_dir])


def _start(base_folder: Path, cache: Path, roles_dir: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "MODEL_CACHE_DIR": str(cache), "ROLES_DIR": str(roles_dir)}
    command = [sys.executable, "-m", "mesh.main_brain.weights", str(base_folder), "--path"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_merge_once_and_print_the_folder(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    both = [_start(base_folder, cache, roles_dir) for _ in range(2)]
    outputs = [process.communicate() for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])
    assert [output for output, _ in outputs] == [f"{brain.path.resolve()}\n"] * 2
    assert all(f"Main Brain {brain.digest[:12]}" in errors for _, errors in outputs)
    # A second merge would have replaced the folder and said so.
    assert not any("replaced" in errors for _, errors in outputs)
    assert not list(cache.glob(".*.part-*"))


def test_a_merge_that_was_killed_leaves_nothing_for_the_next(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from mesh.main_brain import files, merging\n"
        "merge = merging.merge_adapter\n"
        "def kill_in_the_middle(done, total):\n"
        "    if done > total / 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.merge_adapter = lambda *a, on_progress, **k: merge(*a, on_progress=kill_in_the_middle, **k)\n"
        "base, cache, roles = sys.argv[1:]\n"
        "files.fetch_main_brain(base, pathlib.Path(cache), [pathlib.Path(roles)])\n"
    )
    command = [sys.executable, "-c", program, str(base_folder), str(cache), str(roles_dir)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list(cache.glob(".small-*.part-*/merged/*.safetensors"))
    assert not list(cache.glob("small-*"))

    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

    assert brain.tutor == tutor
    assert not list(cache.glob(".*.part-*"))


def test_the_digest_does_not_change_by_itself() -> None:
    # Everything that belongs to a Main Brain is bound to it: a change of the formula needs a new MERGE_VERSION.
    text = f"merge 1\nbase {'a' * 64}\ntutor {'b' * 64}\n"
    assert main_brain_digest("a" * 64, "b" * 64) == sha256(text.encode()).hexdigest()


def test_the_products_roles_fit_the_default_base_model(cache_dir: Path) -> None:
    main_brain = fetch_main_brain(DEFAULT_BASE_MODEL, cache_dir)
    folders = role_folder(PACKAGED_ROLES, DEFAULT_BASE_MODEL, "tutor").parent.glob("*/")
    roles = [role.manifest.role for role in (main_brain.tutor, *main_brain.side_roles) if role is not None]
    assert main_brain.problems == ()
    assert sorted(roles) == sorted(folder.name for folder in folders)
