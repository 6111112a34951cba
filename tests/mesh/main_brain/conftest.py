"""A small base model in several files, and a random tutor for it."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerBase

from mesh.lm.base_files import fetch
from mesh.main_brain.roles import TrainedRole
from testing.models.random_roles import write_random_role
from testing.models.small_models import small_model


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A small model with tied embeddings, in fp32, in several files."""
    folder = tmp_path_factory.mktemp("models") / "small"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    small_model(config).save_pretrained(folder, max_shard_size="200KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def roles_dir(tmp_path: Path) -> Path:
    return tmp_path / "roles"


@pytest.fixture
def base_weights_digest(base_folder: Path, cache: Path) -> str:
    return fetch(str(base_folder), cache).digest


@pytest.fixture
def tutor(roles_dir: Path, base_folder: Path, base_weights_digest: str) -> TrainedRole:
    return write_random_role(
        roles_dir, base_folder, role="tutor", base_digest=base_weights_digest, base_model=str(base_folder)
    )
