"""Exports a version of a student's model as a folder that PEFT and vLLM load.

Reads the adapter store with the caller's own credentials: no server hands out weights (ADR 32).
"""

import asyncio
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from client.commands import DONE, FAILED
from client.running import fail
from mesh.adapters.manifest import Manifest
from mesh.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import AdapterIncompatible, InvalidField, StudentModelNotFound, Violation
from mesh.main_brain.files import fetch_main_brain, merged_folder_name
from mesh.main_brain.roles import roles_folders
from mesh.settings import AdapterStoreSettings, BaseModelSettings

_BASE_FOLDER = "main_brain"
_WITH_BASE = f"This Main Brain is in the folder `{_BASE_FOLDER}` beside this file."

_out = Console(highlight=False, markup=False, soft_wrap=True)


class ExportSettings(AdapterStoreSettings, BaseModelSettings):
    """Where adapters are stored, and where Main Brains are made."""


async def export_version(
    settings: ExportSettings, student_id: str, version: int | None, folder: Path, *, with_base: bool
) -> int:
    """Writes a version that was checked against its SHA-256 to a folder, whole or not at all; returns the exit status.

    Args:
        settings: Where to read.
        student_id: The student.
        version: The version; None for the active one.
        folder: Where to; must not exist, or be empty.
        with_base: Add the Main Brain that the version fits.

    Raises:
        InvalidField: The folder has content, or the student's id is malformed.
        StudentModelNotFound, ModelVersionNotFound: There is no such version.
        AdapterCorrupt: What is stored is not what was published.
        AdapterIncompatible: This machine does not make the Main Brain that the version fits.
        AdapterStoreUnavailable, BaseModelUnavailable: The store, or the base model, can't be reached.
    """
    try:
        await asyncio.to_thread(_require_free, folder)
        stored = await _fetch(settings, student_id, version)
        base_folder = await asyncio.to_thread(_make_base, settings, stored.manifest) if with_base else None
        await asyncio.to_thread(_write, stored, folder, base_folder)
    except OSError as error:
        fail(f"{folder} can't be written: {error.strerror or error}", FAILED)
    manifest = stored.manifest
    _out.print(f"{student_id}: version {manifest.ref.version} ({manifest.sha256[:12]}) is in {folder}")
    _out.print(f"It fits the Main Brain {manifest.recipe.base_digest[:12]} and no other: see {folder / 'README.md'}")
    return DONE


def _require_free(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InvalidField([Violation("output", "exists and has content, which is not replaced; name another folder")])


async def _fetch(settings: ExportSettings, student_id: str, version: int | None) -> StoredAdapter:
    # A server creates its bucket if there is none. An export does not, so that a wrong S3_BUCKET is an error.
    blobs = S3Blobs(
        bucket=settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        connect_timeout_seconds=settings.s3_connect_timeout_seconds,
        read_timeout_seconds=settings.s3_read_timeout_seconds,
    )
    async with blobs:
        store = AdapterStore(blobs, tenant=settings.tenant)
        if version is not None:
            return await store.fetch(store.ref(student_id, version))
        active = await store.resolve_active(student_id)
        if active is None:
            raise StudentModelNotFound(student_id=student_id)
        return await store.fetch(active.ref, sha256=active.sha256)


def _make_base(settings: ExportSettings, manifest: Manifest) -> Path:
    recipe = manifest.recipe
    files = fetch_main_brain(recipe.base_model, settings.model_cache_dir, roles_folders(settings.roles_dir))
    if files.digest != recipe.base_digest:
        raise AdapterIncompatible(
            f"version {manifest.ref.version} fits the Main Brain {recipe.base_digest[:12]}, and this machine makes "
            f"{files.digest[:12]}; set ROLES_DIR to the roles with which it was made"
        )
    return files.path


def _write(stored: StoredAdapter, folder: Path, base_folder: Path | None) -> None:
    """Writes all files beside the folder and renames it last, so that it is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.part-") as workspace:
        whole = Path(workspace) / "adapter"
        whole.mkdir()
        (whole / WEIGHTS_FILE).write_bytes(stored.weights)
        (whole / CONFIG_FILE).write_bytes(stored.manifest.recipe.peft_config)
        # Of schema 2, whatever the schema in the store, as the weights have PEFT's name here.
        (whole / "manifest.json").write_bytes(replace(stored.manifest, schema=2).to_json())
        (whole / "README.md").write_text(_card(stored.manifest, has_base=base_folder is not None), encoding="utf-8")
        if base_folder is not None:
            shutil.copytree(base_folder, whole / _BASE_FOLDER)
        whole.replace(folder)


def _card(manifest: Manifest, *, has_base: bool) -> str:
    """Returns what a person needs to know who loads the folder, as Markdown."""
    ref, recipe = manifest.ref, manifest.recipe
    lora = recipe.lora
    base = _WITH_BASE if has_base else _how_to_make_base(manifest)
    base_path = _BASE_FOLDER if has_base else "MAIN_BRAIN"
    return f"""# Version {ref.version} of the model of {ref.student_id}

A LoRA adapter that AIVO trained, in the layout of [PEFT](https://huggingface.co/docs/peft).

- SHA-256 of `{WEIGHTS_FILE}`: `{manifest.sha256}`.
- LoRA of rank {lora.rank} on {", ".join(lora.target_modules)}.
- `{CONFIG_FILE}` holds the strength that AIVO serves with: training's alpha of {lora.alpha:g}, times the scale of
  {recipe.scale:g} that was picked on held-out examples.

## What it fits

It fits the Main Brain with the digest `{recipe.base_digest}`: the base model
{recipe.base_model} with the tutor of AIVO merged into it, if it has one. On the base model as it was published, or on
another Main Brain, the adapter loads without an error and says something else.

{base}

## How to load it

In the following, `{base_path}` is the folder of the Main Brain, and `.` is this folder.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base_path}")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_path}"), ".")
```

```sh
vllm serve {base_path} --enable-lora --max-lora-rank {lora.rank} --lora-modules student=.
```

The instructions that AIVO writes into the prompt for this student, and its screening, are not in this folder.

## It is personal data

It was trained on what a student wrote. Deleting the student in AIVO does not remove this folder: remove it yourself.
"""


def _how_to_make_base(manifest: Manifest) -> str:
    ref, recipe = manifest.ref, manifest.recipe
    folder = merged_folder_name(recipe.base_model, recipe.base_digest)
    command = f"aivo models export {ref.student_id} --version {ref.version} --output FOLDER --with-base"
    return f"""To get this Main Brain:

- A server that runs it has it in the folder `{folder}` of its `MODEL_CACHE_DIR`, if it has a tutor.
- `{command}` makes it, as the folder
  `{_BASE_FOLDER}`, and checks the digest. It needs the roles of that server (`ROLES_DIR`)."""
