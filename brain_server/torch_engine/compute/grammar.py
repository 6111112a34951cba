"""Grammars: replies that satisfy a JSON schema, whatever the sampling, and that are complete when the tokens run out.

Every step masks the tokens that would break the schema (Dong et al., "XGrammar", 2024,
https://arxiv.org/abs/2411.15100). That alone would leave a reply that is cut at `max_tokens` as broken JSON. The
constraint therefore also tracks the shortest completion of the reply so far, and writes it when another token would
leave too little room for it.

Text that can only be what it is, such as the keys of an object, is written without asking the model (jump-forward
decoding: Zheng et al., "SGLang", 2024, https://arxiv.org/abs/2312.07104).

Knows neither the model nor sampling.
"""

import functools
import re
import threading
from collections.abc import Sequence

import torch
import xgrammar
from transformers import PreTrainedTokenizerBase

# The schemas are this server's own and few; each takes some MB when compiled.
_CACHE_BYTES = 128 * 1024 * 1024
# Bytes that end a value soonest, tried in this order: the end of a string; a blank, for a string that must be longer;
# the end of an array; the end of an object; a digit. Then any other byte: a letter picks a value of an enum, and bytes
# of UTF-8 complete a character.
_COMPLETION_BYTES = tuple(bytes([byte]) for byte in dict.fromkeys([*b'" ]}0', *range(0x21, 0x7F), *range(0x80, 0xF5)]))
# Bound of the search for a completion. A schema whose shortest document takes more steps counts as having none.
_MAX_COMPLETION_STEPS = 1024
# What a run of forced text leaves to the model, if a choice follows: a word that has only begun, and the blank before
# a word. Tokens hold whole words with the blank in front, and the model could not pick one that crosses the run's end.
_OPEN_WORD = re.compile(rb" *[0-9A-Za-z_\x80-\xff]*\Z")


class Grammars:
    """The compiled schemas of one tokenizer. Thread-safe.

    The tokenizer's vocabulary is read with the first schema. It takes a second, which the start of a server need not
    wait for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop_tokens: frozenset[int]) -> None:
        """Prepares to compile; reads nothing yet.

        Args:
            tokenizer: The model's tokenizer.
            vocabulary: Width of the model's logits, which may exceed the number of the tokenizer's tokens.
            stop_tokens: Tokens that may end a complete reply.
        """
        self._read_lexicon = functools.partial(_Lexicon, tokenizer, vocabulary=vocabulary, stop_tokens=stop_tokens)
        self._lexicon: _Lexicon | None = None
        self._lexicon_lock = threading.Lock()

    def constraint(self, json_schema: str) -> "Constraint":
        """Returns a new constraint. A schema is compiled once, which takes seconds if it bounds the length of strings.

        The reply is one line without optional blanks, so that tokens are spent on content.

        Args:
            json_schema: Schema of an object or an array, as JSON text.

        Raises:
            ValueError: `json_schema` is not a JSON schema that can be compiled.
        """
        with self._lexicon_lock:
            lexicon = self._lexicon = self._lexicon or self._read_lexicon()
        try:
            grammar = lexicon.compiler.compile_json_schema(json_schema, any_whitespace=False)
        except (RuntimeError, xgrammar.exception.InvalidJSONError) as error:
            raise ValueError(f"the JSON schema can't be compiled: {error}") from error
        return Constraint(xgrammar.GrammarMatcher(grammar), speller=lexicon.speller, printable=lexicon.printable)


class _Lexicon:
    """What constraints need of a tokenizer's vocabulary, computed once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop_tokens: frozenset[int]) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(stop_tokens)
        )
        # Read once: each access builds the whole list again.
        texts = info.decoded_vocab
        self.compiler = xgrammar.GrammarCompiler(info, cache_limit_bytes=_CACHE_BYTES)
        self.speller = _Speller(tokenizer, texts, excluded_tokens={*info.special_token_ids, *stop_tokens})
        self.printable = _printable_bitmask(texts, width=vocabulary)


