"""What a training asks for as it is stepped, and how it is computed: for one training alone, or for several together.

Knows nothing of processes, students or the order of a training.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TypeAlias

from cloning_server.compute.batch_decoding import Continuation, Decoding, decode_all
from cloning_server.learning.optimizer import TrainingStep, compute_gradients
from cloning_server.training import Progress, TrainedAdapter

# What a training asks for: a step of fine-tuning, or replies.
Ask: TypeAlias = TrainingStep | Decoding
# What it is sent: the loss of the one, the continuations of the other, and nothing for a step of progress.
Answer: TypeAlias = float | Sequence[Continuation]
# A training as it is stepped.
Study: TypeAlias = Generator[Progress | Ask | TrainedAdapter, Answer | None, None]


def answers_to(asks: Sequence[Ask]) -> list[Answer]:
    """Computes what several trainings ask for, all of one kind, together."""
    turns = [ask for ask in asks if isinstance(ask, TrainingStep)]
    return [*compute_gradients(turns)] if turns else [*decode_all([ask for ask in asks if isinstance(ask, Decoding)])]


def run_alone(steps: Study) -> Generator[Progress | TrainedAdapter, None, None]:
    """Steps a training with nobody beside it."""
    answer: Answer | None = None
    with closing(steps):
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(step, TrainingStep | Decoding):
                (answer,) = answers_to([step])
            else:
                yield step
