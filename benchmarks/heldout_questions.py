"""A student's held-out questions: what is asked, the reply that a clone would learn, and the replies of each arm."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from benchmarks.adapter_trainer import AdapterTrainer, Target
from benchmarks.policy_checks import Occasion, ReadingNorm
from benchmarks.policy_prompt import with_policy
from benchmarks.replies import FileReplyCache, replies_to
from cloning_server.clone import Baseline
from cloning_server.compute.batch_decoding import Decoding, Opening, decode_all
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.decoded import greedy_opening, text_of
from cloning_server.examples.examples import draft_examples
from cloning_server.examples.situations import Situation
from curriculum.lesson import Kind, Lesson
from mesh.lm.chat import Prompt, encode_prompt
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.policy import TeachingPolicy
from mesh.tutoring.profile import StudentProfile
from mesh.tutoring.teaching import GRADE_BANDS

# Replies in one decoding: long prompts of a few adapters, at 46 kB of keys and values per token at 135M in fp32.
_ROWS = 24
# The kinds of lessons that reply to a question of a subject.
_TEACHING = frozenset({Kind.EXPLAIN, Kind.FEEDBACK, Kind.HINT})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutQuestion:
    """One held-out question in one situation.

    Attributes:
        prompt: What the student's model gets.
        situation: What the student needs.
        occasion: What the policy decides for it.
        target: A reply by the student's policy, distilled as a clone would; empty if distillation failed.
    """

    prompt: Prompt
    situation: Situation
    occasion: Occasion
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyArm:
    """Something that replies to held-out questions.

    Attributes:
        name: Its name.
        has_policy: Whether the teaching policy is in its prompt.
        factors: Its adapter; None for the Main Brain alone.
        adapter_name: Names the adapter by all that it depends on; empty for none.
    """

    name: str
    has_policy: bool = False
    factors: LoraFactors | None = None
    adapter_name: str = ""


def questions_of(heldout: Baseline, *, policy: TeachingPolicy, trainer: AdapterTrainer) -> list[HeldoutQuestion]:
    """Returns each held-out question in one of its situations, in turn, so that all situations occur.

    The policy is drawn from the baseline, not from the held-out answers. No adapter is involved.
    """
    drafts = []
    for place, response in enumerate(heldout.responses):
        some = draft_examples(replace(heldout, responses=(response,)), policy)
        drafts += [(response, some[place % len(some)])] if some else []
    replies = replies_to([draft for _, draft in drafts], trainer.base, trainer.passes, cache=trainer.replies, seed=0)
    return [
        HeldoutQuestion(
            prompt=draft.prompt,
            situation=draft.brief.situation,
            occasion=Occasion(
                subject=response.subject,
                skill=response.skill,
                asks_for_hint=draft.brief.situation is Situation.HINT,
                is_settled=draft.brief.verdict is AnswerVerdict.CORRECT,
            ),
            target=draft.feedback or replies.get(draft.brief, ""),
        )
        for response, draft in drafts
    ]


def targets_of(questions: Sequence[HeldoutQuestion], *, policy_in_prompt: TeachingPolicy | None = None) -> list[Target]:
    """Returns the questions that have a reply to measure the loss on; the prompt may tell a policy."""
    return [
        Target(prompt=prompt_of(question, policy_in_prompt), reply=question.target)
        for question in questions
        if question.target
    ]


def prompt_of(question: HeldoutQuestion, policy_in_prompt: TeachingPolicy | None) -> Prompt:
    """Returns the prompt of a question, with a policy in its system text if one is given."""
    return (
        question.prompt
        if policy_in_prompt is None
        else with_policy(question.prompt, policy_in_prompt, question.occasion)
    )


class ReplyDecoder:
    """Decodes greedy replies, and stores each, so that none is decoded twice.

    Args:
        trainer: Its Main Brain replies.
        path: The file of replies; the first one creates it.
        max_tokens: Longest reply in tokens.
    """

    def __init__(self, trainer: AdapterTrainer, *, path: Path, max_tokens: int) -> None:
        self._trainer = trainer
        self._cache = FileReplyCache(path)
        self._max_tokens = max_tokens

    def replies(
        self, questions: Sequence[HeldoutQuestion], arms: Sequence[ReplyArm], policy: TeachingPolicy
    ) -> dict[str, list[str]]:
        """Returns each arm's reply to each question, by the arm's name; a policy in the prompt is the student's."""
        openings = {
            (arm.name, place): self._opening(prompt_of(question, policy if arm.has_policy else None), arm)
            for arm in arms
            for place, question in enumerate(questions)
        }
        keys = {where: self._key(openings[where], arm) for arm in arms for where in openings if where[0] == arm.name}
        missing = {key: openings[where] for where, key in keys.items() if not self._cache.get_many([key])}
        rows = list(missing.items())
        for start in range(0, len(rows), _ROWS):
            self._decode(dict(rows[start : start + _ROWS]))
        stored = self._cache.get_many(list(keys.values()))
        return {arm.name: [stored[keys[arm.name, place]] for place in range(len(questions))] for arm in arms}

    def _decode(self, openings: Mapping[str, Opening]) -> None:
        decoding = Decoding(layers=self._trainer.passes.layers, openings=list(openings.values()))
        (continuations,) = decode_all([decoding])
        texts = [text_of(self._trainer.base, item.tokens) for item in continuations]
        self._cache.put_many(dict(zip(openings, texts, strict=True)))

    def _opening(self, prompt: Prompt, arm: ReplyArm) -> Opening:
        base = self._trainer.base
        # A clone is never served with a looser rule against circling than the Main Brain's.
        prompt_tokens = encode_prompt(base.tokenizer, prompt)
        return greedy_opening(base, prompt_tokens, max_tokens=self._max_tokens, factors=arm.factors)

    def _key(self, opening: Opening, arm: ReplyArm) -> str:
        base = self._trainer.base
        inputs = [
            base.digest,
            str(base.dtype),
            arm.adapter_name,
            opening.tokens,
            opening.max_tokens,
            base.unrepeated_run,
        ]
        return sha256(json.dumps(inputs).encode()).hexdigest()


def norm_of(profile: StudentProfile, lessons: Sequence[Lesson]) -> ReadingNorm:
    """Returns how hard the lessons' replies are for the student's grade band and disability.

    Raises:
        ValueError: There is no such lesson.
    """
    band = GRADE_BANDS.get(profile.grade or "")
    teaching = [lesson for lesson in lessons if lesson.kind in _TEACHING]
    in_band = [lesson for lesson in teaching if band is None or GRADE_BANDS[lesson.profile.grade] is band]
    alike = [lesson for lesson in in_band if (lesson.profile.disability or None) == profile.disability]
    return ReadingNorm.of(lesson.reply for lesson in alike)
