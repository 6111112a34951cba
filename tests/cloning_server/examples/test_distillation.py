"""Distillation with the real base model as teacher: which replies pass, and which are shared."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Continuation, Decoding, decode_all
from cloning_server.examples.distillation import distil, form_faults
from cloning_server.examples.examples import Band, ReplyBrief, ResponseVerdict, draft_examples
from cloning_server.examples.fidelity import content_faults
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.reply_cache import ReplyCache, ValkeyReplyCache
from cloning_server.examples.teacher import key_of, task_of, teacher_prompt
from cloning_server.learning import training_run
from cloning_server.learning.passes import Passes
from cloning_server.training import Progress, TrainedAdapter
from mesh.main_brain.base import BaseModel
from mesh.tutoring.form import split_sentences
from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile
from mesh.tutoring.teaching import rules_of
from testing.lessons import PROFILE, DictReplyCache, baseline_of, graded
from testing.parts.stores import RedisEndpoint

DRAFTS = draft_examples(baseline_of([graded(index) for index in range(4)]))
BRIEFS = tuple(replace(draft.brief, is_guided=False) for draft in DRAFTS)
TASK = task_of(BRIEFS[0])
# One sentence, too long for the student and without a place to cut it.
HOPELESS = replace(BRIEFS[0], reference="Cat dog sun cup hat pen box key map fan jar net log pot bus van wig owl.")


Distil = Callable[[Sequence[ReplyBrief], ReplyCache], dict[ReplyBrief, str]]


@pytest.fixture(scope="module")
def cache() -> DictReplyCache:
    return DictReplyCache()


@pytest.fixture(scope="module")
def distil_alone(base: BaseModel, passes: Passes) -> Distil:
    def distil_alone(briefs: Sequence[ReplyBrief], cache: ReplyCache) -> dict[ReplyBrief, str]:
        items: list[Progress | TrainedAdapter] = []
        run = distil(briefs, base, layers=passes.layers, cache=cache, seed=5)
        replies = training_run.run_alone(run, watch=items.append)
        progress = items[-1]
        assert isinstance(progress, Progress)
        assert progress.fraction == pytest.approx(0.9)
        assert progress.message == f"{len(replies)} of {len(set(briefs))} replies distilled"
        return replies

    return distil_alone


@pytest.fixture(scope="module")
def replies(distil_alone: Distil, cache: DictReplyCache) -> dict[ReplyBrief, str]:
    return distil_alone([*BRIEFS, BRIEFS[0]], cache)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Decoding]:
    """Everything that was decoded."""
    calls: list[Decoding] = []

    def recorded(requests: Sequence[Decoding]) -> list[list[Continuation]]:
        calls.extend(requests)
        return decode_all(requests)

    monkeypatch.setattr(training_run, "decode_all", recorded)
    return calls


def test_most_lessons_get_a_reply_that_says_what_the_reference_says(replies: dict[ReplyBrief, str]) -> None:
    assert len(replies) >= 3
    for brief, reply in replies.items():
        body = "\n".join(reply.splitlines()[1:-1])
        assert content_faults(body, brief.reference, question=brief.question) == []


def test_every_reply_has_the_form_that_the_profile_asks_for(replies: dict[ReplyBrief, str]) -> None:
    rules = rules_of(PROFILE)
    assert all(rules.violations(reply) == [] for reply in replies.values())


def test_replies_in_the_cache_are_not_distilled_again(
    distil_alone: Distil, cache: DictReplyCache, replies: dict[ReplyBrief, str], decodings: list[Decoding]
) -> None:
    assert distil_alone(BRIEFS, cache) == replies
    assert decodings == []


def test_a_lesson_that_can_not_be_taught_is_dropped_and_not_tried_again(
    distil_alone: Distil, decodings: list[Decoding]
) -> None:
    cache = DictReplyCache()
    assert distil_alone([HOPELESS], cache) == {}
    assert decodings != []
    decodings.clear()
    assert distil_alone([HOPELESS], cache) == {}
    assert decodings == []


def test_a_lesson_made_of_the_students_words_is_not_shared(distil_alone: Distil) -> None:
    cache = DictReplyCache()
    private = replace(BRIEFS[0], is_private=True)
    assert private in distil_alone([private], cache)
    assert cache == {}


async def test_valkey_keeps_replies_for_other_trainers(redis_endpoint: RedisEndpoint) -> None:
    writer, reader = ValkeyReplyCache(redis_endpoint.url), ValkeyReplyCache(redis_endpoint.url)
    key = key_of(TASK, "digest of this test")
    writer.put_many({key: "", "another": "reply"})
    assert reader.get_many([key, "missing", "another"]) == {key: "", "another": "reply"}
    writer.close()
    reader.close()


def test_lessons_are_distilled_without_the_cache_if_it_is_down(distil_alone: Distil) -> None:
    # Port 1 of the loopback refuses at once.
    down = ValkeyReplyCache("redis://127.0.0.1:1/0")
    assert BRIEFS[1] in distil_alone([BRIEFS[1]], down)
    down.close()


@pytest.mark.parametrize(
    "different",
    [
        replace(BRIEFS[0], question="Other?"),
        replace(BRIEFS[0], reference="Other."),
        replace(BRIEFS[0], profile=replace(PROFILE, subject="Other")),
        replace(BRIEFS[0], profile=replace(PROFILE, grade="6")),
        replace(BRIEFS[0], profile=replace(PROFILE, disability=Disability.AUTISM)),
    ],
)
def test_everything_that_the_teachers_sentences_depend_on_is_in_their_key(different: ReplyBrief) -> None:
    assert key_of(task_of(different), "base") != key_of(TASK, "base")
    assert key_of(TASK, "other base") != key_of(TASK, "base")


@pytest.mark.parametrize(
    "different",
    [
        replace(BRIEFS[0], verdict=ResponseVerdict.CORRECT),
        replace(BRIEFS[0], band=Band.SECURE),
        replace(BRIEFS[0], is_guided=True),
        replace(BRIEFS[0], profile=replace(PROFILE, learning_style=LearningStyle.AUDITORY)),
    ],
)
def test_lessons_that_differ_in_their_frame_alone_share_the_teachers_sentences(
    different: ReplyBrief,
    distil_alone: Distil,
    cache: DictReplyCache,
    replies: dict[ReplyBrief, str],
    decodings: list[Decoding],
) -> None:
    reply_by_brief = distil_alone([different], cache)
    assert decodings == []
    assert reply_by_brief[different] != replies[BRIEFS[0]]
    assert reply_by_brief == distil_alone([different], DictReplyCache())


def test_the_teachers_prompt_holds_what_its_sentences_depend_on_and_nothing_that_it_could_get_wrong() -> None:
    brief = replace(BRIEFS[0], verdict=ResponseVerdict.INCORRECT, band=Band.STRUGGLING)
    prompt = teacher_prompt(task_of(brief), "The heart pumps blood.")
    assert prompt == teacher_prompt(
        task_of(replace(brief, verdict=ResponseVerdict.CORRECT, band=Band.SECURE)), "The heart pumps blood."
    )
    assert prompt.instruction is not None
    for part in ("grade 5", "Science", "short numbered steps"):
        assert part in prompt.instruction
    assert prompt.turns[-1].text == "The heart pumps blood."


def test_a_student_with_few_right_answers_is_asked_what_is_hard_before_the_closing_question() -> None:
    guided, alone = (
        frame_reply(replace(BRIEFS[0], is_guided=is_guided), ["The heart pumps blood."]) for is_guided in (True, False)
    )
    assert guided.splitlines()[2] == "2. Tell me which part is hard."
    assert split_sentences(guided)[-1] == split_sentences(alone)[-1]
    assert "hard" not in alone


def test_a_lower_record_gets_more_scaffolding_and_each_verdict_its_own_opening() -> None:
    def frame(verdict: ResponseVerdict, band: Band) -> str:
        return frame_reply(replace(BRIEFS[0], verdict=verdict, band=band), ["The heart pumps blood."])

    weak, strong = frame(ResponseVerdict.INCORRECT, Band.STRUGGLING), frame(ResponseVerdict.INCORRECT, Band.SECURE)
    assert len(split_sentences(weak)) > len(split_sentences(strong))
    assert "one small step" in weak
    assert "another example" in strong
    assert len({frame(verdict, Band.SECURE) for verdict in ResponseVerdict}) == len(ResponseVerdict)


@pytest.mark.parametrize("grade", ["K", "5", "9", None])
@pytest.mark.parametrize("style", [None, *LearningStyle])
@pytest.mark.parametrize("need", [None, *Disability])
def test_every_frame_has_the_form_that_its_profile_asks_for(
    grade: str | None, style: LearningStyle | None, need: Disability | None
) -> None:
    profile = StudentProfile(grade=grade, learning_style=style, disability=need)
    for verdict, band, is_guided in itertools.product(ResponseVerdict, Band, (False, True)):
        brief = replace(BRIEFS[0], profile=profile, verdict=verdict, band=band, is_guided=is_guided)
        assert form_faults(brief, frame_reply(brief, ["The heart pumps blood."])) == []


def test_a_reference_without_a_word_is_dropped_rather_than_framed_empty(distil_alone: Distil) -> None:
    wordless = replace(BRIEFS[0], reference="???")
    assert set(distil_alone([wordless, BRIEFS[1]], DictReplyCache())) <= {BRIEFS[1]}
