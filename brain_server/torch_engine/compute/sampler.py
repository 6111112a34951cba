"""Picking tokens, and turning tokens into text.

For the torch thread. Knows nothing of models, students, queues or streams.
"""

import secrets
from collections.abc import Sequence

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# A nucleus is rarely larger, and finding the few likeliest tokens is far cheaper than sorting the vocabulary.
_USUAL_NUCLEUS = 256


class Sampler:
    """Picks one reply's tokens, with a random number generator of its own."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None = None) -> None:
        """Seeds the generator.

        Args:
            temperature: 0 picks the likeliest token; otherwise the logits are divided by it.
            top_p: Picks only among the likeliest tokens that together reach this probability (Holtzman et al., "The
                Curious Case of Neural Text Degeneration", 2020).
            seed: Seed of the generator, which runs on the CPU whatever the model's device; random if None.
        """
        self.temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)

    def draw(self, probabilities_V: Tensor, likely_K: Tensor, tokens_K: Tensor) -> int:
        """Returns a random next token.

        Args:
            probabilities_V: Probability of each token.
            likely_K: Probabilities of the likeliest tokens, in descending order.
            tokens_K: Ids of those tokens.
        """
        if self._top_p >= 1:
            return self._draw_index(probabilities_V.cumsum(dim=-1))
        cumulative_K = likely_K.cumsum(dim=-1)
        while cumulative_K[-1] < self._top_p and len(cumulative_K) < len(probabilities_V):
            likely_K, tokens_K = probabilities_V.topk(min(16 * len(cumulative_K), len(probabilities_V)))
            cumulative_K = likely_K.cumsum(dim=-1)
        nucleus = min(int(torch.searchsorted(cumulative_K, self._top_p)) + 1, len(cumulative_K))
        return int(tokens_K[self._draw_index(cumulative_K[:nucleus])])

    def _draw_index(self, cumulative_K: Tensor) -> int:
        """Returns a random index, each in proportion to its probability."""
        total = cumulative_K[-1]
        # Below the total, also after rounding: at the total, the index would be behind the last one with a probability.
        number = torch.minimum(torch.rand((), generator=self._generator) * total, total.nextafter(torch.zeros(())))
        return int(torch.searchsorted(cumulative_K, number, right=True))


def pick(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """Returns the next token of each row, picked by its own sampler. A row's token does not depend on the other rows.

    Args:
        logits_BV: float32, on the CPU; minus infinity excludes a token.
        samplers: One per row.

    Returns:
        A token id per row; None for a row with a NaN, or without a finite maximum: its model or its adapter is broken.
    """
    # A NaN anywhere makes the maximum NaN.
    top_B, token_B = logits_BV.max(dim=-1)
    finite = torch.isfinite(top_B).tolist()
    tokens: list[int | None] = [
        token if is_finite else None for token, is_finite in zip(token_B.tolist(), finite, strict=True)
    ]
    random_rows = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0 and finite[row]]
    if not random_rows:
        return tokens
    temperature_D1 = torch.tensor([samplers[row].temperature for row in random_rows])[:, None]
    probabilities_DV = torch.softmax((logits_BV[random_rows] - top_B[random_rows, None]) / temperature_D1, dim=-1)
    likely_DK, tokens_DK = probabilities_DV.topk(min(_USUAL_NUCLEUS, probabilities_DV.shape[-1]))
    for place, row in enumerate(random_rows):
        tokens[row] = samplers[row].draw(probabilities_DV[place], likely_DK[place], tokens_DK[place])
    return tokens


class TextStream:
    """Turns tokens into text one by one: whole characters, blanks as in the whole reply, no special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Returns the text that the token completes: often a word, empty while a character lacks bytes."""
        return self._stream.step(self._tokenizer, token) or ""
