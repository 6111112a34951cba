"""Distillation: the real base model as teacher, what is kept of what it says, and what is paid for once."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Continuation, Decoding, decode_all
from cloning_server.examples.distillation import faults_of_reply, key_of, substance_of, teacher_prompt
from cloning_server.examples.examples import AnswerVerdict, Band, Lesson, draft_examples
from cloning_server.examples.fidelity import faults_of
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.reply_cache import ReplyCache, ValkeyReplyCache
from mesh.lm.base import BaseModel
from mesh.tutoring.form import split_sentences
from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile
from mesh.tutoring.teaching import rules_of
from testing import lessons as learning
from testing.lessons import PROFILE, DictReplyCache, baseline_of, distil_alone, graded
from testing.parts.stores import RedisEndpoint

DRAFTS = draft_examples(baseline_of([graded(index) for index in range(4)]))
LESSONS = tuple(replace(draft.lesson, is_guided=False) for draft in DRAFTS)
SUBSTANCE = substance_of(LESSONS[0])
# One sentence, too long for the student and without a place to cut it.
HOPELESS = replace(LESSONS[0], reference="Cat dog sun cup hat pen box key map fan jar net log pot bus van wig owl.")


@pytest.fixture(scope="module")
def cache() -> DictReplyCache:
    return DictReplyCache()


@pytest.fixture(scope="module")
def replies(base: BaseModel, cache: DictReplyCache) -> dict[Lesson, str]:
    return distilled([*LESSONS, LESSONS[0]], base, cache)


def distilled(lessons: Sequence[Lesson], base: BaseModel, cache: ReplyCache) -> dict[Lesson, str]:
    steps = list(distil_alone(lessons, base, cache=cache, seed=5))
    assert steps[-1].settled == steps[-1].total == len(set(lessons))
    return {lesson: reply for step in steps for lesson, reply in step.replies.items()}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the decoder had."""
    calls: list[int] = []

    def counted(decodings: Sequence[Decoding]) -> list[list[Continuation]]:
        calls.extend(len(one.openings) for one in decodings)
        return decode_all(decodings)

    monkeypatch.setattr(learning, "decode_all", counted)
    return calls


def test_most_lessons_get_a_reply_with_the_substance_of_the_reference(replies: dict[Lesson, str]) -> None:
    assert len(replies) >= 3
    for lesson, reply in replies.items():
        body = "\n".join(reply.splitlines()[1:-1])
        assert faults_of(body, lesson.reference, question=lesson.question) == []


def test_every_reply_has_the_form_that_the_profile_asks_for(replies: dict[Lesson, str]) -> None:
    rules = rules_of(PROFILE)
    assert all(rules.violations(reply) == [] for reply in replies.values())


def test_what_was_distilled_is_not_distilled_again(
    base: BaseModel, cache: DictReplyCache, replies: dict[Lesson, str], decoded: list[int]
) -> None:
    assert distilled(LESSONS, base, cache) == replies
    assert decoded == []


def test_a_lesson_that_can_not_be_taught_is_dropped_and_not_tried_again(base: BaseModel, decoded: list[int]) -> None:
    cache = DictReplyCache()
    assert distilled([HOPELESS], base, cache) == {}
    assert decoded != []
    decoded.clear()
    assert distilled([HOPELESS], base, cache) == {}
    assert decoded == []


def test_a_lesson_made_of_the_students_words_is_not_shared(base: BaseModel) -> None:
    cache = DictReplyCache()
    private = replace(LESSONS[0], is_private=True)
    assert private in distilled([private], base, cache)
    assert cache == {}


async def test_valkey_keeps_replies_for_other_trainers(redis_endpoint: RedisEndpoint) -> None:
    writer, reader = ValkeyReplyCache(redis_endpoint.url), ValkeyReplyCache(redis_endpoint.url)
    key = key_of(SUBSTANCE, "digest of this test")
    writer.put_many({key: "", "another": "reply"})
    assert reader.get_many([key, "missing", "another"]) == {key: "", "another": "reply"}
    writer.close()
    reader.close()


def test_a_cache_that_is_down_costs_no_more_than_time(base: BaseModel) -> None:
    # Port 1 of the loopback refuses at once.
    down = ValkeyReplyCache("redis://127.0.0.1:1/0")
    assert LESSONS[1] in distilled([LESSONS[1]], base, down)
    down.close()


