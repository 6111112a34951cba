"""A real vLLM on the CPU, from the venv that `make vllm` makes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from mesh.lm.weights import BaseModelFiles
from testing.parts.parts import Part, free_ports
from testing.waiting import until

PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"
# vLLM takes a minute on two cores, more on a busy machine.
READY_SECONDS = 150
CONTEXT_TOKENS = 1024
MAX_RANK = 16
# Few enough to be filled.
MAX_SEQS = 4

ENV = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServer:
    """A running vLLM."""

    url: str
    part: Part

    async def start(self) -> None:
        """Starts it, and returns when it is well.

        Raises:
            RuntimeError: It is not well in time; the message ends with its log.
        """
        await self.part.start()
        try:
            await until(self._is_well, seconds=READY_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"vLLM is not well:\n{self.part.log_tail()}") from None

    async def running(self) -> float:
        """Requests that it decodes or holds waiting, as its own metrics tell."""
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        async with httpx.AsyncClient(base_url=self.url) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

    async def until_running(self, count: int) -> None:
        """Returns when it decodes so many requests."""

        async def holds() -> bool:
            return await self.running() == count

        await until(holds, seconds=10)

    async def adapters(self) -> list[str]:
        """Names of the adapters that it knows."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            cards = (await client.get("/v1/models")).json()["data"]
        return [card["id"] for card in cards if card["parent"]]

    async def _is_well(self) -> bool:
        async with httpx.AsyncClient(base_url=self.url) as client:
            try:
                return (await client.get("/health")).is_success
            except httpx.TransportError:
                return False


@asynccontextmanager
async def vllm(folder: Path, files: BaseModelFiles) -> AsyncIterator[VllmServer]:
    """Runs vLLM in fp32 with the base model, with slots for two adapters at a time."""
    (port,) = free_ports(1)
    flags = {
        "model": str(files.path.resolve()),
        "served-model-name": files.name,
        "host": "127.0.0.1",
        "port": str(port),
        "dtype": "float32",
        "max-model-len": str(CONTEXT_TOKENS),
        "max-num-seqs": str(MAX_SEQS),
        "max-loras": "2",
        "max-lora-rank": str(MAX_RANK),
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", *words, "--enable-lora", "--enforce-eager"]

    async def runs() -> bool:
        # That it is well takes longer than other parts may.
        return True

    server = VllmServer(url=f"http://127.0.0.1:{port}", part=Part(command, folder=folder, probe=runs, env=ENV))
    try:
        await server.start()
        yield server
    finally:
        await server.part.stop()
