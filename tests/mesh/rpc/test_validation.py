"""The rules of the protos: every request states what it takes, and the words and limits are those of the domain."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aivo.brain.v1 import adapter_service_pb2, brain_service_pb2
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2, student_model_service_pb2, student_service_pb2
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.adapters.ref import is_student_id
from mesh.errors import InvalidField
from mesh.rpc.validation import check, prepare
from mesh.tutoring.profile import GRADES, Disability, LearningStyle, parse_profile

FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        adapter_service_pb2,
        brain_service_pb2,
        cloning_service_pb2,
        student_model_service_pb2,
        student_service_pb2,
    )
)
SERVICES = [service for file in FILES for service in file.services_by_name.values()]


def faults_of(request: pb.GenerateRequest | cloning_pb.StartCloneRequest) -> list[str]:
    with pytest.raises(InvalidField) as caught:
        check(request)
    return [violation.field for violation in caught.value.violations]


def is_accepted(request: pb.GenerateRequest | cloning_pb.GetCloneRequest) -> bool:
    try:
        check(request)
    except InvalidField:
        return False
    return True


def messages_in(message: Descriptor) -> Iterator[Descriptor]:
    """A message and those in its fields, as far as they are ours."""
    yield message
    for field in message.fields:
        if field.message_type is not None and field.message_type.full_name.startswith("aivo."):
            yield from messages_in(field.message_type)


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_every_field_of_every_request_is_required_or_optional(service: ServiceDescriptor) -> None:
    requests = [method.input_type for method in service.methods]
    # Typed by its own package for other types of options than ours.
    extension: Any = field_behavior_pb2.field_behavior
    behaviors: dict[str, list[int]] = {
        f"{message.name}.{field.name}": list(field.GetOptions().Extensions[extension])
        for request in requests
        for message in messages_in(request)
        for field in message.fields
    }
    accepted = ([field_behavior_pb2.REQUIRED], [field_behavior_pb2.OPTIONAL])
    assert [name for name, behavior in behaviors.items() if behavior not in accepted] == []


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_the_rules_of_every_service_compile(service: ServiceDescriptor) -> None:
    prepare(service.full_name)


@given(st.text(st.sampled_from("aZ09._-/ \n\0é"), max_size=66))
@example("a" * 64)
@example("a" * 65)
@example("clone\n")
def test_an_id_is_accepted_by_the_contract_if_it_may_become_part_of_a_key(value: str) -> None:
    assert is_accepted(cloning_pb.GetCloneRequest(clone_id=value)) == is_student_id(value)


@pytest.mark.parametrize(
    ("field", "words"), [("grade", GRADES), ("learning_style", LearningStyle), ("disability", Disability)]
)
def test_the_words_of_the_contract_are_those_of_the_domain(field: str, words: list[str]) -> None:
    for word in ("", *words, *(f" {word.upper()}\n" for word in words)):
        check(pb.GenerateRequest(prompt="Why?", context=pb.StudentContext(**{field: word})))
        assert parse_profile(**{field: word}) is not None
    request = pb.GenerateRequest(prompt="Why?", context=pb.StudentContext(**{field: "x"}))
    with pytest.raises(InvalidField) as caught:
        check(request)
    (violation,) = caught.value.violations
    assert violation.description == f"must be one of {', '.join(words)}, or empty"


def test_a_rule_about_several_fields_names_the_one_at_fault() -> None:
    assert faults_of(pb.GenerateRequest(prompt="Why?", adapter_version=1)) == ["context.student_id"]


def test_a_list_that_is_too_long_by_far_is_refused_without_being_read() -> None:
    request = cloning_pb.StartCloneRequest(student_id="../x")
    request.baseline_data.responses.extend([cloning_pb.BaselineResponse()] * 200_000)
    before = time.process_time()
    assert faults_of(request) == ["baseline_data.responses"]
    assert time.process_time() - before < 0.5


def test_no_description_has_a_pattern_or_the_name_of_a_rule_in_it() -> None:
    request = cloning_pb.StartCloneRequest(
        student_id="../x", request_id="../x", priority=cloning_pb.CLONE_PRIORITY_UNSPECIFIED, base_version=0
    )
    request.student_profile.grade = request.student_profile.disability = request.student_profile.learning_style = "?"
    request.baseline_data.responses.add(question="", student_answer=" ", score=-1, item_id="a" * 129)
    request.consent.basis = "?"
    with pytest.raises(InvalidField) as caught:
        check(request)
    for violation in caught.value.violations:
        assert re.fullmatch(r"(must|value) [A-Za-z0-9_,() ]+", violation.description)
