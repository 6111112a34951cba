"""Picking tokens and what their words are.

Knows nothing of models, students, queues or streams; everything here belongs on the torch thread.
"""

import secrets
from collections.abc import Sequence

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# A nucleus is rarely larger, and finding the largest few is far cheaper than sorting the vocabulary.
_USUAL_NUCLEUS = 256


class Sampler:
    """How one reply's tokens are picked, with random numbers of its own."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None = None) -> None:
        """Takes how to pick.

        Args:
            temperature: 0 picks the likeliest token; else the logits are divided by it.
            top_p: Only the likeliest tokens that together reach this probability are picked from (Holtzman et al.,
                "The Curious Case of Neural Text Degeneration", 2020).
            seed: Of the random numbers, which are drawn on the CPU whatever the model's device; random if None.
        """
        self.temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)

    def draw(self, probabilities_V: Tensor, likely_K: Tensor, tokens_K: Tensor) -> int:
        """The next token.

        Args:
            probabilities_V: Of all tokens.
            likely_K: Of the likeliest, in falling order.
            tokens_K: Which those are.
        """
        if self._top_p >= 1:
            return self._place(probabilities_V.cumsum(dim=-1))
        cumulative_K = likely_K.cumsum(dim=-1)
        while cumulative_K[-1] < self._top_p and len(cumulative_K) < len(probabilities_V):
            likely_K, tokens_K = probabilities_V.topk(min(16 * len(cumulative_K), len(probabilities_V)))
            cumulative_K = likely_K.cumsum(dim=-1)
        nucleus = min(int(torch.searchsorted(cumulative_K, self._top_p)) + 1, len(cumulative_K))
        return int(tokens_K[self._place(cumulative_K[:nucleus])])

    def _place(self, cumulative_K: Tensor) -> int:
        """Where a random number falls: on each place as often as its share of the whole is."""
        whole = cumulative_K[-1]
        # Below the whole, also after rounding: on it, the place would be one behind the last that has a share.
        number = torch.minimum(torch.rand((), generator=self._generator) * whole, whole.nextafter(torch.zeros(())))
        return int(torch.searchsorted(cumulative_K, number, right=True))


def pick(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row, by its own sampler; a row's token does not depend on the other rows.

    Args:
        logits_BV: float32, on the CPU; minus infinity excludes a token.
        samplers: One a row.

    Returns:
        None for a row with a NaN, or with nothing but infinities: its model, or its adapter, is broken.
    """
    # A NaN anywhere makes the maximum NaN.
    top_B, token_B = logits_BV.max(dim=-1)
    finite = torch.isfinite(top_B).tolist()
    tokens: list[int | None] = [token if sound else None for token, sound in zip(token_B.tolist(), finite, strict=True)]
    drawn = [row for row, sampler in enumerate(samplers) if sampler.temperature > 0 and finite[row]]
    if not drawn:
        return tokens
    temperature_D1 = torch.tensor([samplers[row].temperature for row in drawn])[:, None]
    probabilities_DV = torch.softmax((logits_BV[drawn] - top_B[drawn, None]) / temperature_D1, dim=-1)
    likely_DK, tokens_DK = probabilities_DV.topk(min(_USUAL_NUCLEUS, probabilities_DV.shape[-1]))
    for place, row in enumerate(drawn):
        tokens[row] = samplers[row].draw(probabilities_DV[place], likely_DK[place], tokens_DK[place])
    return tokens


class TextStream:
    """Turns tokens into text as they come: whole characters, spaces as in the whole reply, no special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        """What the token completes: often a word, empty while a character lacks bytes."""
        return self._stream.step(self._tokenizer, token) or ""
