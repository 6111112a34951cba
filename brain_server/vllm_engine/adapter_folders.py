"""Adapters in vLLM: each is a folder in PEFT's layout, which both processes see, loaded under a unique name.

A name is the adapter's sha256 and a random suffix per load, so that a new load never collides with an earlier one that
is still being unloaded. Knows nothing of students, pointers or policies.

The base model answers with a blank adapter, which changes nothing. For a request without an adapter, vLLM's CPU build
decodes with the adapter in its last slot, which is a student's, as soon as another reply of the batch has one
(https://github.com/vllm-project/vllm/pull/48421).
"""

import asyncio
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from brain_server.adapters.host_tier import HostAdapter
from brain_server.vllm_engine.client import ServedModel, UnknownToVllm, VllmClient, VllmRefused, VllmUnreachable
from mesh.adapters.manifest import Lora
from mesh.adapters.peft_config import CONFIG_FILE, WEIGHTS_FILE, peft_config
from mesh.adapters.store import StoredAdapter
from mesh.errors import AdapterIncompatible, ModelNotLoaded
from mesh.lm.digests import weight_files
from mesh.log import get_logger
from mesh.main_brain.roles import TrainedRole

_log = get_logger(__name__)

# PEFT's prefix of tensor names.
_PREFIX = "base_model.model."

