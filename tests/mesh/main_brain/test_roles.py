import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import LlamaConfig

from mesh.errors import AdapterCorrupt
from mesh.lm.guarding import HarmCategory
from mesh.lm.lora import to_safetensors
from mesh.main_brain.role_manifest import RoleManifest, model_card
from mesh.main_brain.roles import (
    PACKAGED_ROLES,
    RoleProblem,
    TrainedRole,
    find_role,
    remove_role,
    roles_folders,
    write_role,
)
from mesh.tutoring.profile import GradeBand
from testing.models.random_adapters import with_nan
from testing.models.random_roles import random_role_state, role_manifest, write_random_role
from testing.models.small_models import VOCABULARY, small_model

DIGEST = "a" * 64
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small_model(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def roles_dir(tmp_path: Path) -> Path:
    return tmp_path / "roles"


@pytest.fixture
def tutor(roles_dir: Path, base_folder: Path) -> TrainedRole:
    return write_random_role(roles_dir, base_folder, role="tutor", base_digest=DIGEST, base_model="org/small")


def found(
    *roles_dirs: Path, base_model: str = "org/small", base_digest: str = DIGEST
) -> TrainedRole | RoleProblem | None:
    """The tutor that fits, or why there is none, or None if there is nothing."""
    search = find_role(roles_dirs, base_model=base_model, role="tutor", base_digest=base_digest)
    return search.role or next(iter(search.problems), None)


def test_what_training_wrote_is_found(roles_dir: Path, tutor: TrainedRole) -> None:
    assert found(roles_dir) == tutor
    assert tutor.folder == roles_dir / "org--small" / "tutor"
    assert tutor.identity == f"lora:{tutor.manifest.sha256}"
    assert {path.name for path in tutor.folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    }  # fmt: skip
    card = (tutor.folder / "README.md").read_text()
    assert "macro_f1" in card
    assert tutor.manifest.command in card


def test_peft_loads_the_folder_as_it_is(tutor: TrainedRole) -> None:
    model = small_model(CONFIG)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(tokens).logits
        after = PeftModel.from_pretrained(model, tutor.folder)(tokens).logits

    assert not torch.allclose(before, after, atol=0.01)


def test_a_model_of_another_name_with_the_same_weights_finds_it(roles_dir: Path, tutor: TrainedRole) -> None:
    assert found(roles_dir, base_model="/models/mine") == tutor


def test_what_is_not_there_is_none(roles_dir: Path, tutor: TrainedRole) -> None:
    assert found() is None
    assert found(roles_dir / "missing") is None
    assert found(roles_dir, base_model="other", base_digest="b" * 64) is None
    assert find_role([roles_dir], base_model="org/small", role="guard", base_digest=DIGEST).role is None


def test_the_first_folder_decides(roles_dir: Path, tutor: TrainedRole, base_folder: Path, tmp_path: Path) -> None:
    own = write_random_role(tmp_path / "own", base_folder, role="tutor", base_digest=DIGEST, seed=1)

    assert found(tmp_path / "own", roles_dir, base_model="small") == own
    assert roles_folders(tmp_path / "own") == (tmp_path / "own", PACKAGED_ROLES)
    assert roles_folders(None) == (PACKAGED_ROLES,)


def test_a_role_of_other_weights_is_a_problem_for_the_model_of_its_name(roles_dir: Path, tutor: TrainedRole) -> None:
    problem = found(roles_dir, base_digest="b" * 64)

    assert isinstance(problem, RoleProblem)
    assert "trained on other weights (aaaaaaaaaaaa, not bbbbbbbbbbbb)" in problem.reason


def test_a_damaged_role_for_these_weights_is_not_replaced_by_another(
    roles_dir: Path, tutor: TrainedRole, base_folder: Path, tmp_path: Path
) -> None:
    own = write_random_role(tmp_path / "own", base_folder, role="tutor", base_digest=DIGEST, base_model="org/small")
    _truncate(own)

    assert isinstance(found(tmp_path / "own", roles_dir), RoleProblem)


def _truncate(role: TrainedRole) -> None:
    path = role.folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(role: TrainedRole) -> None:
    path = role.folder / "adapter_model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-3] ^= 1
    path.write_bytes(weights)


def _remove_weights(role: TrainedRole) -> None:
    (role.folder / "adapter_model.safetensors").unlink()


def _remove_manifest(role: TrainedRole) -> None:
    (role.folder / "manifest.json").unlink()


def _change_manifest(role_files: TrainedRole, **changes: object) -> None:
    path = role_files.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _bring_unknown_schema(role: TrainedRole) -> None:
    _change_manifest(role, schema=2)


def _bring_extra_field(role: TrainedRole) -> None:
    _change_manifest(role, surprise=1)


def _bring_other_role(role: TrainedRole) -> None:
    _change_manifest(role, role="guard", labels=["a", "b"])


def _bring_no_json(role: TrainedRole) -> None:
    (role.folder / "manifest.json").write_bytes(b"\xff")


def _replace_weights(role: TrainedRole, weights: bytes) -> None:
    (role.folder / "adapter_model.safetensors").write_bytes(weights)
    manifest = role_manifest(weights, role="tutor", base_digest=DIGEST, base_model="org/small")
    (role.folder / "manifest.json").write_bytes(manifest.to_json())


def _bring_nan(role: TrainedRole) -> None:
    _replace_weights(role, with_nan((role.folder / "adapter_model.safetensors").read_bytes()))


def _bring_no_safetensors(role: TrainedRole) -> None:
    _replace_weights(role, b"not safetensors")


def _bring_wrong_shape(role: TrainedRole) -> None:
    weight = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(3, 32).bfloat16()}
    _replace_weights(role, to_safetensors(weight))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (_truncate, "do not have the sha256"),
        (_flip_a_bit, "do not have the sha256"),
        (_remove_weights, "weights can't be read"),
        (_remove_manifest, "manifest can't be read"),
        (_bring_unknown_schema, "schema"),
        (_bring_extra_field, "surprise"),
        (_bring_other_role, "describes a guard"),
        (_bring_no_json, "does not parse"),
        (_bring_nan, "not finite"),
        (_bring_no_safetensors, "not a safetensors file"),
        (_bring_wrong_shape, "does not fit rank 4"),
    ],
)
def test_damage_is_a_problem_that_names_the_folder(
    damage: Callable[[TrainedRole], None], fault: str, roles_dir: Path, tutor: TrainedRole
) -> None:
    damage(tutor)

    problem = found(roles_dir)

    assert isinstance(problem, RoleProblem)
    assert fault in problem.reason
    assert str(tutor.folder) in problem.reason


