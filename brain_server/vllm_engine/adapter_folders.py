"""Students' adapters as vLLM has them: a folder in PEFT's layout that both see, loaded under a name of its own.

A name is the adapter's sha256 and a word of this loading, so that what is loaded never meets the remains of an earlier
loading, whoever is still unloading it. Knows nothing of students, pointers or policies.

The base model itself answers with a blank adapter, which changes nothing. Told to use none, vLLM's CPU build decodes
with the one in its last slot, which is a student's, as soon as another reply of the batch has an adapter
(https://github.com/vllm-project/vllm/pull/48421).
"""

import asyncio
import json
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
from brain_server.vllm_engine.client import Served, UnknownToVllm, VllmClient, VllmRefused, VllmUnreachable
from mesh.adapters.store import StoredAdapter
from mesh.errors import AdapterIncompatible, ModelNotLoaded
from mesh.lm.digests import weight_files
from mesh.log import get_logger

_log = get_logger(__name__)

# PEFT's names.
_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."

_BLANK = "base"
_NAME = re.compile(rf"({_BLANK}|[0-9a-f]{{64}})-[0-9a-f]{{8}}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmAdapter:
    """An adapter that vLLM has loaded."""

    name: str
    folder: Path


class AdapterFolders:
    """Loads adapters into one vLLM, which nobody else loads adapters into. For the event loop alone.

    Attributes:
        blank: Decodes where no student's adapter does.
    """

    def __init__(self, client: VllmClient, folder: Path, *, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Takes where adapters go.

        Args:
            client: Of the vLLM.
            folder: Ours alone, shared with vLLM under the same absolute path; made if missing.
            shapes: Of the base model's matrices [out, in], by their names.
        """
        self._client = client
        self._folder = folder.resolve()
        self._shapes = shapes
        self.blank = self._named(_BLANK)
        self._unloading: set[asyncio.Task[None]] = set()

    async def prepare(self, stored: StoredAdapter) -> VllmAdapter:
        """Loads an adapter.

        Raises:
            AdapterIncompatible: It does not fit the base model, or vLLM refuses it, as for a rank above its limit.
            VllmUnreachable: vLLM does not answer.
        """
        adapter = self._named(stored.manifest.sha256)
        try:
            await asyncio.to_thread(self._write, stored, adapter.folder)
            await self._client.load(adapter.name, adapter.folder)
        except BaseException as error:
            # What was cancelled may have been loaded by now.
            self._begin_unloading(adapter)
            if isinstance(error, VllmRefused):
                # A vLLM whose engine died refuses everything.
                await self._client.ask()
                _log.warning("adapter_refused_by_vllm", ref=str(stored.manifest.ref), status=error.status)
                why = f"vLLM refuses {stored.manifest.ref}; its log says why"
                raise AdapterIncompatible(why) from error
            raise
        return adapter

    async def load_blank(self, target_modules: Sequence[str]) -> None:
        """Loads the blank adapter, which shows, too, whether vLLM can load any.

        Args:
            target_modules: One of them is what it changes, by nothing.

        Raises:
            ModelNotLoaded: vLLM loads no adapters, or does not find them.
            VllmUnreachable: vLLM does not answer.
        """
        await asyncio.to_thread(_write_blank, self.blank.folder, self._shapes, target_modules)
        try:
            await self._client.load(self.blank.name, self.blank.folder, again=True)
        except VllmRefused as error:
            why = "vLLM loads no adapters: VLLM_ALLOW_RUNTIME_LORA_UPDATING and --enable-lora, or VLLM_ADAPTER_DIR?"
            raise ModelNotLoaded(why) from error

    async def restore(self, adapter: VllmAdapter) -> None:
        """Loads an adapter into a vLLM that was started anew; several callers may do so at once.

        Raises:
            AdapterIncompatible: vLLM refuses it now, as it may with other limits than it had.
            VllmUnreachable: vLLM does not answer.
        """
        try:
            await self._client.load(adapter.name, adapter.folder, again=True)
        except VllmRefused as error:
            raise AdapterIncompatible("vLLM was started anew and refuses the adapter; its log says why") from error

    def discard(self, adapter: HostAdapter[VllmAdapter]) -> None:
        """Unloads an adapter that nobody uses any more, and removes its folder, in the background."""
        self._begin_unloading(adapter.content)

    async def settle(self) -> None:
        """Waits for the unloading that is under way."""
        await asyncio.gather(*self._unloading)

    async def sweep(self, served: Served) -> None:
        """Unloads what an earlier brain left in this vLLM, and removes its folders.

        Raises:
            ModelNotLoaded: The folder can't be written.
            VllmUnreachable: vLLM does not answer.
        """
        for name, folder in served.adapters.items():
            if folder.parent == self._folder:
                await self._unload(VllmAdapter(name=name, folder=folder))
        try:
            await asyncio.to_thread(self._empty)
        except OSError as error:
            raise ModelNotLoaded(f"VLLM_ADAPTER_DIR can't be written: {error.strerror}") from error

    def _named(self, what: str) -> VllmAdapter:
        name = f"{what}-{secrets.token_hex(4)}"
        return VllmAdapter(name=name, folder=self._folder / name)

    def _begin_unloading(self, adapter: VllmAdapter) -> None:
        task = asyncio.create_task(self._unload(adapter), name="unload an adapter")
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, adapter: VllmAdapter) -> None:
        try:
            await self._client.unload(adapter.name)
        except (UnknownToVllm, VllmUnreachable):
            # Then it is not loaded: never was, or vLLM has been, or will be, started anew.
            pass
        except VllmRefused as error:
            _log.warning("adapter_not_unloaded", status=error.status)
        finally:
            await asyncio.to_thread(shutil.rmtree, adapter.folder, ignore_errors=True)

    def _write(self, stored: StoredAdapter, folder: Path) -> None:
        _require_fit(stored, self._shapes)
        folder.mkdir(parents=True)
        recipe = stored.manifest.recipe
        config = _peft_config(rank=recipe.lora.rank, scaling=recipe.scaling, target_modules=recipe.lora.target_modules)
        (folder / _WEIGHTS).write_bytes(stored.weights)
        (folder / _CONFIG).write_bytes(config)

    def _empty(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.iterdir():
            # Whatever else lies there, because the variable names the wrong folder, stays.
            if _NAME.fullmatch(left.name):
                shutil.rmtree(left)


def weight_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The shapes of a base model's matrices by their names, from the headers of its files."""
    shapes = {}
    for path in weight_files(folder):
        with safetensors.safe_open(path, framework="numpy") as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118 - no dict
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def _require_fit(stored: StoredAdapter, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Returns if every factor has the width of the base weight that it changes.

    vLLM finds that out when it copies the factors into a slot, in the process that decodes for everyone.
    """
    for name, tensor in safetensors.deserialize(stored.weights):  # type: ignore[no-untyped-call] # its stub has no types
        module, _, factor = str(name).removeprefix(_PREFIX).rpartition(".lora_")
        width_out, width_in = shapes.get(f"{module}.weight", (0, 0))
        found = tensor["shape"][1] if factor == "A.weight" else tensor["shape"][0]
        if found != (width_in if factor == "A.weight" else width_out):
            raise AdapterIncompatible(f"{stored.manifest.ref} does not fit the base model at {module}")


def _write_blank(folder: Path, shapes: Mapping[str, tuple[int, int]], target_modules: Sequence[str]) -> None:
    module = next((name for name in shapes if name.removesuffix(".weight").endswith(tuple(target_modules))), None)
    if module is None:
        raise ModelNotLoaded(f"the base model has none of {', '.join(target_modules)}")
    width_out, width_in = shapes[module]
    factors = {"A": np.zeros((1, width_in), np.float32), "B": np.zeros((width_out, 1), np.float32)}
    name = f"{_PREFIX}{module.removesuffix('.weight')}"
    state = {f"{name}.lora_{factor}.weight": value for factor, value in factors.items()}
    folder.mkdir(parents=True)
    (folder / _WEIGHTS).write_bytes(safetensors.numpy.save(state))
    (folder / _CONFIG).write_bytes(_peft_config(rank=1, scaling=1.0, target_modules=[name.rpartition(".")[2]]))


def _peft_config(*, rank: int, scaling: float, target_modules: Sequence[str]) -> bytes:
    """The `adapter_config.json` that vLLM reads.

    vLLM scales by `lora_alpha / r`: here by what the adapter is to be served with, which may be more or less than it
    was trained with, so that alpha is no whole number as in `mesh.lm.lora`.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": scaling * rank,
        "lora_dropout": 0.0,
        "target_modules": list(target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(config).encode()
