"""This process's place in Ray: its own Ray on this machine or, with `RAY_ADDRESS`, a cluster's node here.

A process speaks to Ray through the node on its own machine, and never again once that node has died. So whoever joined
looks now and then whether it is lost, leaves, and joins anew.
"""

import os
import signal
import threading

import ray
import torch
from ray.exceptions import RayError

from cloning_server.settings import CloningSettings

# What a plan, its progress and its adapter need is small; Ray's default is a third of the machine's memory.
OBJECT_STORE_BYTES = 128 * 1024 * 1024


def cpus_of(settings: CloningSettings) -> float:
    """The CPUs of one trainer."""
    cores = os.cpu_count() or 1
    # Those of a Ray of our own have to fit beside each other; a cluster's may each have a machine to themselves.
    return settings.trainer_cpus or (cores if settings.ray_address else max(1, cores // settings.trainers))


def join(settings: CloningSettings) -> bool:
    """Joins Ray, which takes seconds; returns whether that was to be done, and so is for the caller to undo.

    Raises:
        OSError, RuntimeError, RayError: Ray does not start, can't be reached, or is of another version.
    """
    # Ray reads these when it starts: nothing is reported to its makers, and its workers leave CUDA's choice alone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    if settings.ray_address:
        ray.init(address=settings.ray_address, log_to_driver=False, configure_logging=False)
        return True
    ray.init(
        # Never a cluster that someone else left running on this machine.
        address="local",
        num_cpus=max(1, round(cpus_of(settings) * settings.trainers)),
        num_gpus=torch.cuda.device_count() if settings.trainer_gpus else 0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=True,
        configure_logging=False,
    )
    return True


def is_lost() -> bool:
    """Whether Ray's node on this machine has died, or somebody in this process has left it.

    Asks Ray's head, which notices a death within some seconds. Without an answer it says no: Ray itself ends this
    process when its head is away for a minute.
    """
    if not ray.is_initialized():
        return True
    try:
        nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray types few of its functions
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return ray.get_runtime_context().get_node_id() not in alive
    except (OSError, RuntimeError, RayError):
        return False


def take_back_sigterm() -> None:
    """Undoes that Ray, when it starts, takes SIGTERM for a crash and aborts the process three seconds after it.

    Its C++ core sets the handler past Python's back; setting the one again that Python knows of ousts it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
