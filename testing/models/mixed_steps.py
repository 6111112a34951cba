"""Drives a decoder as the batch does, with a mix of rows in each step: a lane beside segments of other rows."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from brain_server.torch_engine.compute.decoder import Decoder, Segment
from brain_server.torch_engine.compute.slot_tables import SlotTables


def logits_of_rows(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    *,
    seed: int,
    tables: SlotTables | None = None,
    slots: Sequence[int | None] = (),
) -> list[Tensor]:
    """Returns the logits of every token of every sequence, [tokens, vocabulary] each. Each sequence has its own row.

    Args:
        decoder: Has at least as many rows as there are sequences, all clear.
        sequences: Token ids.
        seed: Decides how long the lane is in each step, which other rows the step reads, and how much of them.
        tables: The adapters, if any row has one.
        slots: Slot of each row's adapter; None for the base model.
    """
    rng = random.Random(seed)
    slots = slots or [None] * len(sequences)
    read_counts = [0] * len(sequences)
    row_logits: list[list[Tensor]] = [[] for _ in sequences]
    while any(count < len(tokens) for count, tokens in zip(read_counts, sequences, strict=True)):
        lane, prefill = _random_step(read_counts, sequences, rng)
        segments = [*lane, *prefill]
        if not segments:
            continue
        adapters = None
        if tables is not None:
            prefill_slots = [(segment, slots[segment.row]) for segment in prefill]
            adapters = tables.step([slots[segment.row] for segment in lane], prefill_slots)
        token_counts = [len(segment.tokens) for segment in segments]
        logits_NV = decoder.step(lane, prefill, adapters=adapters, logits_of=range(sum(token_counts)))
        for segment, logits in zip(segments, torch.split(logits_NV, token_counts), strict=True):
            row_logits[segment.row].append(logits)
            read_counts[segment.row] += len(segment.tokens)
    return [torch.cat(logits) for logits in row_logits]


def _random_step(
    read_counts: Sequence[int], sequences: Sequence[Sequence[int]], rng: random.Random
) -> tuple[list[Segment], list[Segment]]:
    """Returns a lane of the first rows, as far as they have unread tokens, and segments of some of the other rows."""
    unread_counts = [len(tokens) - count for count, tokens in zip(read_counts, sequences, strict=True)]
    max_lane = next((row for row, count in enumerate(unread_counts) if count == 0), len(unread_counts))
    lane_rows = rng.randint(0, max_lane)

    def segment(row: int, count: int) -> Segment:
        start = read_counts[row]
        return Segment(row=row, start=start, tokens=sequences[row][start : start + count])

    prefill_rows = [row for row in range(lane_rows, len(sequences)) if unread_counts[row] and rng.random() < 0.7]
    rng.shuffle(prefill_rows)
    lane = [segment(row, 1) for row in range(lane_rows)]
    return lane, [segment(row, rng.randint(1, unread_counts[row])) for row in prefill_rows]
