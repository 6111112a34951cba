"""A training as a generator that requests computations, and how requests are computed: for one training, or several.

Knows nothing of processes, students or the order of a training.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeAlias, TypeVar

from cloning_server.compute.batch_decoding import Continuation, Decoding, decode_all
from cloning_server.learning.optimizer import TrainingStep, compute_gradients
from cloning_server.training import Progress, TrainedAdapter

# A computation that a training needs before it goes on: the gradient of a step, or decoded replies.
ComputeRequest: TypeAlias = TrainingStep | Decoding
# The result that is sent back: the loss of the step, or the continuations of the openings.
ComputeResult: TypeAlias = float | Sequence[Continuation]
# A training. It yields progress, then the adapter, and requests in between. Send the result of a request, None after
# anything else.
TrainingRun: TypeAlias = Generator[Progress | ComputeRequest | TrainedAdapter, ComputeResult | None, None]

Result = TypeVar("Result")


def compute(requests: Sequence[ComputeRequest]) -> list[ComputeResult]:
    """Computes the requests of several trainings together; all are of one kind."""
    steps = [request for request in requests if isinstance(request, TrainingStep)]
    if steps:
        return [*compute_gradients(steps)]
    return [*decode_all([request for request in requests if isinstance(request, Decoding)])]


def run_alone(
    run: Generator[Progress | ComputeRequest | TrainedAdapter, ComputeResult | None, Result],
    *,
    watch: Callable[[Progress | TrainedAdapter], None],
) -> Result:
    """Runs a training, or a part of one, by itself.

    Args:
        run: The generator; it is closed at the end.
        watch: Called with everything that the generator yields except its requests.

    Returns:
        The generator's return value.
    """
    result: ComputeResult | None = None
    with closing(run):
        while True:
            try:
                item = run.send(result)
            except StopIteration as end:
                returned: Result = end.value
                return returned
            result = None
            if isinstance(item, TrainingStep | Decoding):
                (result,) = compute([item])
            else:
                watch(item)
