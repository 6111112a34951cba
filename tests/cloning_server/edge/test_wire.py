"""What a request becomes, and what is wrong with one that becomes nothing."""

import contextlib
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from cloning_server.clone import Clone, CloneState, Consent, Failure, Priority, Terms
from cloning_server.clones.feed import Change
from cloning_server.clones.intake import request_digest
from cloning_server.edge import order_wire, wire
from mesh.errors import InvalidField, NoTrainableExamples
from mesh.rpc.errors import error_from
from mesh.rpc.validation import check
from mesh.tutoring.profile import Disability, LearningStyle, StudentProfile
from tests.cloning_server.conftest import NAME, order

LONG = "a" * 4001
RESPONSE = "baseline_data.responses[3]"
Spoil = Callable[[pb.StartCloneRequest], object]


def faults(request: pb.StartCloneRequest) -> dict[str, str]:
    """Descriptions by field."""

    def parse() -> None:
        check(request)
        order_wire.order_from(request)

    with pytest.raises(InvalidField) as caught:
        parse()
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_request_becomes_a_baseline_without_the_students_name() -> None:
    parsed_order = order_wire.order_from(order(request_id="enrol-17"))
    assert parsed_order.baseline.profile == StudentProfile(
        grade="5", disability=Disability.ADHD, learning_style=LearningStyle.VISUAL
    )
    assert parsed_order.baseline.responses[1].question == "What is 1 + 1?"
    assert (parsed_order.baseline.assessment_id, parsed_order.baseline.overall_score) == ("baseline_001", 75.5)
    assert NAME not in repr(parsed_order)


def test_what_was_left_out_is_told_from_what_is_zero() -> None:
    request = order(responses=2)
    request.baseline_data.ClearField("overall_score")
    request.baseline_data.responses[1].score = 0
    request.baseline_data.responses[1].is_correct = False
    unset, zero = order_wire.order_from(request).baseline.responses
    assert (unset.score, unset.is_correct) == (None, None)
    assert (zero.score, zero.is_correct) == (0, False)
    baseline = order_wire.order_from(request).baseline
    assert (baseline.overall_score, baseline.max_score, baseline.best_score) == (None, None, 100)
    request.baseline_data.max_score = 20
    assert order_wire.order_from(request).baseline.best_score == 20


@pytest.mark.parametrize(
    ("spoil", "field", "accepted"),
    [
        (lambda r: setattr(r, "student_id", ""), "student_id", "1 to 64"),
        (lambda r: setattr(r, "student_id", "a" * 65), "student_id", "1 to 64"),
        (lambda r: setattr(r, "request_id", "../x"), "request_id", "1 to 64"),
        (lambda r: setattr(r.student_profile, "grade", "13"), "student_profile.grade", "K, 1, 2"),
        (lambda r: setattr(r.student_profile, "disability", "?"), "student_profile.disability", "adhd, autism"),
        (lambda r: setattr(r.student_profile, "learning_style", "?"), "student_profile.learning_style", "visual"),
        (lambda r: interests(r, "cats", "dogs", "web2"), "student_profile.interests[2]", "letters"),
        (lambda r: interests(r, "a" * 41), "student_profile.interests[0]", "1 to 40"),
        (lambda r: interests(r, " "), "student_profile.interests[0]", "1 to 40"),
        (lambda r: interests(r, "one two three four"), "student_profile.interests[0]", "three words"),
        (lambda r: interests(r, "cats", "a@b.org"), "student_profile.interests[1]", "letters"),
        (lambda r: interests(r, "cats", "https://cats.org"), "student_profile.interests[1]", "letters"),
        (lambda r: interests(r, "cats\nand dogs"), "student_profile.interests[0]", "letters"),
        (lambda r: interests(r, "-cats"), "student_profile.interests[0]", "letters"),
        (lambda r: interests(r, *"abcdef"), "student_profile.interests", "5 items"),
        (lambda r: setattr(r.baseline_data, "assessment_id", "a" * 129), "baseline_data.assessment_id", "128"),
        (lambda r: setattr(r.baseline_data, "overall_score", 100.1), "baseline_data.overall_score", "equal to 100"),
        (lambda r: r.baseline_data.ClearField("responses"), "baseline_data.responses", "at least 2"),
        (lambda r: setattr(answer(r), "question", ""), f"{RESPONSE}.question", "empty"),
        (lambda r: setattr(answer(r), "question", LONG), f"{RESPONSE}.question", "4000"),
        (lambda r: setattr(answer(r), "student_answer", "\n "), f"{RESPONSE}.student_answer", "empty"),
        (lambda r: setattr(answer(r), "reference_answer", LONG), f"{RESPONSE}.reference_answer", "4000"),
        (lambda r: setattr(answer(r), "teacher_feedback", LONG), f"{RESPONSE}.teacher_feedback", "4000"),
        (lambda r: setattr(answer(r), "item_id", "a" * 129), f"{RESPONSE}.item_id", "128"),
        (lambda r: setattr(answer(r), "skill", "a" * 129), f"{RESPONSE}.skill", "128"),
        (lambda r: setattr(answer(r), "subject", "a" * 65), f"{RESPONSE}.subject", "64"),
        (lambda r: setattr(answer(r), "subject", "\x01" * 64), f"{RESPONSE}.subject", "control characters"),
        (lambda r: setattr(answer(r), "skill", "\x1b[2J"), f"{RESPONSE}.skill", "control characters"),
        (lambda r: setattr(answer(r), "skill", "adding\x7f"), f"{RESPONSE}.skill", "control characters"),
        (lambda r: setattr(answer(r), "skill", "\x9b2J"), f"{RESPONSE}.skill", "control characters"),
        (lambda r: setattr(r.baseline_data, "max_score", 0), "baseline_data.max_score", "greater than 0"),
        (lambda r: setattr(r.baseline_data, "max_score", -20), "baseline_data.max_score", "greater than 0"),
        (lambda r: setattr(r.baseline_data, "max_score", float("inf")), "baseline_data.max_score", "finite"),
        (lambda r: setattr(r.baseline_data, "max_score", float("nan")), "baseline_data.max_score", "finite"),
        (lambda r: setattr(answer(r), "score", -1), f"{RESPONSE}.score", "greater than or equal to 0"),
        (lambda r: setattr(answer(r), "score", float("nan")), f"{RESPONSE}.score", "greater than or equal to 0"),
        (lambda r: setattr(r, "priority", 9), "priority", "CLONE_PRIORITY_LOW"),
        (lambda r: setattr(r, "priority", 0), "priority", "CLONE_PRIORITY_NORMAL"),
        (lambda r: setattr(r, "base_version", 0), "base_version", "greater than or equal to 1"),
        (lambda r: consent(r, basis="Mrs Smith said so"), "consent.basis", "1 to 64"),
        (lambda r: consent(r, granted=None), "consent.grant_time", "required"),
        (lambda r: consent(r, granted=2**35), "consent.grant_time", "future"),
        (lambda r: consent(r, granted=2**40), "consent.grant_time", "future"),
        (lambda r: consent(r, granted=-(2**40)), "consent.grant_time", "1 and 9999"),
        (lambda r: consent(r, expires=2**40), "consent.expire_time", "1 and 9999"),
        (lambda r: consent(r, granted=10, expires=10), "consent.expire_time", "later"),
    ],
)  # fmt: skip
def test_a_fault_is_told_by_its_field_and_what_would_be_accepted(spoil: Spoil, field: str, accepted: str) -> None:
    request = order()
    spoil(request)
    violations = faults(request)
    assert list(violations) == [field]
    assert accepted in violations[field]


