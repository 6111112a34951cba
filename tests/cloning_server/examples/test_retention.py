"""What a clone must not unlearn: the Main Brain's own replies to prompts that are no school work."""

from dataclasses import replace

import pytest

from cloning_server.compute.batch_decoding import Decoding, decode_all
from cloning_server.examples.retention import RETAINED_PROMPTS, retain
from cloning_server.learning.passes import Passes
from mesh.lm.chat import Example
from mesh.main_brain.base import BaseModel
from mesh.tutoring.profile import StudentProfile
from testing.lessons import PROFILE, DictReplyCache


def retained(base: BaseModel, passes: Passes, profile: StudentProfile, cache: DictReplyCache) -> tuple[int, list[str]]:
    """Returns how many prompts were decoded, and the texts of the examples."""
    retention = retain(profile, base, layers=passes.layers, cache=cache)
    decoded = 0
    try:
        request = next(retention)
        while True:
            assert isinstance(request, Decoding)
            decoded += len(request.openings)
            (continuations,) = decode_all([request])
            request = retention.send(continuations)
    except StopIteration as ended:
        examples: tuple[Example, ...] = ended.value
    return decoded, [str(base.tokenizer.decode(list(example.tokens))) for example in examples]


@pytest.fixture(scope="module")
def cache() -> DictReplyCache:
    return DictReplyCache()


def test_the_main_brains_own_replies_are_told_and_shared_by_students_of_a_profile(
    base: BaseModel, passes: Passes, cache: DictReplyCache
) -> None:
    decoded, texts = retained(base, passes, PROFILE, cache)
    assert decoded == len(RETAINED_PROMPTS)
    assert len(texts) >= len(RETAINED_PROMPTS) - 2
    assert retained(base, passes, replace(PROFILE, subject="Music"), cache) == (0, texts)
    other, _ = retained(base, passes, replace(PROFILE, grade="11"), DictReplyCache())
    assert other == len(RETAINED_PROMPTS)


def test_a_reply_that_did_not_end_is_left_out(base: BaseModel, passes: Passes) -> None:
    cache = DictReplyCache()
    retention = retain(PROFILE, base, layers=passes.layers, cache=cache)
    (continuations,) = decode_all([next(retention)])
    continuations[0] = replace(continuations[0], is_complete=False)
    with pytest.raises(StopIteration) as ended:
        retention.send(continuations)
    assert len(ended.value.value) == sum(map(bool, cache.values())) < len(RETAINED_PROMPTS)