def test_damage_is_found_for_a_model_of_another_name_too(roles_dir: Path, tutor: TrainedRole) -> None:
    _bring_unknown_schema(tutor)

    assert isinstance(found(roles_dir, base_model="/models/mine"), RoleProblem)
    assert found(roles_dir, base_model="/models/mine", base_digest="b" * 64) is None


def test_weights_that_change_after_the_check_are_refused(tutor: TrainedRole) -> None:
    weights = tutor.read_weights()
    _flip_a_bit(tutor)

    assert tutor.manifest.size_bytes == len(weights)
    with pytest.raises(AdapterCorrupt):
        tutor.read_weights()


def test_writing_again_replaces_the_role_and_leaves_nothing_else(
    roles_dir: Path, tutor: TrainedRole, base_folder: Path
) -> None:
    again = write_random_role(roles_dir, base_folder, role="tutor", base_digest=DIGEST, base_model="org/small", seed=2)

    assert found(roles_dir) == again != tutor
    assert [path.name for path in again.folder.parent.iterdir()] == ["tutor"]
    remove_role(roles_dir, "org/small", "tutor")
    assert found(roles_dir) is None


def test_weights_that_the_manifest_does_not_describe_are_not_written(roles_dir: Path, base_folder: Path) -> None:
    weights = to_safetensors(random_role_state(base_folder, seed=0))
    manifest = role_manifest(weights, role="tutor", base_digest=DIGEST)

    with pytest.raises(AdapterCorrupt):
        write_role(roles_dir, weights + b" ", manifest)

    assert not roles_dir.exists()


