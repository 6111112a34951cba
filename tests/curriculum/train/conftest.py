"""A base model on which a role is trained in seconds: two small random layers, and the default model's tokenizer."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from testing.models.small_models import write_small_llama


@pytest.fixture(scope="package")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models"))
    tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, cache_dir).path)
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.fixture(scope="package")
def small_base(small_folder: Path) -> BaseModel:
    return load_base(str(small_folder), cache_dir=small_folder.parent, device="cpu", dtype="float32")
