"""Says in one line when the whole stack answers through the gateway, and stays.

`python -m client.ready` is a process of the `Procfile`: its end would stop the others.
"""

import asyncio
import os

from client.brain import BrainClient
from client.cloning import CloningClient
from mesh.errors import AivoError, DeadlineExceeded, Unavailable

_PAUSE_SECONDS = 0.5
_READY = ("healthy", "degraded")


async def main() -> None:
    """Waits until both servers are ready, says so, and waits to be stopped."""
    host = "127.0.0.1"
    brain = f"{host}:{os.environ.get('BRAIN_REST_PORT', '8001')}"
    cloning = f"{host}:{os.environ.get('CLONING_REST_PORT', '8014')}"
    # Through the gateway, so that its health is shown too.
    async with BrainClient(brain) as brain_client, CloningClient(cloning) as cloning_client:
        await _until_ready("brain", brain_client)
        await _until_ready("cloning", cloning_client)
    _say(f"AIVO is ready: brain http://{brain}  cloning http://{cloning}  (try: make demo; Ctrl-C stops all)")
    await asyncio.Event().wait()


async def _until_ready(name: str, client: BrainClient | CloningClient) -> None:
    printed = ""
    while (fault := await _fault(name, client)) is not None:
        if fault and fault != printed:
            _say(fault)
            printed = fault
        await asyncio.sleep(_PAUSE_SECONDS)


async def _fault(name: str, client: BrainClient | CloningClient) -> str | None:
    """Returns why a server is not ready, empty for one that just needs time; None for one that is ready."""
    try:
        health = await client.health()
    except (Unavailable, DeadlineExceeded):
        # Not up yet. If a part dies, the stack stops, and this process with it.
        return ""
    except AivoError as error:
        # Time does not help: such as a gateway whose ALLOWED_HOSTS lack 127.0.0.1.
        return f"{name} can't be asked through the gateway: {error}"
    if health.status in _READY:
        return None
    return "" if health.status == "loading" else f"{name} is {health.status}: {health.reason}"


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- the terminal of `make up` is where it belongs


if __name__ == "__main__":
    asyncio.run(main())
