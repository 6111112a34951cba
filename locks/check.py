"""Says where the lock files do not fit pyproject.toml: `python -m locks.check`. Asks no index.

It compares what is written, and cannot see what a package needs in turn: `pip check` does, when `make` installs.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.update import ALL, LOCKS, Lock

# What the locks are made for; each has CPython 3.11 to 3.13.
MACHINES = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
PYTHONS = ("3.11", "3.12", "3.13")
_SYSTEMS = {"linux": "Linux", "darwin": "Darwin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One entry of a lock file.

    Attributes:
        requirement: Name, version and marker.
        digests: The SHA-256 of each file that may be installed.
        direct: Whether pyproject.toml asks for it, by the lock's own word.
    """

    requirement: Requirement
    digests: tuple[str, ...]
    direct: bool

    @property
    def name(self) -> str:
        """As indexes spell it."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The only one that it allows."""
        return next(iter(self.requirement.specifier)).version


def read_pins(lock: str) -> Iterator[Pin]:
    """The entries of a lock file's text."""
    for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]:
        yield Pin(
            requirement=Requirement(re.split(r" \\\n|\n", entry)[0]),
            digests=tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry)),
            direct="aivo (pyproject.toml" in entry,
        )


def faults(project: Mapping[str, Any], locks: Mapping[str, str], cpu_torch: str) -> Iterator[str]:
    """What does not fit, one sentence each.

    Args:
        project: pyproject.toml.
        locks: The text of each lock file, by its name without the suffix.
        cpu_torch: The text of `torch-cpu.txt`.
    """
    pins = {name: list(read_pins(text)) for name, text in locks.items()}
    for name, text in locks.items():
        if "://" in text or re.search(r"^\s*-", text.replace("    --hash=", ""), flags=re.MULTILINE):
            yield f"locks/{name}.txt holds an address or an option of pip; the index is the installer's to choose"
        yield from (f"locks/{name}.txt has no digest for {pin.name}" for pin in pins[name] if not pin.digests)
    for lock in ALL:
        yield from _unmet(lock, _requirements(project, lock), pins[lock.name])
    # A package may have two versions, for different Pythons.
    versions: dict[str, set[str]] = {}
    for pin in pins["packages"]:
        versions.setdefault(pin.name, set()).add(pin.version)
    for lock in (lock for lock in ALL if lock.follows):
        for pin in pins[lock.name]:
            if pin.version not in versions.get(pin.name, {pin.version}):
                yield f"locks/{lock.name}.txt and locks/packages.txt have different versions of {pin.name}"
    (cpu,) = read_pins(cpu_torch)
    if {cpu.version.partition("+")[0]} != versions["torch"]:
        yield "locks/torch-cpu.txt and locks/packages.txt have different versions of torch"
    backend = project["build-system"]["requires"]
    if not set(backend) <= set(project["dependency-groups"]["build"]):
        yield f"pyproject.toml builds with {backend}, which its group `build` does not name"


def _requirements(project: Mapping[str, Any], lock: Lock) -> list[Requirement]:
    """What pyproject.toml asks for in this lock."""
    lines: list[str] = []
    if "pyproject.toml" in lock.sources:
        lines += project["project"]["dependencies"]
    for option, name in zip(lock.sources, lock.sources[1:], strict=False):
        if option == "--extra":
            lines += project["project"]["optional-dependencies"][name]
        if option == "--group":
            lines += project["dependency-groups"][name]
        if option == "--no-emit-package":
            lines.remove(name)
    return [Requirement(line) for line in lines]


def _unmet(lock: Lock, requirements: Sequence[Requirement], pins: Sequence[Pin]) -> Iterator[str]:
    """What is asked for and not pinned on some machine, and what is pinned as if it were asked for."""
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        for environment in _environments():
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            matching_pins = [pin for pin in pins if pin.name == name and _holds(pin, environment)]
            if not any(requirement.specifier.contains(pin.version, prereleases=True) for pin in matching_pins):
                versions = ", ".join(pin.version for pin in matching_pins) or "no version of it"
                yield f"pyproject.toml asks for {requirement}, locks/{lock.name}.txt has {versions}"
                break
    names = {canonicalize_name(requirement.name) for requirement in requirements}
    for pin in pins:
        if pin.direct and pin.name not in names:
            yield f"locks/{lock.name}.txt has {pin.name}, for which pyproject.toml asks no longer"


def _holds(pin: Pin, environment: Mapping[str, str]) -> bool:
    return pin.requirement.marker is None or pin.requirement.marker.evaluate(dict(environment))


def _environments() -> Iterator[dict[str, str]]:
    """The values of markers on each machine and Python."""
    for system, machine in MACHINES:
        for python in PYTHONS:
            yield {
                "sys_platform": system,
                "platform_system": _SYSTEMS[system],
                "platform_machine": machine,
                "os_name": "posix",
                "python_version": python,
                "python_full_version": f"{python}.9",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }


def main() -> int:
    """Returns 0 if everything fits, else 1."""
    project = tomllib.loads((LOCKS.parent / "pyproject.toml").read_text())
    locks = {lock.name: (LOCKS / f"{lock.name}.txt").read_text() for lock in ALL}
    all_faults = list(faults(project, locks, (LOCKS / "torch-cpu.txt").read_text()))
    for fault in all_faults:
        sys.stderr.write(f"{fault}\n")
    if all_faults:
        sys.stderr.write("run `make lock`\n")
    return int(bool(all_faults))


if __name__ == "__main__":
    raise SystemExit(main())
