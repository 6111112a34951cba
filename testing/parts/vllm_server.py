"""A real vLLM on the CPU, from the venv that `make vllm` makes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from mesh.main_brain.files import MainBrainFiles
from testing.parts.part import Part, free_ports
from testing.waiting import until

PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"
# vLLM takes a minute on two cores, more on a busy machine.
READY_SECONDS = 150
CONTEXT_TOKENS = 1024
MAX_RANK = 16
# Few, so that a test can fill them.
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
        """Starts vLLM and returns once it is healthy.

        Raises:
            RuntimeError: It did not become healthy in time; the message ends with its log.
        """
        await self.part.start()
        try:
            await until(self._is_healthy, seconds=READY_SECONDS)
        except TimeoutError:
            raise RuntimeError(f"vLLM is not healthy:\n{self.part.log_tail()}") from None

    async def count_requests(self) -> float:
        """Returns how many requests it decodes or queues, by its own metrics."""
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        async with httpx.AsyncClient(base_url=self.url) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

    async def until_running(self, count: int) -> None:
        """Returns once it has this many requests."""

        async def holds() -> bool:
            return await self.count_requests() == count

        await until(holds, seconds=10)

    async def adapters(self) -> list[str]:
        """Returns the names of the loaded adapters."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            cards = (await client.get("/v1/models")).json()["data"]
        return [card["id"] for card in cards if card["parent"]]

    async def _is_healthy(self) -> bool:
        async with httpx.AsyncClient(base_url=self.url) as client:
            try:
                return (await client.get("/health")).is_success
            except httpx.TransportError:
                return False


@asynccontextmanager
async def vllm(folder: Path, files: MainBrainFiles) -> AsyncIterator[VllmServer]:
    """Runs vLLM in fp32 with the base model and slots for two adapters."""
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
        # Its health is polled in `VllmServer.start`, as it takes longer than a part may.
        return True

    server = VllmServer(url=f"http://127.0.0.1:{port}", part=Part(command, folder=folder, probe=runs, env=ENV))
    try:
        await server.start()
        yield server
    finally:
        await server.part.stop()
