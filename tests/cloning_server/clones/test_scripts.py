"""The Lua scripts of the clone store: their names for keys and arguments, and how they reach Redis."""

import re
from importlib import resources

import pytest
from redis.asyncio import Redis

from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from mesh.valkey.script import LuaScript, names_of, read_source, with_names
from tests.cloning_server.conftest import SEALING, STUDENT, baseline

SCRIPTS = sorted(
    file.name.removesuffix(".lua")
    for file in resources.files("cloning_server.clones.scripts").iterdir()
    if file.name.endswith(".lua")
)


def test_the_store_loads_every_script_of_the_package_and_no_other(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def read_and_record(package: str, name: str) -> str:
        loaded.append(name)
        return read_source(package, name)

    monkeypatch.setattr("mesh.valkey.script.read_source", read_and_record)
    CloneStore(redis)
    UpkeepStore(redis)
    assert sorted(loaded) == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_every_key_and_argument_of_its_header_and_no_other(name: str) -> None:
    source = read_source("cloning_server.clones.scripts", name)
    code = re.sub(r"--[^\n]*", "", source)
    for table, names in zip(("keys", "args"), names_of(source), strict=True):
        assert set(re.findall(rf"\b{table}\.(\w+)", code)) == {each.removesuffix("...") for each in names}
    assert not re.search(r"\b(KEYS|ARGV)\b", code), "positions are the loader's business"


@pytest.fixture
def echo(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> LuaScript:
    """A script that returns what it is called with."""
    source = (
        "-- keys: first others...\n-- args: count words...\n"
        "return {keys.first, #keys.others, keys.others[2] or '', args.count, args.words[1] or ''}"
    )
    monkeypatch.setattr("mesh.valkey.script.read_source", lambda _package, _name: source)
    return LuaScript(redis, "echo", package="")


async def test_a_script_gets_each_value_under_its_name_in_whatever_order_it_is_passed(echo: LuaScript) -> None:
    answer = await echo(keys={"others": ["{x}b", "{x}c"], "first": "{x}a"}, args={"words": ["hi", "ho"], "count": 3})
    assert answer == ["{x}a", 2, "{x}c", "3", "hi"]
    assert await echo(keys={"first": "{x}a", "others": []}, args={"count": 0, "words": []}) == ["{x}a", 0, "", "0", ""]


@pytest.mark.parametrize("keys", [{"first": "a"}, {"first": "a", "others": [], "third": "c"}, {}])
async def test_a_name_that_is_missing_or_unknown_is_refused_before_anything_is_sent(
    echo: LuaScript, keys: dict[str, str | list[str]]
) -> None:
    with pytest.raises(TypeError, match=r"echo\.lua takes the keys first others"):
        await echo(keys=keys, args={"count": 0, "words": []})


def test_a_script_without_its_header_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        with_names("return 1")


async def test_the_scripts_are_sent_again_after_redis_has_forgotten_them(clones: CloneStore, redis: Redis) -> None:
    registry = Registry.of(clones, sealing=SEALING)
    await registry.intake.start(STUDENT, baseline())
    await redis.script_flush()
    assert (await registry.intake.start("another", baseline())).queue_position == 2
