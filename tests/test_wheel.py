"""What is installed from the wheel works without the checkout: it brings its own data."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testing.parts.part import free_ports

ROOT = Path(__file__).parents[1]
# Not part of a build, and large or of this machine.
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "tests", "testing", "benchmarks")
PACKAGES = ("brain_server", "client", "cloning_server", "gateway", "mesh")
# For people, and for whoever builds the gateway's container from the checkout.
NOT_INSTALLED = {"README.md", "Dockerfile"}

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An environment with the wheel in it, and a folder outside the checkout to work in."""

    bin: Path
    folder: Path

    def run(self, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Runs one of the environment's programs to its end."""
        program = str(self.bin / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=self.env(**env), capture_output=True, text=True, check=False
        )

    @contextlib.contextmanager
    def started(self, *command: str, **env: str) -> "Iterator[subprocess.Popen[str]]":
        """Runs one of the environment's programs until the test is over; both outputs are one pipe."""
        program = str(self.bin / command[0])
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [program, *command[1:]],
            cwd=self.folder,
            env=self.env(**env),
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @staticmethod
    def env(**env: str) -> dict[str, str]:
        """This process's variables without those that lead to the checkout."""
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | env


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in a new environment; its dependencies are those of the environment that runs the tests."""
    source = tmp_path_factory.mktemp("source") / "aivo"
    wheels = tmp_path_factory.mktemp("wheels")
    target = tmp_path_factory.mktemp("installed") / "venv"
    # A copy, because building leaves files in the source folder.
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_SOURCE)
    pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(wheels), str(source))
    (wheel,) = wheels.glob("*.whl")
    venv.create(target, symlinks=True)
    python = target / "bin" / "python"
    # Before the dependencies are in sight: among them is the editable project, which pip would take for the wheel.
    pip(str(python), "install", "--no-index", "--no-deps", str(wheel))
    (packages,) = target.glob("lib/python3*/site-packages")
    # Of the folder that this names Python reads no .pth files, so the editable project stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(bin=python.parent, folder=tmp_path_factory.mktemp("elsewhere"))


def pip(python: str, *arguments: str) -> None:
    """Runs this environment's pip for an interpreter."""
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=Installation.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_that_is_imported_comes_from_the_wheel(installation: Installation) -> None:
    code = "import aivo.brain.v1.brain_service_pb2 as a, brain_server, client, cloning_server, gateway, mesh\n"
    code += "for module in (a, brain_server, client, cloning_server, gateway, mesh): print(module.__file__)"

    done = installation.run("python", "-c", code)

    assert done.returncode == 0, done.stderr
    assert all(str(installation.bin.parent) in line for line in done.stdout.splitlines())


def test_every_file_of_the_packages_is_installed(installation: Installation) -> None:
    (installed,) = installation.bin.parent.glob("lib/python3*/site-packages")
    folders = [*(ROOT / name for name in PACKAGES), ROOT / "gen" / "aivo"]
    files = {path.relative_to(folder.parent) for folder in folders for path in folder.rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts and path.name not in NOT_INSTALLED}

    assert {path for path in files if not (installed / path).is_file()} == set()


def test_tests_and_benchmarks_are_not_installed(installation: Installation) -> None:
    code = "from importlib.util import find_spec as f; print([n for n in ('tests', 'testing', 'benchmarks') if f(n)])"

    assert installation.run("python", "-c", code).stdout.strip() == "[]"


def test_the_command_line_shows_its_help(installation: Installation) -> None:
    done = installation.run("aivo", "--help")

    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("module", "env"),
    [
        ("brain_server", {"BRAIN_PORT": "brain"}),
        ("cloning_server", {"CLONING_PORT": "cloning"}),
        ("gateway", {"BRAIN_REST_PORT": "rest"}),
    ],
)
def test_a_wrong_setting_is_named_without_a_traceback(
    installation: Installation, module: str, env: dict[str, str]
) -> None:
    done = installation.run("python", "-m", module, **env)

    assert done.returncode != 0
    assert next(iter(env)) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_brain_serves(installation: Installation) -> None:
    # No base model and no S3 are needed to serve: health says what is missing.
    env = {"BRAIN_PORT": "0", "BRAIN_METRICS_PORT": "0", "BASE_MODEL": "./no-such-model", "LOG_FORMAT": "json"}
    with installation.started("python", "-m", "brain_server", S3_ENDPOINT_URL="http://127.0.0.1:9", **env) as process:
        assert process.stdout is not None
        events = (json.loads(line)["event"] for line in process.stdout if line.startswith("{"))

        assert "serving" in events


def test_the_gateway_finds_its_configuration_and_descriptors(installation: Installation) -> None:
    # Of the extra `stack`: Envoy's program, which is not among what a new environment borrows.
    (installation.bin / "envoy").symlink_to(Path(sysconfig.get_path("scripts")) / "envoy")
    names = ("BRAIN_REST_PORT", "CLONING_REST_PORT", "ENVOY_METRICS_PORT")
    ports = dict(zip(names, map(str, free_ports(3)), strict=True))
    env = {**ports, "ENVOY_LOG_LEVEL": "info"}
    with installation.started("python", "-m", "gateway", "config", **env) as process:
        assert process.stdout is not None

        # Envoy says so once every listener is there, with the descriptors loaded.
        assert any("starting workers" in line for line in process.stdout)


def test_the_gateway_says_which_extra_brings_envoy(installation: Installation) -> None:
    (installation.bin / "envoy").unlink(missing_ok=True)

    done = installation.run("python", "-m", "gateway")

    assert done.returncode != 0
    assert "aivo[stack]" in done.stderr
    assert "Traceback" not in done.stderr
