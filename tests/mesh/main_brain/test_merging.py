"""The merged weights: equal to those of PEFT, rounded once, and loaded like any base model."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from mesh.lm.base_files import fetch
from mesh.main_brain.base import Quantization, load_base, load_files
from mesh.main_brain.files import fetch_main_brain, main_brain_digest
from mesh.main_brain.merging import _from_float32
from mesh.main_brain.roles import TrainedRole
from testing.models.random_roles import write_random_role
from tests.mesh.main_brain.reference_models import load, logits_of


def state_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_tensors(path).items()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def test_the_merged_weights_are_those_of_peft(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole, base_weights_digest: str
) -> None:
    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])

    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), tutor.folder)
    with_adapter = logits_of(reference)
    merged = reference.merge_and_unload().state_dict()
    written = state_of(brain.path)
    assert set(written) == set(state_of(base_folder))
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits_of(load(brain.path)), with_adapter, atol=1e-4, rtol=1e-4)
    assert (brain.tutor, brain.base_weights_digest, brain.problems) == (tutor, base_weights_digest, ())
    assert brain.digest == main_brain_digest(base_weights_digest, tutor.manifest.sha256) != base_weights_digest
    assert brain.path.parent == cache
    # Under other names, every machine would merge again.
    record = json.loads((brain.path / "aivo.json").read_text())
    assert set(record) == {"merge_version", "base_digest", "tutor_sha256", "weights_sha256"}
    assert record["base_digest"] == base_weights_digest
    # Embeddings, which are tied, are as they were.
    name = "model.embed_tokens.weight"
    assert torch.equal(written[name], state_of(base_folder)[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_once(
    dtype: torch.dtype, base_folder: Path, cache: Path, roles_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype).save_pretrained(folder)
    digest = fetch(str(folder), cache).digest
    tutor = write_random_role(roles_dir, folder, role="tutor", base_digest=digest)

    brain = fetch_main_brain(str(folder), cache, [roles_dir])

    whole = PeftModel.from_pretrained(load(folder), tutor.folder)
    exact = whole.merge_and_unload().state_dict()
    for name, tensor in state_of(brain.path).items():
        assert tensor.dtype == dtype
        # Equal but where the last bit of the sum in fp32 decides.
        assert (tensor != exact[name].to(dtype)).float().mean() < 0.001, name
        torch.testing.assert_close(
            tensor.float(), exact[name], rtol=2.0 ** (-8 if dtype == torch.bfloat16 else -10), atol=1e-6
        )


def test_rounding_to_bf16_is_that_of_torch() -> None:
    values = torch.cat([torch.randn(10_000), torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 1e-40])])
    expected = values.to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(np.frombuffer(_from_float32(values.numpy(), "BF16"), "<u2"), expected)


def test_the_merged_folder_loads_with_config_and_tokenizer(
    base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    base = load_base(str(base_folder), cache_dir=cache, roles_dirs=[roles_dir], device="cpu", dtype="float32")
    plain = load_base(str(base_folder), cache_dir=cache, roles_dirs=(), device="cpu", dtype="float32")

    assert (base.name, base.digest, base.main_brain.tutor) == (str(base_folder), base.main_brain.digest, tutor)
    assert plain.digest == base.main_brain.base_weights_digest
    assert plain.main_brain.tutor is None
    assert base.tokenizer.chat_template == plain.tokenizer.chat_template
    assert not torch.allclose(logits_of(base.model), logits_of(plain.model), atol=0.1)
    assert base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_loading_packs_the_merged_weights(
    quantization: Quantization, base_folder: Path, cache: Path, roles_dir: Path, tutor: TrainedRole
) -> None:
    brain = fetch_main_brain(str(base_folder), cache, [roles_dir])
    plain = fetch_main_brain(str(base_folder), cache, ())
    packed = load_files(brain, device="cpu", dtype="bfloat16", quantization=quantization)

    from_merged = (logits_of(packed.model) - logits_of(load(brain.path))).norm()
    from_plain = (logits_of(packed.model) - logits_of(load(plain.path))).norm()

    assert packed.digest == brain.digest
    assert from_merged < 0.5 * from_plain
