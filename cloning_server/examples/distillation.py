"""Distillation: the base model, as teacher, writes replies for the responses without a teacher's feedback.

Where a reply says the right answer, a small model is trusted with one task: to restate a sentence of it in words that
fit the student's grade and disability. A sentence that fits already stays as it is. Where a reply must not say the
answer, or cannot say it in the student's form, the Main Brain tutors as it has learned to, and what fails a check gives
way to the frame alone. After "Sequence-Level Knowledge Distillation"
(https://arxiv.org/abs/1606.07947), with the sequences filtered by a check instead of by their likelihood.

The teacher's prompt holds nothing that it could get wrong: the verdict on the student's answer, the student's record in
the skill and their learning style shape the frame around its sentences. Classmates who differ in these alone therefore
share the sentences. What the Main Brain replies to a student's own answer is never shared.

Knows nothing of how adapters are trained.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TypeAlias

from cloning_server.clone import CloneState
from cloning_server.compute.batch_decoding import Decoding
from cloning_server.compute.layers import Layers
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.reply_cache import ReplyCache
from cloning_server.examples.situations import Situation
from cloning_server.examples.teacher import Teacher, TeacherTask, key_of, task_of
from cloning_server.examples.tutor import tutor_batches, tutor_sentences
from cloning_server.training import Progress
from mesh.main_brain.base import BaseModel
from mesh.tutoring.teaching import rules_of

# Share of the state CREATING_ADAPTER that distillation fills; the rest is for initialising the adapter.
_PROGRESS_SHARE = 0.9

# What is taught of a right answer: with all of it, clones of long references went on for lines and in circles.
_MOST_SENTENCES = 2

# It yields progress, and requests for decoding; send the continuations after a request, None after progress. It returns
# the replies.
Distillation: TypeAlias = Generator[Progress | Decoding, object, dict[ReplyBrief, str]]


def distil(
    briefs: Iterable[ReplyBrief], base: BaseModel, *, layers: Layers, cache: ReplyCache, seed: int
) -> Distillation:
    """Distils a reply for each brief.

    Args:
        briefs: Equal briefs are distilled once, and briefs with the same teacher task share its sentences.
        base: The teacher, without any adapter.
        layers: The base model's.
        cache: Read first; gets the sentences of every new task that is not private, empty if the teacher failed.
        seed: Of the sampling.

    Returns:
        The replies that passed all checks.
    """
    tally = _Tally(briefs)
    # Nothing is known of the answer, so the reply only helps to check it: any sentence about it could judge it.
    yield tally.frame_each({brief: () for brief in tally.unsettled if brief.situation is Situation.CHECK})
    keys = {task: key_of(task, base.digest) for task in tally.tasks if not task.is_private}
    entries = cache.get_many(list(keys.values()))
    yield tally.settle({task: entries[key].splitlines() for task, key in keys.items() if key in entries})
    teacher = Teacher([task for task in tally.tasks if keys.get(task) not in entries], base, seed=seed)
    yield _settle_and_cache(teacher.settled(), tally, keys, cache)
    for batch in teacher.batches():
        continuations = yield Decoding(layers=layers, openings=[opening for _, opening in batch])
        assert isinstance(continuations, Sequence)
        yield _settle_and_cache(teacher.accept(batch, continuations), tally, keys, cache)
    yield _settle_and_cache({task: [] for task in teacher.failed_tasks}, tally, keys, cache)
    for openings in tutor_batches(tally.unsettled, base):
        continuations = yield Decoding(layers=layers, openings=[opening for _, opening in openings])
        assert isinstance(continuations, Sequence)
        pairs = zip(openings, continuations, strict=True)
        yield tally.frame_each({brief: tutor_sentences(brief, reply, base) for (brief, _), reply in pairs})
    return tally.replies


def form_faults(brief: ReplyBrief, reply: str) -> list[str]:
    """Why the form of a whole reply does not fit the student's profile; empty if it does."""
    return rules_of(brief.profile).violations(reply)


class _Tally:
    """The briefs of one distillation and their replies.

    Attributes:
        tasks: The briefs whose replies say a right answer, by teacher task.
        replies: The replies so far.
    """

    def __init__(self, briefs: Iterable[ReplyBrief]) -> None:
        self.tasks: dict[TeacherTask, list[ReplyBrief]] = {}
        self._briefs = list(dict.fromkeys(briefs))
        for brief in self._briefs:
            if brief.reference:
                self.tasks.setdefault(task_of(brief), []).append(brief)
        self.replies: dict[ReplyBrief, str] = {}

    @property
    def unsettled(self) -> list[ReplyBrief]:
        """The briefs without a reply, in order."""
        return [brief for brief in self._briefs if brief not in self.replies]

    def settle(self, sentences: Mapping[TeacherTask, Sequence[str]]) -> Progress:
        """Frames the sentences of tasks that are complete; those of a task that failed are empty."""
        for task, body in sentences.items():
            if body:
                replies = {brief: frame_reply(brief, body[:_MOST_SENTENCES]) for brief in self.tasks[task]}
                self.replies |= {brief: reply for brief, reply in replies.items() if not form_faults(brief, reply)}
        return self._progress()

    def frame_each(self, bodies: Mapping[ReplyBrief, Sequence[str]]) -> Progress:
        """Frames a body that opens its reply for each brief: as many sentences as fit, down to the frame alone."""
        for brief, body in bodies.items():
            shorter = (body[:count] for count in range(len(body), -1, -1))
            replies = (frame_reply(brief, some, has_opener=True) for some in shorter)
            if reply := next((reply for reply in replies if not form_faults(brief, reply)), ""):
                self.replies[brief] = reply
        return self._progress()

    def _progress(self) -> Progress:
        return Progress(
            state=CloneState.CREATING_ADAPTER,
            fraction=_PROGRESS_SHARE * len(self.replies) / max(len(self._briefs), 1),
            message=f"{len(self.replies)} of {len(self._briefs)} replies distilled",
        )


def _settle_and_cache(
    sentences: Mapping[TeacherTask, Sequence[str]], tally: _Tally, keys: Mapping[TeacherTask, str], cache: ReplyCache
) -> Progress:
    cache.put_many({keys[task]: "\n".join(body) for task, body in sentences.items() if task in keys})
    return tally.settle(sentences)
