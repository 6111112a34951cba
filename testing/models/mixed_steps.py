"""Drives a decoder as the batch does, with all there is in each step: rows in the lane beside stretches of others."""

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
    """The logits of every token of every sequence, [tokens, vocabulary], each sequence being read in its own row.

    Args:
        decoder: With at least as many rows, all clear.
        sequences: Token ids.
        seed: Decides how long the lane is in each step, which other rows are read from, and how far.
        tables: Adapters, if any decodes.
        slots: Of each row; None for the base model.
    """
    chance = random.Random(seed)
    slots = slots or [None] * len(sequences)
    read = [0] * len(sequences)
    found: list[list[Tensor]] = [[] for _ in sequences]
    while any(done < len(tokens) for done, tokens in zip(read, sequences, strict=True)):
        lane, segments = _next(read, sequences, chance)
        placed = [*lane, *segments]
        if not placed:
            continue
        adapters = None
        if tables is not None:
            with_slots = [(segment, slots[segment.row]) for segment in segments]
            adapters = tables.step([slots[one.row] for one in lane], with_slots)
        count = sum(len(one.tokens) for one in placed)
        logits_NV = decoder.step(lane, segments, adapters=adapters, logits_of=range(count))
        for one, logits in zip(placed, torch.split(logits_NV, [len(one.tokens) for one in placed]), strict=True):
            found[one.row].append(logits)
            read[one.row] += len(one.tokens)
    return [torch.cat(logits) for logits in found]


def _next(
    read: Sequence[int], sequences: Sequence[Sequence[int]], chance: random.Random
) -> tuple[list[Segment], list[Segment]]:
    """A lane of the first rows, as far as they have tokens left, and stretches of some of the rows behind."""
    left = [len(tokens) - done for done, tokens in zip(read, sequences, strict=True)]
    longest = next((row for row, count in enumerate(left) if count == 0), len(left))
    lane = chance.randint(0, longest)

    def segment(row: int, count: int) -> Segment:
        return Segment(row=row, start=read[row], tokens=sequences[row][read[row] : read[row] + count])

    behind = [row for row in range(lane, len(left)) if left[row] and chance.random() < 0.7]
    chance.shuffle(behind)
    return [segment(row, 1) for row in range(lane)], [segment(row, chance.randint(1, left[row])) for row in behind]
