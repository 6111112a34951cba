"""Distilled replies as the benchmarks need them, and a cache of them in a file, to go on with a run that broke off."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloning_server.examples.examples import Draft, Lesson
from cloning_server.examples.reply_cache import ReplyCache
from mesh.lm.base import BaseModel
from testing.lessons import distil_alone


def replies_to(drafts: Sequence[Draft], base: BaseModel, *, cache: ReplyCache, seed: int) -> dict[Lesson, str]:
    """What is distilled where no teacher has commented, as a clone would."""
    lessons = (draft.lesson for draft in drafts if not draft.feedback)
    steps = distil_alone(lessons, base, cache=cache, seed=seed)
    return {lesson: reply for step in steps for lesson, reply in step.replies.items()}


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
