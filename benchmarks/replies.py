"""A reply cache in a file, for benchmarks that are broken off and gone on with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


class FileReplyCache:
    """Replies in a JSON file.

    Args:
        path: Is made with the first reply.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """The replies that are there."""
        return {key: self._replies[key] for key in keys if key in self._replies}

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Keeps the replies; a run that ends while they are written leaves the file as it was."""
        self._replies.update(replies)
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self._replies))
        beside.replace(self._path)
