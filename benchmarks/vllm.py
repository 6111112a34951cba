"""The baseline of serving many adapters: a vLLM server with multi-LoRA, from the venv that `make vllm` creates.

It must run alone, because it uses all cores.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from transformers import AutoTokenizer

from benchmarks import load
from benchmarks.rig import Rig
from mesh.lm.chat import encode_prompt
from mesh.lm.lora import to_safetensors
from testing.models.peft_config import to_peft_config
from testing.models.random_adapters import SPEC
from testing.parts.part import Part, free_ports

# vLLM compiles its kernels on the first start.
READY_SECONDS = 300
# No workload needs more.
_CONTEXT_TOKENS = 512

_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """A running vLLM server with its adapters loaded.

    Attributes:
        client: An HTTP client of the server.
        adapters: The names of the adapters.
        prompts: A prompt per adapter, as tokens.
    """

    client: httpx.AsyncClient
    adapters: Sequence[str]
    prompts: Sequence[Sequence[int]]

    async def rate(self, requests: int, *, tokens: int) -> float:
        """Returns tokens per second over simultaneous requests, which take the adapters in turn."""
        started_at = time.perf_counter()
        token_counts = await asyncio.gather(*(self._complete(number, tokens=tokens) for number in range(requests)))
        return sum(token_counts) / (time.perf_counter() - started_at)

    async def _complete(self, number: int, *, tokens: int) -> int:
        """Requests one completion; returns its number of tokens."""
        index = number % len(self.adapters)
        body = {
            "model": self.adapters[index],
            "prompt": list(self.prompts[index]),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        completion = (await self.client.post("/v1/completions", json=body)).raise_for_status().json()
        return int(completion["usage"]["completion_tokens"])


@asynccontextmanager
async def vllm(rig: Rig, adapters: int) -> AsyncIterator[Vllm]:
    """Runs a vLLM server with `adapters` adapters in as many slots: yields it once it is ready, stops it at the end."""
    (port,) = free_ports(1)
    folder = rig.folder / f"vllm-{port}"
    names = [_write_adapter(rig, folder, number) for number in range(adapters)]
    env = _ENV | ({"VLLM_TARGET_DEVICE": "cpu"} if rig.options.device == "cpu" else {})
    part = Part(_command(rig, port=port, adapters=adapters), folder=folder, probe=_skip_probe, env=env)
    tokenizer = AutoTokenizer.from_pretrained(rig.files.path)
    prompts = [encode_prompt(tokenizer, load.prompt(number)) for number in range(adapters)]
    try:
        await part.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=READY_SECONDS) as client:
            await _wait_until_healthy(client, part)
            for name in names:
                body = {"lora_name": name, "lora_path": str(folder / name)}
                (await client.post("/v1/load_lora_adapter", json=body)).raise_for_status()
            yield Vllm(client=client, adapters=names, prompts=prompts)
    finally:
        await part.stop()


def _command(rig: Rig, *, port: int, adapters: int) -> list[str]:
    options = {
        "model": str(rig.files.path.resolve()),
        "served-model-name": rig.files.name,
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": rig.options.dtype,
        "max-model-len": str(_CONTEXT_TOKENS),
        "max-num-seqs": "16",
        "max-loras": str(adapters),
        "max-lora-rank": str(SPEC.rank),
    }
    args = [arg for name, value in options.items() for arg in (f"--{name}", value)]
    return [str(rig.options.vllm), "-m", "vllm.entrypoints.openai.api_server", *args, "--enable-lora"]


def _write_adapter(rig: Rig, folder: Path, number: int) -> str:
    """Writes a student's adapter as PEFT files; returns its name."""
    name = f"adapter-{number}"
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_model.safetensors").write_bytes(to_safetensors(rig.students.adapter_state(number)))
    config = json.loads(to_peft_config(SPEC, base_model=rig.files.name))
    (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return name


async def _skip_probe() -> bool:
    # A Part's probe has less time than vLLM needs to start; `_wait_until_healthy` waits for it instead.
    return True


async def _wait_until_healthy(client: httpx.AsyncClient, part: Part) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                if await _is_healthy(client):
                    return
                # Health can only be polled; this is the pause between two polls.
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise RuntimeError(f"vLLM is not healthy after {READY_SECONDS} s; its log ends:\n{part.log_tail()}") from None


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False
