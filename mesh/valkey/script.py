"""A Lua script of a store, called with named keys and arguments.

Redis passes keys and arguments by position, in `KEYS` and `ARGV`. Each `.lua` file begins with two lines that name
them:

    -- keys: lane queued
    -- args: clone_id limit

The script reads `keys.lane` and `args.limit`. A name that ends in `...` is the last of its line and takes a list.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis

Value = str | bytes | int

# The store's clock, in milliseconds since 1970. Leases end by this clock alone, never by a server's.
_NOW = """
local function now_milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
_HEADER = re.compile(r"-- keys:(?P<keys>[^\n]*)\n-- args:(?P<args>[^\n]*)\n")
_LIST_MARK = "..."


class LuaScript:
    """A script beside the store that uses it. Redis and Valkey run it as a whole or not at all.

    Redis keeps a script until it restarts. The client sends the script again whenever Redis no longer has it.

    Args:
        redis: Runs the script.
        name: The file's name without `.lua`.
        package: Name of the package that holds the file.
    """

    def __init__(self, redis: Redis, name: str, *, package: str) -> None:
        source = read_source(package, name)
        self.name = name
        self._keys, self._args = names_of(source)
        self._script = redis.register_script(with_names(source))

    async def __call__(
        self, *, keys: Mapping[str, str | Sequence[str]], args: Mapping[str, Value | Sequence[str]]
    ) -> object:
        """Returns the script's answer.

        Raises:
            TypeError: The names are not those in the script's header.
        """
        answer: object = await self._script(keys=self._in_order("keys", keys), args=self._in_order("args", args))
        return answer

    def _in_order(self, kind: str, values: Mapping[str, Any]) -> list[Any]:
        names = self._keys if kind == "keys" else self._args
        if values.keys() != {name.removesuffix(_LIST_MARK) for name in names}:
            raise TypeError(f"{self.name}.lua takes the {kind} {' '.join(names)}; the call passes {' '.join(values)}")
        ordered: list[Any] = []
        for name in names:
            value = values[name.removesuffix(_LIST_MARK)]
            ordered += value if name.endswith(_LIST_MARK) else [value]
        return ordered


def read_source(package: str, name: str) -> str:
    """The script's text as it is in its file."""
    return resources.files(package).joinpath(f"{name}.lua").read_text("utf-8")


def names_of(source: str) -> tuple[list[str], list[str]]:
    """The names of the keys and those of the arguments, in the order of their positions.

    Raises:
        ValueError: The script does not begin with its header.
    """
    header = _HEADER.match(source)
    if header is None:
        raise ValueError("a script must begin with the lines `-- keys: …` and `-- args: …`")
    return header["keys"].split(), header["args"].split()


def with_names(source: str) -> str:
    """The script as Redis runs it: after code that puts `KEYS` and `ARGV` into the tables `keys` and `args`."""
    keys, args = names_of(source)
    return "\n".join([_table("keys", "KEYS", keys), _table("args", "ARGV", args), _NOW, source])


def _table(table: str, values: str, names: Sequence[str]) -> str:
    lines = [f"local {table} = {{}}"]
    for position, name in enumerate(names, start=1):
        if name.endswith(_LIST_MARK):
            field = f"{table}.{name.removesuffix(_LIST_MARK)}"
            lines.append(f"{field} = {{}}")
            lines.append(f"for i = {position}, #{values} do table.insert({field}, {values}[i]) end")
        else:
            lines.append(f"{table}.{name} = {values}[{position}]")
    return "\n".join(lines)
