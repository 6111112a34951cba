"""What the clone store holds can be read again, also if an earlier version wrote it."""

import json
from dataclasses import replace

import pytest

from cloning_server.clones.codec import decode_baseline, encode_baseline
from cloning_server.clones.intake import request_digest
from tests.cloning_server.conftest import STUDENT, baseline


@pytest.mark.parametrize("max_score", [None, 1.0, 20.0])
def test_a_baseline_is_read_as_it_was_written(max_score: float | None) -> None:
    written = replace(baseline(), max_score=max_score, overall_score=75.5, interests=("cats", "trains"))
    assert decode_baseline(encode_baseline(written), clone_id="clone_1") == written


def test_a_baseline_of_before_max_score_is_read_with_scores_out_of_100() -> None:
    fields = json.loads(encode_baseline(baseline()))
    del fields["max_score"]
    assert decode_baseline(json.dumps(fields).encode(), clone_id="clone_1") == baseline()
    assert baseline().best_score == 100


def test_a_baseline_of_before_interests_is_read_without_any() -> None:
    fields = json.loads(encode_baseline(baseline()))
    del fields["interests"]
    assert decode_baseline(json.dumps(fields).encode(), clone_id="clone_1").interests == ()


def test_a_request_of_before_max_score_keeps_its_digest() -> None:
    assert request_digest(STUDENT, baseline(2)) == "b5c881f5d5f5a90ed657057dd788b2a1c0536cf1004f72a5761fd82425ba8df3"