@pytest.mark.parametrize(
    "other",
    [
        replace(LESSONS[0], question="Other?"),
        replace(LESSONS[0], reference="Other."),
        replace(LESSONS[0], profile=replace(PROFILE, subject="Other")),
        replace(LESSONS[0], profile=replace(PROFILE, grade="6")),
        replace(LESSONS[0], profile=replace(PROFILE, disability=Disability.AUTISM)),
    ],
)
def test_whatever_shapes_what_the_teacher_says_is_in_its_key(other: Lesson) -> None:
    assert key_of(substance_of(other), "base") != key_of(SUBSTANCE, "base")
    assert key_of(SUBSTANCE, "other base") != key_of(SUBSTANCE, "base")


@pytest.mark.parametrize(
    "other",
    [
        replace(LESSONS[0], verdict=AnswerVerdict.CORRECT),
        replace(LESSONS[0], band=Band.SECURE),
        replace(LESSONS[0], is_guided=True),
        replace(LESSONS[0], profile=replace(PROFILE, learning_style=LearningStyle.AUDITORY)),
    ],
)
def test_whatever_else_shapes_a_reply_shapes_its_frame_and_what_was_said_is_shared(
    other: Lesson, base: BaseModel, cache: DictReplyCache, replies: dict[Lesson, str], decoded: list[int]
) -> None:
    shared = distilled([other], base, cache)
    assert decoded == []
    assert shared[other] != replies[LESSONS[0]]
    assert shared == distilled([other], base, DictReplyCache())


def test_the_teacher_is_told_what_its_sentences_depend_on_and_nothing_that_it_could_get_wrong() -> None:
    lesson = replace(LESSONS[0], verdict=AnswerVerdict.INCORRECT, band=Band.STRUGGLING)
    told = teacher_prompt(substance_of(lesson), "The heart pumps blood.")
    assert told == teacher_prompt(
        substance_of(replace(lesson, verdict=AnswerVerdict.CORRECT, band=Band.SECURE)), "The heart pumps blood."
    )
    assert told.instruction is not None
    for part in ("grade 5", "Science", "short numbered steps"):
        assert part in told.instruction
    assert told.turns[-1].text == "The heart pumps blood."


def test_a_student_who_gets_few_right_is_asked_where_it_is_hard_before_the_last_question() -> None:
    guided, alone = (
        frame_reply(replace(LESSONS[0], is_guided=one), ["The heart pumps blood."]) for one in (True, False)
    )
    assert guided.splitlines()[2] == "2. Tell me which part is hard."
    assert split_sentences(guided)[-1] == split_sentences(alone)[-1]
    assert "hard" not in alone


def test_a_lower_record_gets_more_scaffolding_and_each_verdict_its_own_opening() -> None:
    def framed(verdict: AnswerVerdict, band: Band) -> str:
        return frame_reply(replace(LESSONS[0], verdict=verdict, band=band), ["The heart pumps blood."])

    weak, strong = framed(AnswerVerdict.INCORRECT, Band.STRUGGLING), framed(AnswerVerdict.INCORRECT, Band.SECURE)
    assert len(split_sentences(weak)) > len(split_sentences(strong))
    assert "one small step" in weak
    assert "another example" in strong
    assert len({framed(verdict, Band.SECURE) for verdict in AnswerVerdict}) == len(AnswerVerdict)


@pytest.mark.parametrize("grade", ["K", "5", "9", None])
@pytest.mark.parametrize("style", [None, *LearningStyle])
@pytest.mark.parametrize("need", [None, *Disability])
def test_every_frame_has_the_form_that_its_profile_asks_for(
    grade: str | None, style: LearningStyle | None, need: Disability | None
) -> None:
    profile = StudentProfile(grade=grade, learning_style=style, disability=need)
    for verdict, band, is_guided in itertools.product(AnswerVerdict, Band, (False, True)):
        lesson = replace(LESSONS[0], profile=profile, verdict=verdict, band=band, is_guided=is_guided)
        assert faults_of_reply(lesson, frame_reply(lesson, ["The heart pumps blood."])) == []


def test_a_reference_without_a_word_is_dropped_rather_than_framed_empty(base: BaseModel) -> None:
    wordless = replace(LESSONS[0], reference="???")
    assert set(distilled([wordless, LESSONS[1]], base, DictReplyCache())) <= {LESSONS[1]}