def test_interests_are_kept_with_the_baseline_each_once_and_are_no_part_of_the_profile() -> None:
    request = order()
    # The last but one has an accent of its own after the letter.
    interests(request, " cats", "rock  climbing ", "Jos\u00e9's jazz-band", "JOSE\u0301's Jazz-Band", "a" * 40)
    check(request)
    baseline = order_wire.order_from(request).baseline
    assert baseline.interests == ("cats", "rock climbing", "Jos\u00e9's jazz-band", "a" * 40)
    assert baseline.profile == order_wire.order_from(order()).baseline.profile


def test_a_skill_has_one_name_whatever_its_blank_space() -> None:
    request = order()
    for response, skill in zip(request.baseline_data.responses, ("adding  up", "\tadding\nup ", " ", ""), strict=True):
        response.skill, response.subject = skill, f" {skill}"
    check(request)
    responses = order_wire.order_from(request).baseline.responses
    assert [response.skill for response in responses] == ["adding up", "adding up", "", ""]
    assert [response.subject for response in responses] == ["adding up", "adding up", "", ""]


def interests(request: pb.StartCloneRequest, *words: str) -> None:
    """Tells what the student likes."""
    request.student_profile.interests.extend(words)


def answer(request: pb.StartCloneRequest) -> pb.BaselineResponse:
    """The response that is spoilt."""
    return request.baseline_data.responses[3]


def consent(
    request: pb.StartCloneRequest, *, basis: str = "parental", granted: int | None = 1, expires: int | None = None
) -> None:
    """Gives a consent, in seconds since 1970."""
    request.consent.basis = basis
    if granted is not None:
        request.consent.grant_time.seconds = granted
    if expires is not None:
        request.consent.expire_time.seconds = expires


def test_the_terms_of_a_request_are_those_of_the_clone() -> None:
    request = order()
    request.priority, request.queue_behind, request.base_version = pb.CLONE_PRIORITY_LOW, True, 3
    consent(request, granted=1, expires=2)
    assert order_wire.order_from(request).terms == Terms(
        priority=Priority.LOW,
        queue_behind=True,
        base_version=3,
        consent=Consent(
            basis="parental",
            granted_time=datetime.fromtimestamp(1, UTC),
            expires_time=datetime.fromtimestamp(2, UTC),
        ),
    )
    assert order_wire.order_from(order()).terms == Terms()


