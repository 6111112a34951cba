"""Grammars: replies that satisfy a JSON schema, whatever the sampling, and that are whole when the tokens run out.

At every step the tokens that would break the schema are masked out (Dong et al., "XGrammar", 2024,
https://arxiv.org/abs/2411.15100). That alone leaves a reply that is cut at `max_tokens` as broken JSON. So the
constraint also knows the shortest end of what has been written, and writes that end when a token would leave too little
room for it.

Knows neither the model nor sampling.
"""

import functools
import threading
from collections.abc import Sequence

import torch
import xgrammar
from transformers import PreTrainedTokenizerBase

# The schemas are this server's own and few; compiled, one takes some MB.
_CACHE_BYTES = 128 * 1024 * 1024
# What ends a value soonest, tried in this order: a string; a string that must be longer, without a word; an array; an
# object; a number. Then anything: the first letter picks a value of an enum, bytes of UTF-8 finish a character.
_ENDINGS = tuple(bytes([byte]) for byte in dict.fromkeys([*b'" ]}0', *range(0x21, 0x7F), *range(0x80, 0xF5)]))
# Steps to an end; a schema whose shortest document takes more has none as far as we look.
_MAX_ENDING_STEPS = 1024


class Grammars:
    """The compiled schemas of one tokenizer. Thread-safe.

    The tokenizer's whole vocabulary is read when the first schema comes, which takes a second: a server need not wait
    for that before it serves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop_tokens: frozenset[int]) -> None:
        """Takes what the masks are made for.

        Args:
            tokenizer: Of the model that decodes.
            vocabulary: Width of the model's logits, which may be more than the tokenizer's tokens.
            stop_tokens: What may end a reply that is complete.
        """
        self._read_lexicon = functools.partial(_Lexicon, tokenizer, vocabulary=vocabulary, stop_tokens=stop_tokens)
        self._lexicon: _Lexicon | None = None
        self._reading = threading.Lock()

    def constraint(self, json_schema: str) -> "Constraint":
        """A fresh constraint; the schema is compiled once, which takes seconds if it bounds the length of strings.

        The reply is one line without needless blanks, so that tokens go to what is said. The schema is that of an
        object or an array.

        Raises:
            ValueError: If it is not a JSON schema that can be compiled.
        """
        with self._reading:
            lexicon = self._lexicon = self._lexicon or self._read_lexicon()
        try:
            compiled = lexicon.compiler.compile_json_schema(json_schema, any_whitespace=False)
        except (RuntimeError, xgrammar.exception.InvalidJSONError) as error:
            raise ValueError(f"the schema can't be compiled: {error}") from error
        return Constraint(xgrammar.GrammarMatcher(compiled), spelling=lexicon.spelling, printable=lexicon.printable)


class _Lexicon:
    """What is made of a tokenizer's vocabulary, once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop_tokens: frozenset[int]) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(stop_tokens)
        )
        # Read once: each reading makes all of it anew.
        texts = info.decoded_vocab
        self.compiler = xgrammar.GrammarCompiler(info, cache_limit_bytes=_CACHE_BYTES)
        self.spelling = _Spelling(texts, excluded={*info.special_token_ids, *stop_tokens})
        self.printable = _printable_bitmask(texts, width=vocabulary)


class Constraint:
    """What one reply may still become. For one thread."""

    def __init__(self, matcher: xgrammar.GrammarMatcher, *, spelling: "_Spelling", printable: torch.Tensor) -> None:
        self._matcher = matcher
        self._spelling = spelling
        self._printable = printable
        self._bitmask = torch.empty_like(printable)
        self._ending = self._shortest_ending()

    @property
    def complete(self) -> bool:
        """Whether what has been accepted is a whole document."""
        return bool(self._matcher.is_completed())

    def mask(self, logits_V: torch.Tensor) -> None:
        """Sets the logits of tokens that can't follow to minus infinity, in place."""
        self._matcher.fill_next_token_bitmask(self._bitmask)
        self._bitmask &= self._printable
        xgrammar.apply_token_bitmask_inplace(logits_V.unsqueeze(0), self._bitmask)

    def accept(self, token: int, *, room: int) -> Sequence[int] | None:
        """Takes the token, unless the document could then no longer be completed.

        As long as this was called for every token, and the shortest document fits the first `room`, the reply is whole:
        the shortest end of what was accepted so far always fits.

        Args:
            token: One that `mask` let through; not a stop token.
            room: Tokens that the reply may still have, this one included.

        Returns:
            None if the token was taken; else the tokens to write in its place, which end the document.
        """
        if not self._matcher.accept_token(token):
            raise AssertionError("a token was sampled that the mask excludes")
        ending, self._ending = self._ending, self._shortest_ending()
        fits = self._ending is not None and len(self._ending) <= room - 1
        # A document too long from the start is cut like any other reply: nothing would be gained by ending it now.
        return None if fits or ending is None or len(ending) > room else ending

    def _shortest_ending(self) -> tuple[int, ...] | None:
        """Tokens that complete the document from here, about as few as there can be; None if none were found."""
        matcher = self._matcher.fork()
        text = bytearray()
        for _ in range(_MAX_ENDING_STEPS):
            if matcher.is_completed():
                return self._spelling.spell(bytes(text))
            forced = _forced(matcher)
            step = forced or next((byte for byte in _ENDINGS if matcher.accept_string(byte)), None)
            if step is None or (forced and not matcher.accept_string(forced)):
                return None
            text += step
        return None


def _forced(matcher: xgrammar.GrammarMatcher) -> bytes:
    """What must come next, whatever is sampled; empty if there is a choice."""
    try:
        return matcher.find_jump_forward_string().encode()
    except UnicodeDecodeError:
        # It begins or ends within a character, which xgrammar can't return; a byte at a time gets there as well.
        return b""


def _printable_bitmask(vocabulary: Sequence[bytes], *, width: int) -> torch.Tensor:
    """The tokens without control characters: JSON forbids them in strings, XGrammar lets them into bounded ones."""
    printable_V = torch.tensor([all(byte >= 0x20 for byte in text) for text in vocabulary])
    padded_V = torch.nn.functional.pad(printable_V, (0, -width % 32 + width - len(printable_V)))
    bits = padded_V.view(1, -1, 32).long() << torch.arange(32)
    return bits.sum(dim=-1).to(torch.int32)


class _Spelling:
    """Writes bytes as tokens, the longest first; a tokenizer would not do, as it may add a blank in front."""

    def __init__(self, vocabulary: Sequence[bytes], *, excluded: set[int]) -> None:
        self._tokens = {text: token for token, text in enumerate(vocabulary) if text and token not in excluded}
        self._longest = max(map(len, self._tokens))
        # Most ends are the same few texts.
        self.spell = functools.lru_cache(maxsize=1024)(self._spell)

    def _spell(self, text: bytes) -> tuple[int, ...] | None:
        tokens = []
        start = 0
        while start < len(text):
            ends = range(min(start + self._longest, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in self._tokens), None)
            if end is None:
                return None
            tokens.append(self._tokens[text[start:end]])
            start = end
        return tuple(tokens)
