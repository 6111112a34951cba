"""Writes the lock files from pyproject.toml: `python -m locks.update [OPTION ...]`, with options of `uv pip compile`.

A lock keeps its versions where pyproject.toml still allows them; `--upgrade` or `--upgrade-package NAME` renews them.
Each lock is for all platforms and names the digests of all files of a version, but no index: pip installs from
whichever it is configured for, and refuses what has another digest. `uv` asks its own index (`UV_DEFAULT_INDEX`).

torch alone has other files elsewhere, its CPU builds for Linux. `torch-cpu.txt` lists them and is kept by hand.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOCKS = Path(__file__).parent
BUILD = LOCKS.parent / "build"
LEAST_PYTHON = "3.11"
# What torch requires on Linux unless it is built for the CPU alone.
CUDA_ALONE = (
    "cuda-bindings", "cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cusparselt-cu13", "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
)  # fmt: skip
# vLLM's, for images, audio and video, which AIVO does not use.
MEDIA = ("torchaudio", "torchcodec", "torchvision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One lock file.

    Attributes:
        name: Its name, without the suffix.
        sources: Where its requirements are, as arguments of `uv pip compile`.
        excludes: Packages to leave out, with what only they need.
        overrides: Requirements that replace those of the packages themselves.
        follows: Whether it has the versions of `packages`, because both go into one environment.
    """

    name: str
    sources: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    follows: bool = True


ALL = (
    Lock(
        name="packages",
        sources=("pyproject.toml", "--extra", "stack", "--extra", "dev"),
        excludes=CUDA_ALONE,
        follows=False,
    ),
    Lock(name="build", sources=("--group", "build")),
    Lock(name="bench", sources=("--group", "bench")),
    Lock(name="hooks", sources=("--group", "hooks")),
    Lock(name="gateway", sources=("--group", "gateway")),
    Lock(name="cuda", sources=("--group", "cuda", "--no-emit-package", "torch")),
    Lock(
        name="vllm",
        sources=("--group", "vllm"),
        excludes=(*CUDA_ALONE, *MEDIA),
        # vLLM asks for torch's CPU build by name, and `uv` finds the other one.
        overrides=("torch==2.13.0",),
        follows=False,
    ),
)


def write(lock: Lock, options: Sequence[str]) -> None:
    """Resolves a lock's requirements and writes its file.

    Raises:
        CalledProcessError: uv can't resolve them, or does not reach an index.
    """
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", LEAST_PYTHON, "--generate-hashes"]
    command += ["--custom-compile-command", "make lock", "--output-file", f"locks/{lock.name}.txt"]
    BUILD.mkdir(exist_ok=True)
    for option, lines in (("excludes", lock.excludes), ("overrides", lock.overrides)):
        (BUILD / option).write_text("\n".join(lines))
        command += [f"--{option}", f"{BUILD.name}/{option}"]
    if lock.follows:
        command += ["--constraints", "locks/packages.txt"]
    subprocess.run([*command, *lock.sources, *options], cwd=LOCKS.parent, check=True)


if __name__ == "__main__":
    for lock_file in ALL:
        write(lock_file, sys.argv[1:])
