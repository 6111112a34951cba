"""Roles for tests: random LoRA weights on all seven linear modules of a base model, written as training writes them."""

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mesh.adapters.manifest import Lora
from mesh.lm.grading import LABELS
from mesh.lm.guarding import GUARD_LABELS, HarmCategory
from mesh.lm.lora import to_safetensors
from mesh.main_brain.roles import Calibration, RoleManifest, RoleName, TrainedRole, write_role
from mesh.tutoring.profile import GradeBand

TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

_LABELS_OF: dict[RoleName, tuple[str, ...]] = {"tutor": (), "grader": LABELS, "guard": GUARD_LABELS}


def random_role_state(base_folder: Path, *, seed: int, rank: int = 4, strength: float = 0.05) -> dict[str, Tensor]:
    """Returns factors by PEFT's names in bf16 for every target module of the model in a folder; both are random."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_folder))
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in TARGETS:
            width_out, width_in = module.weight.shape
            down_RI = torch.randn(rank, width_in, generator=generator) / width_in**0.5
            up_OR = torch.randn(width_out, rank, generator=generator) * strength
            state[f"base_model.model.{name}.lora_A.weight"] = down_RI.to(torch.bfloat16)
            state[f"base_model.model.{name}.lora_B.weight"] = up_OR.to(torch.bfloat16)
    return state


def role_manifest(
    weights: bytes, *, role: RoleName, base_digest: str, base_model: str = "small", rank: int = 4
) -> RoleManifest:
    """Returns a manifest for weights with factors of all target modules; alpha is twice the rank."""
    labels = _LABELS_OF[role]
    biases = tuple(0.1 * place for place in range(len(labels)))
    return RoleManifest(
        role=role,
        base_model=base_model,
        base_digest=base_digest,
        lora=Lora(rank=rank, alpha=2.0 * rank, target_modules=TARGETS, dtype="BF16"),
        sha256=sha256(weights).hexdigest(),
        size_bytes=len(weights),
        created_time=datetime.now(UTC),
        seed=0,
        command="python -m curriculum train --role tutor",
        labels=labels,
        calibration=Calibration(scale=0.7, biases=biases) if labels else None,
        thresholds=dict.fromkeys(HarmCategory, dict.fromkeys(GradeBand, 0.5)) if role == "guard" else None,
        evaluation={"macro_f1": 0.8},
        data_digests={"lessons": "1" * 64},
    )


def write_random_role(
    roles_dir: Path,
    base_folder: Path,
    *,
    role: RoleName,
    base_digest: str,
    base_model: str = "small",
    seed: int = 0,
) -> TrainedRole:
    """Writes a role with random weights for the model in a folder."""
    weights = to_safetensors(random_role_state(base_folder, seed=seed))
    manifest = role_manifest(weights, role=role, base_digest=base_digest, base_model=base_model)
    return write_role(roles_dir, weights, manifest)
