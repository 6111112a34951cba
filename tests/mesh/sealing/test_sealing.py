"""What is sealed can be read with its master key, in its context, as it was sealed, and not otherwise."""

import base64

import pytest

from mesh.errors import KeyServiceUnavailable
from mesh.sealing.kms import KmsMasterKey
from mesh.sealing.master_keys import LocalMasterKey, parse_keys
from mesh.sealing.sealing import CannotOpen, Sealing
from testing.scripted.kms import ScriptedKms

TEXT = b'{"student_answer": "zwibbelfish"}'
OLD, NEW = (LocalMasterKey(bytes([number]) * 32) for number in (1, 2))


async def test_a_sealed_text_shows_nothing_of_itself_and_opens_in_its_own_context() -> None:
    sealing = Sealing([NEW])
    first, second = [await sealing.seal(TEXT, context="a") for _ in range(2)]
    for sealed in (first, second):
        assert b"zwibbelfish" not in sealed
        assert all(b"zwibbelfish" not in base64.b64decode(part) for part in sealed.split(b":")[2:])
        assert await sealing.open(sealed.decode(), context="a") == TEXT
    assert not set(first.split(b":")[2:]) & set(second.split(b":")[2:]), "each has a data key of its own"
    with pytest.raises(CannotOpen):
        await sealing.open(first.decode(), context="b")


async def test_an_old_master_key_opens_while_it_is_listed() -> None:
    sealed = (await Sealing([OLD]).seal(TEXT, context="a")).decode()
    assert await Sealing([NEW, OLD]).open(sealed, context="a") == TEXT
    assert (await Sealing([NEW, OLD]).seal(TEXT, context="a")).split(b":")[1].decode() == NEW.name
    with pytest.raises(CannotOpen) as caught:
        await Sealing([NEW]).open(sealed, context="a")
    assert caught.value.key == OLD.name


async def test_whatever_is_altered_in_a_sealed_text_is_noticed() -> None:
    sealing = Sealing([NEW])
    mark, name, *parts = (await sealing.seal(TEXT, context="a")).split(b":")
    for place in range(2):
        for broken in (b"", b"AAAA", b"?", base64.b64encode(bytes(80))):
            altered = b":".join((mark, name, *parts[:place], broken, *parts[place + 1 :])).decode()
            with pytest.raises(CannotOpen):
                await sealing.open(altered, context="a")
    for fields in ((mark, name), (mark, b"n" * 1000, *parts), (mark, name, *parts, b"AAAA")):
        with pytest.raises(CannotOpen) as caught:
            await sealing.open(b":".join(fields).decode(), context="a")
        assert "nnn" not in str(caught.value)


async def test_what_was_stored_without_a_master_key_can_be_read_with_one() -> None:
    assert await Sealing().seal(TEXT, context="a") == TEXT
    assert await Sealing([NEW]).open(TEXT.decode(), context="a") == TEXT


@pytest.mark.parametrize("word", ["", "5a", "z" * 64, "5a" * 33])
def test_a_malformed_master_key_is_refused_without_being_quoted(word: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits") as caught:
        parse_keys(["5a" * 32, word])
    assert "key 2" in str(caught.value)
    assert not word or word not in str(caught.value)


async def test_kms_wraps_the_data_key_for_its_context_and_never_sees_the_text(kms: ScriptedKms) -> None:
    old, new = (KmsMasterKey(name, endpoint_url=kms.url) for name in ("alias/old", "alias/new"))
    sealed = (await Sealing([old]).seal(TEXT, context="baseline:clone_1")).decode()
    assert await Sealing([new, old]).open(sealed, context="baseline:clone_1") == TEXT
    assert kms.calls == [
        ("Encrypt", "alias/old", "baseline:clone_1"),
        ("Decrypt", "alias/old", "baseline:clone_1"),
    ]
    with pytest.raises(CannotOpen):
        await Sealing([old]).open(sealed, context="baseline:clone_2")


async def test_another_key_of_kms_opens_nothing(kms: ScriptedKms) -> None:
    sealing = Sealing([KmsMasterKey("alias/a", endpoint_url=kms.url)])
    sealed = (await sealing.seal(TEXT, context="a")).decode()
    kms.refusal = "IncorrectKeyException"
    with pytest.raises(CannotOpen):
        await sealing.open(sealed, context="a")


@pytest.mark.parametrize("refusal", ["LimitExceededException", "DisabledException", "AccessDeniedException"])
async def test_a_kms_that_refuses_for_now_or_is_away_is_unavailable(kms: ScriptedKms, refusal: str) -> None:
    sealing = Sealing([KmsMasterKey("alias/a", endpoint_url=kms.url)])
    sealed = (await sealing.seal(TEXT, context="a")).decode()
    kms.refusal = refusal
    with pytest.raises(KeyServiceUnavailable, match=refusal):
        await sealing.open(sealed, context="a")
    with pytest.raises(KeyServiceUnavailable):
        await sealing.seal(TEXT, context="a")
    away = Sealing([KmsMasterKey("alias/a", endpoint_url="http://127.0.0.1:1")])
    with pytest.raises(KeyServiceUnavailable, match="does not answer"):
        await away.seal(TEXT, context="a")
