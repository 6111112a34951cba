"""What a step tells the decoder of its rows, without a model."""

from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.step import BatchStep, StepRow
from mesh.main_brain.roles import RoleName


class Prompt(TokenSequence):
    is_decoding = False


def row(tokens: int, role: RoleName | None = None) -> StepRow:
    return StepRow(sequence=Prompt(range(tokens)), row=0, slot=None, role=role, token_count=tokens)


def test_neighbours_that_one_role_reads_are_one_range() -> None:
    prefill = [row(5), row(3, "guard"), row(4, "guard"), row(2, "grader"), row(6), row(7, "guard")]
    step = BatchStep(loads={}, lane=[row(1), row(1)], prefill=prefill)
    assert step.role_segments == [(slice(7, 14), "guard"), (slice(14, 16), "grader"), (slice(22, 29), "guard")]


def test_rows_without_a_role_have_no_range() -> None:
    assert BatchStep(loads={}, lane=[row(1)], prefill=[row(5)]).role_segments == []
