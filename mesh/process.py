"""Environment variables that C++ libraries read once, when they load. Call these before importing torch or grpc.

A program calls them first thing in `main`; importing a module never changes its process.
"""

import os

# Spins, before a thread of torch sleeps that waits for another. 1,000 take a few microseconds. GNU OpenMP's own default
# of 300,000 takes about a millisecond.
SHORT_SPIN = "1000"
LONG_SPIN = "300000"


def share_cores() -> None:
    """Makes waiting threads of torch sleep early, for a process that shares its cores with another.

    By default a waiting thread spins for long and takes the core from the very thread it waits for: a step of eight
    replies took 364 ms in each of two processes on two cores, and 50 ms with a short spin. One process may spin for
    long; serving does (`keep_cores`). A value that the environment sets wins.
    """
    _set_spin(SHORT_SPIN)


def keep_cores() -> None:
    """Makes waiting threads of torch spin for about a millisecond, for the one process of a machine that may.

    Waking a thread takes as long as a small product does, a thousand times a step: a step of eight replies took 30 ms
    with this spin and 50 ms with the short one, beside a training with a short one. A value that the environment sets
    wins.
    """
    _set_spin(LONG_SPIN)


def silence_grpc_forks() -> None:
    """Turns off gRPC's support for forks without an exec, which nothing here makes.

    With it, gRPC logs every fork beside its threads, such as those that start Ray, in a format of its own.
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def _set_spin(spin: str) -> None:
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = spin
