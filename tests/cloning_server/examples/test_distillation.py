"""Distillation with the real base model as teacher: which replies pass, and which are shared."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Continuation, Decoding, decode_all
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.distillation import distil
from cloning_server.examples.examples import draft_examples
from cloning_server.examples.fidelity import content_faults
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.manner import Manner
from cloning_server.examples.reply_cache import ReplyCache, ValkeyReplyCache
from cloning_server.examples.situations import Situation
from cloning_server.examples.teacher import key_of, task_of, teacher_prompt
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.learning import training_run
from cloning_server.learning.passes import Passes
from cloning_server.training import Progress, TrainedAdapter
from mesh.lm.chat import encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import agrees, contains_answer, judges
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, WritingLevel
from mesh.tutoring.profile import Disability, LearningStyle
from mesh.tutoring.teaching import rules_of
from testing.lessons import PROFILE, DictReplyCache, baseline_of, graded
from testing.parts.stores import RedisEndpoint

BASELINE = baseline_of([graded(index) for index in range(4)])
BRIEFS = tuple(draft.brief for draft in draft_examples(BASELINE, compute_policy(BASELINE)))
EXPLAINED = next(brief for brief in BRIEFS if brief.situation is Situation.EXPLAIN)
TOLD_WRONG = next(brief for brief in BRIEFS if brief.verdict is AnswerVerdict.INCORRECT)
TASK = task_of(EXPLAINED)
# One sentence, too long for the student and without a place to cut it.
HOPELESS = replace(EXPLAINED, reference="Cat dog sun cup hat pen box key map fan jar net log pot bus van wig owl.")


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
    explained = {brief: reply for brief, reply in replies.items() if brief.reference}
    assert len(explained) >= 3
    for brief, reply in explained.items():
        sentences = [line.split(". ", 1)[1] for line in reply.splitlines() if line[:1].isdigit()]
        assert any(content_faults(sentence, brief.reference, question=brief.question) == [] for sentence in sentences)


def test_a_reply_to_a_wrong_answer_does_not_say_the_right_one(replies: dict[ReplyBrief, str]) -> None:
    reference_of = {response.question: response.reference_answer for response in BASELINE.responses}
    told_wrong = {brief: reply for brief, reply in replies.items() if brief.verdict is AnswerVerdict.INCORRECT}
    assert told_wrong
    assert not any(contains_answer(reply, reference_of[brief.question]) for brief, reply in told_wrong.items())


def test_every_brief_gets_a_reply(replies: dict[ReplyBrief, str]) -> None:
    assert set(replies) == set(BRIEFS)


def test_whoever_is_not_known_to_be_right_gets_the_frame_of_a_check_alone(replies: dict[ReplyBrief, str]) -> None:
    checks = {brief: reply for brief, reply in replies.items() if brief.situation is Situation.CHECK}
    assert checks
    assert all(reply == frame_reply(brief, []) for brief, reply in checks.items())


def test_a_reply_judges_only_what_its_prompt_tells(replies: dict[ReplyBrief, str]) -> None:
    for brief, reply in replies.items():
        assert agrees(reply, brief.verdict) if brief.verdict else not judges(reply)


def test_every_reply_has_the_form_that_the_profile_asks_for(replies: dict[ReplyBrief, str]) -> None:
    rules = rules_of(PROFILE)
    assert all(rules.violations(reply) == [] for reply in replies.values())


def test_sentences_that_fit_the_student_are_not_restated(
    distil_alone: Distil, replies: dict[ReplyBrief, str], decodings: list[Decoding]
) -> None:
    assert EXPLAINED.reference in replies[EXPLAINED]
    assert distil_alone([EXPLAINED], DictReplyCache()) == {EXPLAINED: replies[EXPLAINED]}
    assert decodings == []


def test_what_cannot_be_restated_in_the_students_form_is_explained_by_the_main_brain(
    distil_alone: Distil, base: BaseModel, decodings: list[Decoding]
) -> None:
    cache = DictReplyCache()
    reply = distil_alone([HOPELESS], cache)[HOPELESS]
    assert "wig" not in reply
    assert rules_of(PROFILE).violations(reply) == []
    assert decodings[-1].openings[0].tokens == tuple(encode_prompt(base.tokenizer, HOPELESS.prompt))
    decodings.clear()
    # That it cannot be restated is known now; the Main Brain's own explanation is for this student alone.
    assert distil_alone([HOPELESS], cache) == {HOPELESS: reply}
    assert len(decodings) == 1


def test_what_is_made_of_the_students_words_is_not_shared(distil_alone: Distil) -> None:
    cache = DictReplyCache()
    private = replace(HOPELESS, is_private=True)
    assert private in distil_alone([private, TOLD_WRONG], cache)
    assert cache == {}


async def test_valkey_keeps_replies_for_other_trainers(redis_endpoint: RedisEndpoint) -> None:
    writer, reader, stranger = (
        ValkeyReplyCache(redis_endpoint.url, tenant=tenant, ttl_seconds=60) for tenant in ("a", "a", "b")
    )
    key = key_of(TASK, "digest of this test")
    writer.put_many({key: "", "another": "reply"})
    assert reader.get_many([key, "missing", "another"]) == {key: "", "another": "reply"}
    assert stranger.get_many([key, "another"]) == {}, "another tenant's assessments"
    for cache in (writer, reader, stranger):
        cache.close()


def test_lessons_are_distilled_without_the_cache_if_it_is_down(distil_alone: Distil) -> None:
    # Port 1 of the loopback refuses at once.
    down = ValkeyReplyCache("redis://127.0.0.1:1/0", tenant="a", ttl_seconds=60)
    assert BRIEFS[1] in distil_alone([BRIEFS[1]], down)
    down.close()


@pytest.mark.parametrize(
    "different",
    [
        replace(EXPLAINED, question="Other?"),
        replace(EXPLAINED, reference="Other."),
        replace(EXPLAINED, profile=replace(PROFILE, subject="Other")),
        replace(EXPLAINED, profile=replace(PROFILE, grade="6")),
        replace(EXPLAINED, manner=Manner(writing=WritingLevel.BELOW)),
        replace(EXPLAINED, profile=replace(PROFILE, disability=Disability.AUTISM)),
    ],
)
def test_everything_that_the_teachers_sentences_depend_on_is_in_their_key(different: ReplyBrief) -> None:
    assert key_of(task_of(different), "base") != key_of(TASK, "base")
    assert key_of(TASK, "other base") != key_of(TASK, "base")


@pytest.mark.parametrize(
    "different",
    [
        replace(EXPLAINED, situation=Situation.FEEDBACK, verdict=AnswerVerdict.CORRECT),
        replace(EXPLAINED, scaffold=Scaffold.EXTENSION),
        replace(EXPLAINED, manner=Manner(guidance=GuidanceLevel.MUCH)),
        replace(EXPLAINED, manner=Manner(mistake=MistakeKind.INCOMPLETE)),
        replace(EXPLAINED, manner=Manner(interest="soccer")),
        replace(EXPLAINED, draw=EXPLAINED.draw + 1),
        replace(EXPLAINED, profile=replace(PROFILE, learning_style=LearningStyle.AUDITORY)),
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
    assert reply_by_brief[different] != replies[EXPLAINED]
    assert task_of(different) == TASK


def test_the_teachers_prompt_holds_what_its_sentences_depend_on_and_nothing_that_it_could_get_wrong() -> None:
    told = replace(EXPLAINED, situation=Situation.FEEDBACK, verdict=AnswerVerdict.CORRECT, scaffold=Scaffold.RECAP)
    prompt = teacher_prompt(task_of(told), "The heart pumps blood.")
    other = replace(EXPLAINED, scaffold=Scaffold.EXTENSION, manner=Manner(interest="soccer"))
    assert prompt == teacher_prompt(task_of(other), "The heart pumps blood.")
    assert prompt.assessment is None
    assert prompt.instruction is not None
    for part in ("grade 5", "Science", "short numbered steps"):
        assert part in prompt.instruction
    assert prompt.turns[-1].text == "The heart pumps blood."


def test_the_teacher_of_a_wrong_answer_does_not_know_the_right_one() -> None:
    reference = BASELINE.responses[0].reference_answer
    assert TOLD_WRONG.question == BASELINE.responses[0].question
    assert reference in repr(teacher_prompt(TASK, reference))
    assert TOLD_WRONG.reference == ""
    assert reference not in repr(teacher_prompt(task_of(TOLD_WRONG), TOLD_WRONG.question))


def test_a_reference_without_a_word_teaches_nothing_by_itself(distil_alone: Distil) -> None:
    wordless = replace(EXPLAINED, reference="???")
    reply = distil_alone([wordless], DictReplyCache())[wordless]
    assert "???" not in reply