def test_labels_belong_to_grader_and_guard_and_have_a_bias_each() -> None:
    grader = role_manifest(b"weights", role="grader", base_digest=DIGEST)

    for wrong in ({"labels": ()}, {"labels": ("a", "b")}, {"labels": ("a", "a", "b")}, {"role": "tutor"}):
        with pytest.raises((ValidationError, ValueError)):
            replace(grader, **wrong)


def test_the_product_holds_a_folder_for_its_own_roles() -> None:
    assert (PACKAGED_ROLES / "README.md").is_file()


def test_every_role_of_the_product_is_sound() -> None:
    for manifest_path in PACKAGED_ROLES.glob("*/*/manifest.json"):
        document = json.loads(manifest_path.read_text())
        search = find_role(
            [PACKAGED_ROLES],
            base_model=document["base_model"],
            role=document["role"],
            base_digest=document["base_digest"],
        )
        assert search.role is not None, search.problems


def test_a_role_that_can_not_be_put_in_place_leaves_the_earlier_one(
    tutor: TrainedRole, base_folder: Path, roles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def fail_at_the_end(source: Path, target: Path) -> Path:
        if source.name == "role":
            raise OSError("no space left")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_end)
    with pytest.raises(OSError, match="no space left"):
        write_random_role(roles_dir, base_folder, role="tutor", base_digest=DIGEST, base_model="org/small", seed=9)
    assert found(roles_dir) == tutor


def guard_with(thresholds: dict[HarmCategory, dict[GradeBand, float]] | None) -> RoleManifest:
    return replace(role_manifest(b"weights", role="guard", base_digest=DIGEST), thresholds=thresholds)


EVEN: dict[HarmCategory, dict[GradeBand, float]] = {
    category: dict.fromkeys(GradeBand, 0.5) for category in HarmCategory
}


def test_the_thresholds_of_a_guard_are_kept_and_told_by_grade() -> None:
    drugs = {GradeBand.K_2: 0.2, GradeBand.G3_5: 0.3, GradeBand.G6_8: 0.4, GradeBand.G9_12: 0.6}
    manifest = guard_with(EVEN | {HarmCategory.DRUGS: drugs})

    assert RoleManifest.from_json(manifest.to_json()) == manifest
    assert manifest.thresholds_for("K")[HarmCategory.DRUGS] == 0.2
    assert manifest.thresholds_for("11") == dict.fromkeys(HarmCategory, 0.5) | {HarmCategory.DRUGS: 0.6}
    assert manifest.thresholds_for(None)[HarmCategory.DRUGS] == 0.2
    assert "| drugs | 0.2 | 0.3 | 0.4 | 0.6 |" in model_card(manifest, "")


def test_thresholds_are_complete_above_nothing_and_the_guards_alone() -> None:
    without_hate: dict[HarmCategory, dict[GradeBand, float]] = {
        category: row for category, row in EVEN.items() if category is not HarmCategory.HATE
    }
    wrongs: list[dict[HarmCategory, dict[GradeBand, float]]] = [
        without_hate,
        EVEN | {HarmCategory.HATE: {GradeBand.K_2: 0.5}},
    ]
    for wrong in wrongs:
        with pytest.raises((ValidationError, ValueError), match="one number per category and grade band"):
            guard_with(wrong)
    for number in (0.0, 1.1):
        with pytest.raises(ValidationError):
            guard_with(EVEN | {HarmCategory.HATE: dict.fromkeys(GradeBand, number)})
    grader = role_manifest(b"weights", role="grader", base_digest=DIGEST)
    with pytest.raises((ValidationError, ValueError), match="the guard's alone"):
        replace(grader, thresholds=EVEN)
    with pytest.raises(ValueError, match="the grader has no thresholds"):
        grader.thresholds_for("4")
