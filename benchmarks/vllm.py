"""vLLM on the CPU with multi-LoRA, from the venv that `make vllm` makes: the peer that is measured beside the brain.

It runs alone: what else needs the cores is stopped first.
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
from benchmarks.stage import Stage
from mesh.lm.chat import encode_prompt
from mesh.lm.lora import to_peft_config, to_safetensors
from testing.models.random_adapters import SPEC
from testing.parts.part import Part, free_ports

# It compiles its kernels on the first start.
READY_SECONDS = 300
# Above what any of the workloads needs.
_CONTEXT_TOKENS = 512

_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """A running vLLM with its adapters loaded.

    Attributes:
        adapters: Their names.
        prompts: In tokens, one for each adapter.
    """

    client: httpx.AsyncClient
    adapters: Sequence[str]
    prompts: Sequence[Sequence[int]]

    async def rate(self, requests: int, *, tokens: int) -> tuple[float, int]:
        """Tokens a second over requests at the same time, adapter by adapter in turn, and how many tokens came."""
        began_at = time.perf_counter()
        token_counts = await asyncio.gather(*(self._reply(number, tokens=tokens) for number in range(requests)))
        return sum(token_counts) / (time.perf_counter() - began_at), sum(token_counts)

    async def _reply(self, number: int, *, tokens: int) -> int:
        place = number % len(self.adapters)
        body = {
            "model": self.adapters[place],
            "prompt": list(self.prompts[place]),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = (await self.client.post("/v1/completions", json=body)).raise_for_status().json()
        return int(answer["usage"]["completion_tokens"])


@asynccontextmanager
async def vllm(stage: Stage, adapters: int) -> AsyncIterator[Vllm]:
    """Runs it with so many adapters in as many slots; it is gone when this is left."""
    (port,) = free_ports(1)
    folder = stage.folder / f"vllm-{port}"
    names = [_write(stage, folder, number) for number in range(adapters)]
    flags = {
        "model": str(stage.files.path.resolve()),
        "served-model-name": stage.files.name,
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": stage.options.dtype,
        "max-model-len": str(_CONTEXT_TOKENS),
        "max-num-seqs": "16",
        "max-loras": str(adapters),
        "max-lora-rank": str(SPEC.rank),
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [str(stage.options.vllm), "-m", "vllm.entrypoints.openai.api_server", *words, "--enable-lora"]
    env = _ENV | ({"VLLM_TARGET_DEVICE": "cpu"} if stage.options.device == "cpu" else {})
    part = Part(command, folder=folder, probe=_at_once, env=env)
    tokenizer = AutoTokenizer.from_pretrained(stage.files.path)
    prompts = [encode_prompt(tokenizer, load.prompt(number)) for number in range(adapters)]
    try:
        await part.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=READY_SECONDS) as client:
            await _until_well(client, part)
            for name in names:
                body = {"lora_name": name, "lora_path": str(folder / name)}
                (await client.post("/v1/load_lora_adapter", json=body)).raise_for_status()
            yield Vllm(client=client, adapters=names, prompts=prompts)
    finally:
        await part.stop()


def _write(stage: Stage, folder: Path, number: int) -> str:
    name = f"adapter-{number}"
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_model.safetensors").write_bytes(to_safetensors(stage.students.state(number)))
    config = json.loads(to_peft_config(SPEC, base_model=stage.files.name))
    (folder / name / "adapter_config.json").write_text(json.dumps(config))
    return name


async def _at_once() -> bool:
    # Other parts must answer sooner than vLLM can; it is waited for below.
    return True


async def _until_well(client: httpx.AsyncClient, part: Part) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                if await _is_well(client):
                    return
                # Between questions, as a load balancer would.
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise RuntimeError(f"vLLM is not well:\n{part.log_tail()}") from None


async def _is_well(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False
