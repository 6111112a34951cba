"""What `make up` opens: its listening sockets, what they answer without credentials, and who can read its files."""

import contextlib
import os
import random
import re
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from boto3.session import Session
from botocore.exceptions import ClientError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from gateway.local_stack import CREDENTIALS, stored_credentials
from mesh.sealing.master_keys import parse_keys, read_keys
from testing.parts.part import Part, free_ports
from testing.waiting import until

ROOT = Path(__file__).parents[1]
# Ray, and with it the cloning server, is left out: it picks ports of its own.
PARTS = "valkey s3 vacuum brain gateway"
VARIABLES = (
    "BRAIN_PORT", "BRAIN_METRICS_PORT", "BRAIN_REST_PORT", "CLONING_REST_PORT", "ENVOY_METRICS_PORT", "REDIS_PORT",
    "CLONING_PORT", "CLONING_METRICS_PORT",
)  # fmt: skip
OF_CLONING = ("CLONING_PORT", "CLONING_METRICS_PORT")
# SeaweedFS's ports: S3, master, volume, filer, admin, and gRPC of each.
S3_OFFSETS = (0, 1, 2, 3, 4, 10000, 10001, 10002, 10003, 10004)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStack:
    """A running `make up` on free ports, without the cloning server."""

    folder: Path
    ports: dict[str, int]
    part: Part

    @property
    def credentials(self) -> dict[str, str]:
        return stored_credentials(self.folder / "data" / "credentials.env")

    @property
    def listed_ports(self) -> set[int]:
        """The ports that the documentation lists, without the cloning server's."""
        ports = {port for name, port in self.ports.items() if name not in OF_CLONING}
        return ports | {self.ports["S3_PORT"] + offset for offset in S3_OFFSETS}

    def listeners(self) -> set[tuple[str, int]]:
        """Address and port of every socket on which a process of the stack listens."""
        listeners: set[tuple[str, int]] = set()
        for process in psutil.Process(self.part.process_id).children(recursive=True):
            # Some run for a moment only.
            with contextlib.suppress(psutil.NoSuchProcess):
                listeners |= {
                    # gRPC's sockets take IPv4 as IPv6.
                    (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                    for connection in process.net_connections(kind="inet")
                    if connection.status == psutil.CONN_LISTEN
                }
        return listeners

    def files_with(self, content: bytes) -> list[Path]:
        """The files of SeaweedFS that hold this."""
        found: list[Path] = []
        for path in (self.folder / "data" / "s3").rglob("*"):
            # It replaces files meanwhile.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if content in path.read_bytes():
                    found.append(path)
        return found

    def command_lines(self) -> list[str]:
        """Every word on the command line of a process of the stack."""
        words: list[str] = []
        for process in psutil.Process(self.part.process_id).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words += process.cmdline()
        return words

    def environments(self) -> list[dict[str, str]]:
        """The variables that each process of the stack was started with."""
        environments: list[dict[str, str]] = []
        for process in psutil.Process(self.part.process_id).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                environments.append(process.environ())
        return environments


def seaweed_port(others: Collection[int]) -> int:
    """The first of SeaweedFS's ports, all of them free and none of them among the others."""
    while True:
        first = random.randrange(10_000, 20_000)
        ports = [first + offset for offset in S3_OFFSETS]
        try:
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        if not set(ports) & set(others):
            return first


@pytest.fixture(scope="module")
async def local_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    folder = tmp_path_factory.mktemp("up")
    ports = dict(zip(VARIABLES, free_ports(len(VARIABLES)), strict=True))
    ports["S3_PORT"] = seaweed_port(ports.values())
    # The brain serves without a base model too, and says so in its health. The caller's own umask must not matter.
    env = {
        **{name: str(port) for name, port in ports.items()},
        "BASE_MODEL": "./no-such-model",
        "PARTS": PARTS,
        "S3_VACUUM_SECONDS": "3",
        # Other tests' stores leave their key in the environment, where it would win. Empty is unset.
        **dict.fromkeys((*CREDENTIALS, "REDIS_URL"), ""),
        "AWS_ACCESS_KEY_ID": "aivo",
    }
    command = f"umask 022; exec make -s -C {ROOT} -o .venv/.installed -o model up DATA={folder / 'data'}"

    async def drawn() -> bool:
        return (folder / "data" / "credentials.env").exists()

    stack = LocalStack(
        folder=folder, ports=ports, part=Part(["bash", "-c", command], folder=folder, probe=drawn, env=env)
    )

    async def all_listen() -> bool:
        return {port for _, port in stack.listeners()} >= stack.listed_ports

    await stack.part.start()
    try:
        await until(all_listen, seconds=240)
        yield stack
    finally:
        # With the parts, each of which has a process group of its own.
        await stack.part.lose()


def test_what_listens_is_what_is_listed_and_all_of_it_on_loopback(local_stack: LocalStack) -> None:
    assert local_stack.listeners() == {("127.0.0.1", port) for port in local_stack.listed_ports}


def test_only_this_user_reads_what_the_stack_writes(local_stack: LocalStack) -> None:
    data = local_stack.folder / "data"
    modes: dict[Path, int] = {}
    for path in (data, *data.rglob("*")):
        # SeaweedFS removes files of its own meanwhile.
        with contextlib.suppress(FileNotFoundError):
            modes[path] = stat.S_IMODE(path.lstat().st_mode)

    assert {data / "valkey", data / "s3", data / "gateway.log", data / "admin.sock"} <= modes.keys()
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_no_credential_is_printed_or_on_a_command_line(local_stack: LocalStack) -> None:
    words = local_stack.command_lines()
    assert "mini" in words
    logs = (local_stack.folder / "log", *local_stack.folder.glob("data/*.log"))
    assert {"log", "s3.log", "gateway.log"} <= {path.name for path in logs}
    printed = [path.read_text(errors="replace") for path in logs]

    assert [
        name for name, value in local_stack.credentials.items() for text in (*words, *printed) if value in text
    ] == []


def test_the_master_key_is_in_a_file_and_in_the_environment_of_no_part(local_stack: LocalStack) -> None:
    environments = local_stack.environments()
    key = local_stack.credentials["MASTER_KEY"]
    assert [environment for environment in environments if key in environment.values()] == []
    (file,) = {environment["MASTER_KEY_FILE"] for environment in environments if "MASTER_KEY_FILE" in environment}
    assert [key.name for key in read_keys(Path(file))] == [key.name for key in parse_keys([key])]


async def test_valkey_asks_for_its_password(local_stack: LocalStack) -> None:
    port = local_stack.ports["REDIS_PORT"]
    async with Redis(port=port) as stranger, Redis(port=port, password="aivo") as guesser:
        for redis in (stranger, guesser):
            with pytest.raises(AuthenticationError):
                await redis.ping()
    async with Redis(port=port, password=local_stack.credentials["VALKEY_PASSWORD"]) as owner:
        await owner.ping()

        async def brain_listens() -> bool:
            return bool(await owner.pubsub_channels())

        # The brain was given the password, and hears of new versions.
        await until(brain_listens, seconds=60)


def test_s3_asks_for_its_key(local_stack: LocalStack) -> None:
    url = f"http://127.0.0.1:{local_stack.ports['S3_PORT']}"
    refused = []
    for key in ("aivo-local-only", "aivo-secret"):
        with pytest.raises(ClientError) as caught:
            s3_client(url, key).list_buckets()
        refused.append(caught.value.response["ResponseMetadata"]["HTTPStatusCode"])

    assert refused == [403, 403]
    assert httpx.get(url).status_code == 403
    assert s3_client(url, local_stack.credentials["AWS_SECRET_ACCESS_KEY"]).list_buckets()["Buckets"] is not None


def test_seaweed_gives_and_takes_nothing_by_its_other_ports(local_stack: LocalStack) -> None:
    first = local_stack.ports["S3_PORT"]
    s3 = s3_client(f"http://127.0.0.1:{first}", local_stack.credentials["AWS_SECRET_ACCESS_KEY"])
    s3.create_bucket(Bucket="doors")
    s3.put_object(Bucket="doors", Key="adapter", Body=b"weights" * 100_000)
    master, volume, filer, admin = (f"http://127.0.0.1:{first + offset}" for offset in (1, 2, 3, 4))

    answers = {
        (method, url): httpx.request(method, url).status_code
        for method, url in (
            ("GET", f"{filer}/buckets/doors/adapter"),
            ("GET", f"{filer}/buckets/"),
            ("PUT", f"{filer}/buckets/doors/adapter"),
            ("DELETE", f"{filer}/buckets/doors/adapter"),
            ("GET", f"{master}/col/delete?collection=doors"),
            ("GET", f"{master}/dir/assign"),
            ("GET", f"{master}/dir/status"),
            ("GET", f"{volume}/1,01637037d6"),
            ("DELETE", f"{volume}/1,01637037d6"),
            ("GET", f"{admin}/api/users"),
            ("DELETE", f"{admin}/api/s3/buckets/doors"),
        )
    }

    assert set(answers.values()) <= {401, 404}, answers
    assert [status for (_, url), status in answers.items() if url.startswith(volume)] == [401, 401]
    assert s3.get_object(Bucket="doors", Key="adapter")["Body"].read() == b"weights" * 100_000


async def test_what_is_deleted_in_s3_leaves_its_disks(local_stack: LocalStack) -> None:
    s3 = s3_client(f"http://127.0.0.1:{local_stack.ports['S3_PORT']}", local_stack.credentials["AWS_SECRET_ACCESS_KEY"])
    s3.create_bucket(Bucket="vacuumed")
    # Far below the share of garbage at which SeaweedFS begins by itself.
    for key, mark in (("stays", b"kept weights"), ("goes", b"erased weights")):
        s3.put_object(Bucket="vacuumed", Key=key, Body=mark + random.randbytes(100_000))
    s3.delete_object(Bucket="vacuumed", Key="goes")

    async def is_gone() -> bool:
        return not local_stack.files_with(b"erased weights")

    await until(is_gone, seconds=60)
    assert local_stack.files_with(b"kept weights")
    assert s3.get_object(Bucket="vacuumed", Key="stays")["Body"].read().startswith(b"kept weights")


def run_no_part(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the stack with a part that does not exist, for what comes before the parts start."""
    command = (sys.executable, "-m", "gateway.local_stack", str(folder), "no-such-part")
    env = {**os.environ, "REDIS_PORT": "6390", **env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_a_master_key_that_is_set_seals_and_the_drawn_one_opens(tmp_path: Path) -> None:
    run_no_part(tmp_path, MASTER_KEY="6b" * 32)
    drawn = stored_credentials(tmp_path / "credentials.env")["MASTER_KEY"]
    assert (tmp_path / "master-keys").read_text().split() == ["6b" * 32, drawn]


@pytest.mark.parametrize(("mode", "refusal"), [(0o755, "no-such-part"), (0o1777, "set DATA to a folder of your own")])
def test_the_stack_leaves_the_mode_of_its_folder_and_refuses_one_of_everybody(
    tmp_path: Path, mode: int, refusal: str
) -> None:
    tmp_path.chmod(mode)
    stack = run_no_part(tmp_path)
    assert stack.returncode
    assert refusal in stack.stderr
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("parts", "asked"), [("brain", {"BRAIN_PORT", "BRAIN_METRICS_PORT"}), ("valkey ready", {"REDIS_PORT"})]
)
def test_only_the_ports_of_the_parts_that_run_must_be_free(parts: str, asked: set[str]) -> None:
    command = ("make", "-n", "-C", str(ROOT), "-o", ".venv/.installed", "-o", "model", "up", f"PARTS={parts}")
    make = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = re.findall(r"gateway\.preflight (.*)", make.stdout)
    assert set(line.split()) == asked


def test_credentials_are_drawn_once_and_a_removed_one_is_drawn_anew(tmp_path: Path) -> None:
    file = tmp_path / "credentials.env"
    first = stored_credentials(file)
    assert stored_credentials(file) == first
    assert len(set(first.values())) == len(CREDENTIALS)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in first.values())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "VALKEY" not in line))
    second = stored_credentials(file)

    assert {name for name in CREDENTIALS if first[name] != second[name]} == {"VALKEY_PASSWORD"}
    assert stored_credentials(file) == second


def test_a_line_of_somebody_else_stays_in_the_file_of_credentials(tmp_path: Path) -> None:
    file = tmp_path / "credentials.env"
    file.write_text("AWS_ACCESS_KEY_ID=aivo\n")

    credentials = stored_credentials(file)

    assert set(credentials) == set(CREDENTIALS)
    assert file.read_text().startswith("AWS_ACCESS_KEY_ID=aivo\n")
    assert stored_credentials(file) == credentials


def s3_client(url: str, secret_key: str) -> Any:
    return Session("aivo", secret_key).client("s3", endpoint_url=url, region_name="us-east-1")
