"""What is decoded as it is served, but greedily: the opening of a reply, and its text."""

from collections.abc import Callable, Sequence

from cloning_server.compute.batch_decoding import Draw, Opening
from cloning_server.compute.lora_factors import LoraFactors
from mesh.lm.chat import end_of_turn
from mesh.lm.repetition import run_tokens_of
from mesh.main_brain.base import BaseModel


def greedy_opening(
    base: BaseModel,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    factors: LoraFactors | None = None,
    unrepeated_run: int | None = None,
    is_enough: Callable[[Sequence[int]], bool] = lambda _: False,
) -> Opening:
    """Returns the opening of a greedy reply that says no run of tokens twice.

    Args:
        base: The Main Brain.
        prompt: Token ids.
        max_tokens: Longest reply.
        factors: The adapter; None for the Main Brain alone.
        unrepeated_run: Tokens of such a run; None for the Main Brain's own rule.
        is_enough: See `Opening`.
    """
    return Opening(
        tokens=tuple(prompt),
        max_tokens=max_tokens,
        end_token=end_of_turn(base.tokenizer),
        draw=Draw(),
        factors=factors,
        unrepeated_run=base.unrepeated_run if unrepeated_run is None else unrepeated_run,
        run_tokens=run_tokens_of(base.tokenizer),
        is_enough=is_enough,
    )


def text_of(base: BaseModel, tokens: Sequence[int]) -> str:
    """Returns the text of token ids, without special tokens and outer whitespace."""
    return str(base.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