class Constraint:
    """Which tokens one reply may continue with. For one thread."""

    def __init__(self, matcher: xgrammar.GrammarMatcher, *, speller: "_Speller", printable: torch.Tensor) -> None:
        self._matcher = matcher
        self._speller = speller
        self._printable = printable
        self._bitmask = torch.empty_like(printable)
        self._completion = self._shortest_completion(matcher)

    @property
    def is_complete(self) -> bool:
        """Whether the accepted tokens are a complete document."""
        return bool(self._matcher.is_completed())

    def mask(self, logits_V: torch.Tensor) -> None:
        """Sets the logits of tokens that can't come next to minus infinity, in place."""
        self._matcher.fill_next_token_bitmask(self._bitmask)
        self._bitmask &= self._printable
        xgrammar.apply_token_bitmask_inplace(logits_V.unsqueeze(0), self._bitmask)

    def accept(self, token: int, *, room: int) -> Sequence[int] | None:
        """Accepts the token, unless the document could then no longer be completed within the room.

        If this is called for every token, and the shortest document fits the first `room`, the reply is complete: the
        shortest completion of the accepted tokens always fits.

        Args:
            token: A token that `mask` allows; not a stop token.
            room: Tokens that the reply may still get, this token included.

        Returns:
            None if the token was accepted; else the tokens to write in its place, which complete the document.
        """
        if not self._matcher.accept_token(token):
            raise AssertionError("the sampled token is one that the mask excludes")
        completion, self._completion = self._completion, self._shortest_completion(self._matcher)
        fits = self._completion is not None and len(self._completion) <= room - 1
        # A document that is too long from the start is cut like any other reply; completing it now would gain nothing.
        return None if fits or completion is None or len(completion) > room else completion

    def accept_forced(self, *, room: int) -> Sequence[int]:
        """Accepts the text that must come next, and returns its tokens; none if the model has a choice.

        Nothing is accepted if the document could then no longer be completed within the room, as the tokens of a part
        may be more than those of the whole.

        Args:
            room: Tokens that the reply may still get.
        """
        matcher = self._matcher.fork()
        text = _forced_text(matcher)
        if not text or not matcher.accept_string(text):
            return ()
        tokens = self._speller.spell_as_usual(text if matcher.is_completed() else _OPEN_WORD.sub(b"", text))
        matcher = self._matcher.fork()
        if not tokens or not all(matcher.accept_token(token) for token in tokens):
            return ()
        completion = self._shortest_completion(matcher)
        if completion is None or len(tokens) + len(completion) > room:
            return ()
        self._matcher, self._completion = matcher, completion
        return tokens

    def _shortest_completion(self, matcher: xgrammar.GrammarMatcher) -> tuple[int, ...] | None:
        """Returns about the fewest tokens that complete the document, or None if the search finds none."""
        matcher = matcher.fork()
        text = bytearray()
        for _ in range(_MAX_COMPLETION_STEPS):
            if matcher.is_completed():
                return self._speller.spell(bytes(text))
            forced_text = _forced_text(matcher)
            step = forced_text or next((byte for byte in _COMPLETION_BYTES if matcher.accept_string(byte)), None)
            if step is None or (forced_text and not matcher.accept_string(forced_text)):
                return None
            text += step
        return None


def _forced_text(matcher: xgrammar.GrammarMatcher) -> bytes:
    """Returns the text that must come next; empty if there is a choice."""
    try:
        return matcher.find_jump_forward_string().encode()
    except UnicodeDecodeError:
        # It begins or ends within a character, which xgrammar can't return; single bytes lead to the same text.
        return b""


def _printable_bitmask(vocabulary: Sequence[bytes], *, width: int) -> torch.Tensor:
    """Returns the tokens without control characters. JSON forbids those; XGrammar allows them in bounded strings."""
    printable_V = torch.tensor([all(byte >= 0x20 for byte in text) for text in vocabulary])
    padded_V = torch.nn.functional.pad(printable_V, (0, -width % 32 + width - len(printable_V)))
    bits = padded_V.view(1, -1, 32).long() << torch.arange(32)
    return bits.sum(dim=-1).to(torch.int32)


class _Speller:
    """Writes bytes as tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: Sequence[bytes], *, excluded_tokens: set[int]
    ) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._vocabulary = vocabulary
        self._tokens = {text: token for token, text in enumerate(vocabulary) if text and token not in excluded_tokens}
        self._max_token_bytes = max(map(len, self._tokens))
        # Most completions and runs are the same few texts.
        self.spell = functools.lru_cache(maxsize=1024)(self._spell)
        self.spell_as_usual = functools.lru_cache(maxsize=1024)(self._spell_as_usual)

    def _spell(self, text: bytes) -> tuple[int, ...] | None:
        """Returns the text as tokens, the longest first, which are about the fewest; None if that leads nowhere."""
        tokens = []
        start = 0
        while start < len(text):
            ends = range(min(start + self._max_token_bytes, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in self._tokens), None)
            if end is None:
                return None
            tokens.append(self._tokens[text[start:end]])
            start = end
        return tuple(tokens)

    def _spell_as_usual(self, text: bytes) -> tuple[int, ...] | None:
        """Returns the text as the tokens that the model knows it by, if they are this text; else as `spell` does."""
        try:
            tokens = tuple(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids)
        except UnicodeDecodeError:
            return self.spell(text)
        # A tokenizer may add a blank in front, or take a part of the text for a special token.
        is_same_text = all(self._tokens.get(self._vocabulary[token]) == token for token in tokens)
        is_same_text = is_same_text and b"".join(self._vocabulary[token] for token in tokens) == text
        return tokens if is_same_text else self.spell(text)