def test_an_empty_request_tells_all_that_is_missing() -> None:
    assert list(faults(pb.StartCloneRequest())) == ["student_id", "baseline_data"]


def test_a_faulty_value_is_never_repeated() -> None:
    request = order()
    request.student_profile.grade = "a secret"
    request.baseline_data.responses[0].skill = "a secret" * 100
    assert "secret" not in str(faults(request))


@pytest.mark.parametrize("count", [2, 1000])
def test_two_to_a_thousand_responses_are_taken(count: int) -> None:
    request = order(responses=count)
    check(request)
    assert len(order_wire.order_from(request).baseline.responses) == count


@pytest.mark.parametrize("count", [1, 1001])
def test_fewer_or_more_responses_are_refused(count: int) -> None:
    assert list(faults(order(responses=count))) == ["baseline_data.responses"]


text = st.text(st.characters(codec="utf-8"), max_size=40)


def is_visible(char: str) -> bool:
    """Whether a character shows something by itself, and is no filler, which looks like a blank."""
    return unicodedata.category(char)[0] not in "ZCM" and char not in "\u2800\u3164\u115f\u1160\uffa0"


def is_control(char: str) -> bool:
    """Whether a character is for machines alone; tabs and line breaks are blank space."""
    return unicodedata.category(char) == "Cc" and char not in "\t\n\f\r"


@given(question=text, student_answer=text, skill=text, feedback=text)
def test_texts_arrive_as_they_were_sent_or_are_refused(
    question: str, student_answer: str, skill: str, feedback: str
) -> None:
    request = order()
    response = pb.BaselineResponse(
        question=question, student_answer=student_answer, skill=skill, teacher_feedback=feedback
    )
    request.baseline_data.responses.append(response)
    if all(any(map(is_visible, value)) for value in (question, student_answer)) and not any(map(is_control, skill)):
        check(request)
        parsed = order_wire.order_from(request).baseline.responses[-1]
        assert (parsed.question, parsed.student_answer) == (question, student_answer)
        assert (parsed.skill.split(), parsed.teacher_feedback) == (skill.split(), feedback)
    else:
        # The rule's tables of characters are of another version of Unicode: a new one may be let through.
        with contextlib.suppress(InvalidField):
            check(request)
            assert question.strip()
            assert student_answer.strip()
            assert not any(map(is_control, skill))


def test_every_field_but_the_name_makes_another_request() -> None:
    spoils: list[Spoil] = [
        lambda r: setattr(r, "student_id", "another"),
        lambda r: setattr(r.student_profile, "grade", "6"),
        lambda r: setattr(r.student_profile, "disability", ""),
        lambda r: setattr(r.student_profile, "learning_style", "auditory"),
        lambda r: interests(r, "cats"),
        lambda r: setattr(r.baseline_data, "assessment_id", "another"),
        lambda r: setattr(r.baseline_data, "overall_score", 1),
        lambda r: setattr(r.baseline_data, "max_score", 20),
        lambda r: setattr(answer(r), "score", 0),
        lambda r: setattr(answer(r), "is_correct", False),
        lambda r: setattr(answer(r), "teacher_feedback", "Well done."),
        lambda r: setattr(r, "priority", pb.CLONE_PRIORITY_HIGH),
        lambda r: setattr(r, "queue_behind", True),
        lambda r: setattr(r, "base_version", 2),
        lambda r: consent(r, granted=1),
    ]
    digests = {_digest(order())}
    for spoil in spoils:
        request = order()
        spoil(request)
        digests.add(_digest(request))
    assert len(digests) == len(spoils) + 1
    renamed = order()
    renamed.student_profile.name = "Another"
    assert _digest(renamed) in digests


def _digest(request: pb.StartCloneRequest) -> str:
    parsed_order = order_wire.order_from(request)
    return request_digest(parsed_order.student_id, parsed_order.baseline, parsed_order.terms)


def test_every_state_has_its_place_in_the_contract() -> None:
    numbers = {pb.CloneState.Value(f"CLONE_STATE_{state.name}") for state in CloneState}
    assert numbers == set(pb.CloneState.values()) - {pb.CLONE_STATE_UNSPECIFIED}


def test_why_a_clone_failed_is_told_as_the_error_it_was() -> None:
    now = datetime.now(UTC)
    clone = Clone(
        clone_id="clone_1",
        student_id="student123",
        state=CloneState.FAILED,
        sequence=5,
        attempt=1,
        progress=40,
        message="too few",
        created_time=now,
        updated_time=now,
        estimated_seconds=45,
        failure=Failure(reason="NO_TRAINABLE_EXAMPLES", message="too few", facts={"responses": "3", "usable": "1"}),
    )
    for response in (wire.clone_from(clone, active_version=0), wire.change_from(Change(clone=clone), active_version=0)):
        error = error_from(response.error)
        assert isinstance(error, NoTrainableExamples)
        assert (str(error), error.facts) == ("too few", {"responses": "3", "usable": "1"})
        assert (response.status, response.state, response.progress) == ("failed", pb.CLONE_STATE_FAILED, 40)