_BLANK = "base"
_NAME = re.compile(rf"({_BLANK}|[0-9a-f]{{64}})-[0-9a-f]{{8}}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmAdapter:
    """An adapter in vLLM.

    Attributes:
        name: What completions name it by.
        folder: What vLLM loads it from.
    """

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _AdapterFiles:
    """What is written to an adapter's folder. `label` names the adapter in errors."""

    label: str
    weights: bytes
    lora: Lora
    scaling: float


class AdapterFolders:
    """Loads adapters into one vLLM server, which has no other client that does. For the event loop alone.

    Attributes:
        blank: The adapter that changes nothing, for replies of the base model.
    """

    def __init__(self, client: VllmClient, folder: Path, *, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Takes the server and the folder.

        Args:
            client: A client of the server.
            folder: Holds the adapters' folders and is not used for anything else. vLLM sees it under the same absolute
                path. Created if missing.
            shapes: Shapes of the base model's matrices [out, in], by name.
        """
        self._client = client
        self._folder = folder.resolve()
        self._shapes = shapes
        self.blank = self._new_adapter(_BLANK)
        self._unloading: set[asyncio.Task[None]] = set()

    async def prepare(self, stored_adapter: StoredAdapter) -> VllmAdapter:
        """Loads an adapter.

        Raises:
            AdapterIncompatible: It does not fit the base model, or vLLM refuses it, as for a rank above its limit.
            VllmUnreachable: vLLM does not answer.
        """
        manifest = stored_adapter.manifest
        files = _AdapterFiles(
            label=str(manifest.ref),
            weights=stored_adapter.weights,
            lora=manifest.recipe.lora,
            scaling=manifest.recipe.scaling,
        )
        return await self._load(self._new_adapter(manifest.sha256), files)

    async def load_role(self, role: TrainedRole) -> VllmAdapter:
        """Loads a role's adapter.

        Raises:
            AdapterCorrupt: Its files have changed.
            AdapterIncompatible: As `prepare`.
            VllmUnreachable: vLLM does not answer.
        """
        manifest = role.manifest
        weights = await asyncio.to_thread(role.read_weights)
        files = _AdapterFiles(
            label=f"the {manifest.role}", weights=weights, lora=manifest.lora, scaling=manifest.scaling
        )
        return await self._load(self._new_adapter(manifest.sha256), files)

    async def load_blank(self, target_modules: Sequence[str]) -> None:
        """Loads the blank adapter, which also proves that vLLM can load adapters.

        Args:
            target_modules: Names of the base model's modules; the adapter has zeros for the first one that exists.

        Raises:
            ModelNotLoaded: vLLM does not load adapters, or does not find their folder.
            VllmUnreachable: vLLM does not answer.
        """
        await asyncio.to_thread(_write_blank, self.blank.folder, self._shapes, target_modules)
        try:
            await self._client.load(self.blank.name, self.blank.folder, replace=True)
        except VllmRefused as error:
            why = (
                "vLLM does not load adapters: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, "
                "and let it see VLLM_ADAPTER_DIR under the same path"
            )
            raise ModelNotLoaded(why) from error

    async def restore(self, adapter: VllmAdapter) -> None:
        """Loads an adapter again after vLLM was restarted; several callers may do so at once.

        Raises:
            AdapterIncompatible: vLLM refuses it now, as after a restart with lower limits.
            VllmUnreachable: vLLM does not answer.
        """
        try:
            await self._client.load(adapter.name, adapter.folder, replace=True)
        except VllmRefused as error:
            raise AdapterIncompatible("vLLM was restarted and now refuses the adapter; see the log of vLLM") from error

    def discard(self, adapter: HostAdapter[VllmAdapter]) -> None:
        """Unloads an adapter that is no longer in use, and removes its folder, in the background."""
        self._begin_unloading(adapter.content)

    async def settle(self) -> None:
        """Waits until the adapters that are being unloaded are unloaded."""
        await asyncio.gather(*self._unloading)

    async def sweep(self, served_model: ServedModel) -> None:
        """Unloads the adapters that an earlier brain process loaded, and removes their folders.

        Raises:
            ModelNotLoaded: The folder is not writable.
            VllmUnreachable: vLLM does not answer.
        """
        for name, folder in served_model.adapters.items():
            if folder.parent == self._folder:
                await self._unload(VllmAdapter(name=name, folder=folder))
        try:
            await asyncio.to_thread(self._empty)
        except OSError as error:
            raise ModelNotLoaded(f"the folder of VLLM_ADAPTER_DIR is not writable: {error.strerror}") from error

    def _new_adapter(self, name_prefix: str) -> VllmAdapter:
        name = f"{name_prefix}-{secrets.token_hex(4)}"
        return VllmAdapter(name=name, folder=self._folder / name)

    def _begin_unloading(self, adapter: VllmAdapter) -> None:
        task = asyncio.create_task(self._unload(adapter), name="unload an adapter")
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, adapter: VllmAdapter) -> None:
        try:
            await self._client.unload(adapter.name)
        except (UnknownToVllm, VllmUnreachable):
            # Then it is not loaded: the load failed, or vLLM was, or will be, restarted.
            pass
        except VllmRefused as error:
            _log.warning("adapter_not_unloaded", status=error.status)
        finally:
            await asyncio.to_thread(shutil.rmtree, adapter.folder, ignore_errors=True)

    async def _load(self, adapter: VllmAdapter, files: "_AdapterFiles") -> VllmAdapter:
        try:
            await asyncio.to_thread(self._write, files, adapter.folder)
            await self._client.load(adapter.name, adapter.folder)
        except BaseException as error:
            # vLLM may have loaded it although the call failed or was cancelled.
            self._begin_unloading(adapter)
            if isinstance(error, VllmRefused):
                # A vLLM server whose engine died refuses everything: this raises if so.
                await self._client.query_served_model()
                _log.warning("adapter_refused_by_vllm", ref=files.label, status=error.status)
                raise AdapterIncompatible(f"vLLM refuses {files.label}; see the log of vLLM") from error
            raise
        return adapter

    def _write(self, files: "_AdapterFiles", folder: Path) -> None:
        _require_fit(files, self._shapes)
        folder.mkdir(parents=True)
        # vLLM scales by alpha / rank, and an adapter may be served with another scaling than it was trained with.
        config = peft_config(
            base_model="",
            rank=files.lora.rank,
            alpha=files.scaling * files.lora.rank,
            target_modules=files.lora.target_modules,
        )
        (folder / WEIGHTS_FILE).write_bytes(files.weights)
        (folder / CONFIG_FILE).write_bytes(config)

    def _empty(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            # Anything else stays: the setting may name the wrong folder.
            if _NAME.fullmatch(path.name):
                shutil.rmtree(path)


def weight_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the shapes of a base model's matrices [out, in] by name, from the headers of its files."""
    shapes = {}
    for path in weight_files(folder):
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 - no dict
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def _require_fit(files: _AdapterFiles, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raises `AdapterIncompatible` if a factor does not have the width of the base weight that it changes.

    vLLM notices this only when it copies the factors into a slot, in the process that decodes all replies.
    """
    for name, tensor in safetensors.deserialize(files.weights):  # type: ignore[no-untyped-call] # its stub has no types
        module, _, factor = str(name).removeprefix(_PREFIX).rpartition(".lora_")
        width_out, width_in = shapes.get(f"{module}.weight", (0, 0))
        width = tensor["shape"][1] if factor == "A.weight" else tensor["shape"][0]
        if width != (width_in if factor == "A.weight" else width_out):
            raise AdapterIncompatible(f"{files.label} does not fit the base model at {module}")


def _write_blank(folder: Path, shapes: Mapping[str, tuple[int, int]], target_modules: Sequence[str]) -> None:
    module = next((name for name in shapes if name.removesuffix(".weight").endswith(tuple(target_modules))), None)
    if module is None:
        raise ModelNotLoaded(
            f"the base model lacks {', '.join(target_modules)}; set ADAPTER_TARGET_MODULES to modules it has"
        )
    width_out, width_in = shapes[module]
    factors = {"A": np.zeros((1, width_in), np.float32), "B": np.zeros((width_out, 1), np.float32)}
    name = f"{_PREFIX}{module.removesuffix('.weight')}"
    state = {f"{name}.lora_{factor}.weight": value for factor, value in factors.items()}
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(state))
    config = peft_config(base_model="", rank=1, alpha=1.0, target_modules=[name.rpartition(".")[2]])
    (folder / CONFIG_FILE).write_bytes(config)
