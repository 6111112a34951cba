"""The real default base model, fetched once for the tests of language model and tutoring."""

import os
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from mesh.lm.base_files import BaseModelFiles, fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base


@pytest.fixture(scope="package")
def cache_dir() -> Path:
    return Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models"))


@pytest.fixture(scope="package")
def files(cache_dir: Path) -> BaseModelFiles:
    return fetch(DEFAULT_BASE_MODEL, cache_dir)


@pytest.fixture(scope="package")
def base(files: BaseModelFiles, cache_dir: Path) -> BaseModel:
    """Without its tutor, in fp32, for exact comparisons; tests that attach an adapter load their own."""
    return load_base(files.name, cache_dir=cache_dir, roles_dirs=(), device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    return base.tokenizer
