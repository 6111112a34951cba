"""This process's connection to Ray: to a Ray of its own or, with `RAY_ADDRESS`, to a cluster's node on this machine.

A process connects through the node on its own machine, and its connection does not survive that node. So the trainer
checks regularly whether the node is lost, disconnects, and joins again.
"""

import contextlib
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray._private import ray_constants
from ray.exceptions import RayError

from cloning_server.settings import CloningSettings

# Enough for plans, progress and adapters; Ray's default is a third of the machine's memory.
OBJECT_STORE_BYTES = 128 * 1024 * 1024


def cpus_of(settings: CloningSettings) -> float:
    """The CPUs of one trainer."""
    cores = os.cpu_count() or 1
    # Trainers in our own Ray share this machine; trainers of a cluster may each have a machine to themselves.
    return settings.trainer_cpus or (cores if settings.ray_address else max(1, cores // settings.trainers))


def join(settings: CloningSettings) -> bool:
    """Joins Ray, which takes seconds.

    Returns:
        Whether this call joined, so that the caller has to shut Ray down; False if the process had joined before.

    Raises:
        OSError, RuntimeError, RayError: Ray does not start, can't be reached, or has another version.
    """
    # Ray reads these when it starts: send no usage statistics, and leave CUDA_VISIBLE_DEVICES of workers alone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    if settings.ray_address:
        _init(address=settings.ray_address, log_to_driver=False, configure_logging=False)
        return True
    # Ray asks callers for a token. Drawn here, it lies in no file, where Ray's own would stay.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with _on_loopback():
        _start(settings)
    return True


def _start(settings: CloningSettings) -> None:
    """Starts a Ray of this process's own."""
    _init(
        # Never a cluster that happens to run on this machine.
        address="local",
        num_cpus=max(1, round(cpus_of(settings) * settings.trainers)),
        num_gpus=torch.cuda.device_count() if settings.trainer_gpus else 0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=True,
        configure_logging=False,
    )


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """While it is open, a Ray that starts listens on loopback alone.

    On Linux, Ray takes the machine's own address in place of a loopback address, and listens on every interface. Only a
    private constant prevents this, the one that says whether there are clusters; on macOS it is always false.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def is_lost() -> bool:
    """Whether Ray's node on this machine has died, or this process has disconnected from it.

    Asks Ray's head node, which notices a death within some seconds. Returns False if the head does not answer: Ray
    itself ends this process if its head is gone for a minute.
    """
    if not ray.is_initialized():
        return True
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray types few of its functions
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return ray.get_runtime_context().get_node_id() not in alive
    except (OSError, RuntimeError, RayError):
        return False


def restore_sigterm() -> None:
    """Restores the SIGTERM handler, which Ray replaces when it starts: its own aborts the process after three seconds.

    Ray's C++ core installs its handler without Python's knowledge; setting Python's own handler again replaces it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _init(**options: Any) -> None:  # noqa: ANN401 - ray.init declares types for each option
    """Calls `ray.init`.

    Raises:
        OSError, RuntimeError, RayError: Ray does not start.
    """
    try:
        ray.init(**options)
    except (OSError, RuntimeError, RayError):
        raise
    except Exception as error:
        # Ray has no class for this: "The current node timed out during startup", on a machine that is busy.
        raise RuntimeError(str(error)) from error
