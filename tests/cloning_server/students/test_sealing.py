"""Baselines in the clone store: sealed while they are there, gone with their clone, and unreadable without the key."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from cloning_server.clone import CloneState
from cloning_server.settings import CloningSettings
from mesh.errors import BaselineUnreadable
from mesh.rpc.errors import error_from
from mesh.settings import InvalidSettings, load_settings
from testing.parts.stores import RedisEndpoint
from tests.cloning_server.conftest import MASTER_KEY, Cloning, order, start_clone, until, watch_all

OTHER_KEY = "c3" * 32
# One for every field of an order that a student or a teacher writes.
FIELDS = ("question", "reference_answer", "student_answer", "teacher_feedback", "skill", "item_id")
MARKS = [f"zwibbel-{field}" for field in (*FIELDS, "interest", "assessment")]


async def start_marked(cloning: Cloning) -> str:
    """Starts a clone whose order has a mark in each field, and waits until it trains; returns its id."""
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    request = order()
    request.student_profile.interests.append("zwibbel-interest")
    request.baseline_data.assessment_id = "zwibbel-assessment"
    for number, response in enumerate(request.baseline_data.responses):
        for field in FIELDS:
            setattr(response, field, f"zwibbel-{field} {number}" if field != "item_id" else f"zwibbel-item_id-{number}")
    async with cloning.serve() as stub:
        clone_id: str = (await stub.StartClone(request)).clone_id
        await cloning.trainer.gates[CloneState.FINE_TUNING].reached.wait()
    return clone_id


def files_of(folder: Path) -> bytes:
    """All that Valkey has on disk."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_no_word_of_a_baseline_is_in_a_file_of_valkey_at_any_time(
    cloning: Cloning, own_redis: RedisEndpoint, tmp_path: Path
) -> None:
    cloning.set(redis_url=own_redis.url)
    clone_id = await start_marked(cloning)
    assert clone_id.encode() in files_of(tmp_path / "valkey"), "the file holds the clone"
    cloning.trainer.gates[CloneState.FINE_TUNING].open()
    async with cloning.serve() as stub:
        assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert [response.student_answer for response in cloning.trainer.plans[-1].baseline.responses] == [
        f"zwibbel-student_answer {number}" for number in range(4)
    ], "and yet the trainer read it"
    content = files_of(tmp_path / "valkey")
    assert [mark for mark in MARKS if mark.encode() in content] == []


async def test_a_clone_whose_key_is_gone_fails_at_once_with_a_plain_reason(cloning: Cloning) -> None:
    clone_id = await start_marked(cloning)
    cloning.set(master_key=SecretStr(OTHER_KEY))
    async with cloning.serve() as stub:
        last = (await watch_all(stub, clone_id))[-1]
        error = error_from(last.error)
        assert (last.status, type(error)) == ("failed", BaselineUnreadable)
        assert error.facts["clone_id"] == clone_id
        cloning.trainer.gates[CloneState.FINE_TUNING].open()
        await until(stub, await start_clone(stub), "completed")


async def test_a_clone_goes_on_after_its_key_was_rotated_and_stays_listed(cloning: Cloning, tmp_path: Path) -> None:
    clone_id = await start_marked(cloning)
    file = tmp_path / "keys"
    file.write_text(f"{OTHER_KEY}\n{MASTER_KEY}\n")
    cloning.set(master_key=None, master_key_file=file)
    cloning.trainer.gates[CloneState.FINE_TUNING].open()
    async with cloning.serve() as stub:
        assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def test_a_server_without_a_key_says_so_and_refuses_to_listen_beyond_loopback(
    cloning: Cloning, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cloning.set(master_key=None)
    async with cloning.serve() as stub:
        await until(stub, await start_clone(stub), "completed")
    assert "baselines_not_sealed" in "".join(capsys.readouterr())
    monkeypatch.setenv("CLONING_HOST", "0.0.0.0")
    with pytest.raises(InvalidSettings, match="MASTER_KEY"):
        load_settings(CloningSettings)
    monkeypatch.setenv("MASTER_KEY_KMS", "alias/aivo,alias/old")
    assert load_settings(CloningSettings).master_key_kms == ("alias/aivo", "alias/old")


@pytest.mark.parametrize("content", [None, "", "secret\n"])
def test_a_file_without_keys_is_refused_without_being_quoted(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidSettings, match="MASTER_KEY_FILE") as caught:
        CloningSettings(master_key_file=file).sealing()
    assert "secret" not in str(caught.value)


def test_a_malformed_key_is_refused_without_being_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_KEY", f"{MASTER_KEY},secret")
    with pytest.raises(InvalidSettings, match="MASTER_KEY: key 2") as caught:
        load_settings(CloningSettings)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MASTER_KEY", MASTER_KEY)
    assert MASTER_KEY not in repr(load_settings(CloningSettings))
