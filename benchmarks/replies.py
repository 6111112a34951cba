"""Distilled replies for the benchmarks, and a cache of them in a file, with which an interrupted run resumes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.distillation import distil
from cloning_server.examples.examples import Draft
from cloning_server.examples.reply_cache import ReplyCache
from cloning_server.learning.passes import Passes
from cloning_server.learning.training_run import run_alone
from mesh.main_brain.base import BaseModel


def replies_to(
    drafts: Sequence[Draft], base: BaseModel, passes: Passes, *, cache: ReplyCache, seed: int
) -> dict[ReplyBrief, str]:
    """Returns the distilled reply to each draft without a teacher's feedback, by its brief, as a clone would."""
    briefs = (draft.brief for draft in drafts if not draft.feedback)
    return run_alone(distil(briefs, base, layers=passes.layers, cache=cache, seed=seed), watch=lambda _: None)


class FileReplyCache:
    """A reply cache in a JSON file.

    Processes side by side write a file each, `NAME.1.json` and so on, and later ones read all of them.

    Args:
        path: The file; the first reply creates it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        name = path.name.partition(".")[0]
        paths = [*path.parent.glob(f"{name}.json"), *path.parent.glob(f"{name}.*.json")]
        self._replies: dict[str, str] = {}
        for other in paths:
            self._replies |= json.loads(other.read_text())

    def get_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Returns the replies that are in the files, by key."""
        return {key: self._replies[key] for key in keys if key in self._replies}

    def put_many(self, replies: Mapping[str, str]) -> None:
        """Stores replies; replaces the file in one step, so a crash while writing leaves it unchanged."""
        self._replies.update(replies)
        part_path = self._path.with_suffix(".part")
        part_path.write_text(json.dumps(self._replies))
        part_path.replace(self._path)
