"""Replies under a schema, written by a model that wants a certain document, without a model."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from brain_server.engine.contract import FinishReason
from brain_server.torch_engine.compute.grammar import Grammars
from brain_server.torch_engine.compute.sampler import Sampler, TextStream, pick
from brain_server.torch_engine.compute.sequences import ReplySequence

VOCABULARY = 49_152
PROMPT = (1, 2, 3)


def object_of(**properties: object) -> str:
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return json.dumps(schema, ensure_ascii=False)


TEXT = {"type": "string", "maxLength": 60}
SCHEMA = object_of(
    feedback={"type": "string"},
    strengths={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2},
    next_steps=TEXT,
)
DOCUMENT = {"feedback": 'Say "why", too.', "strengths": ["¡Qué bien! 日本語 🎉", ""], "next_steps": "Read on."}
CHOICE = object_of(direction={"enum": ["north", "northeast", "north of here"]}, answer={"enum": ["é1", "ê2", "日3"]})
CONSTANT = object_of(text={"const": '👩‍🚀 naïve 日本語 🎉 \\ " \n'}, number={"const": 17})


class WishfulModel:
    """Prefers the tokens of one text, the longest first, after what a reply has so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        self._text = text.encode()
        self._spellings = {
            token: bytes(_BYTES[letter] for letter in letters)
            for letters, token in tokenizer.get_vocab().items()
            if token not in tokenizer.all_special_ids
        }
        self._tokens = {spelling: token for token, spelling in self._spellings.items()}

    def decode(self, sequence: ReplySequence) -> tuple[str, list[int], int]:
        """Decodes a reply. Returns its text, the tokens that were read after the prompt, and the number of steps."""
        tokens_read = [*sequence.next_tokens]
        steps = 0
        while not sequence.is_finished:
            sequence.advance(len(sequence.next_tokens))
            logits_1V = self._logits(tokens_read[len(PROMPT) :])
            sequence.mask(logits_1V[0])
            (token,) = pick(logits_1V, [sequence.sampler])
            assert token is not None
            sequence.accept(token)
            tokens_read += sequence.next_tokens
            steps += 1
        return "".join(sequence.pieces), tokens_read[len(PROMPT) :], steps

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        logits_1V = torch.zeros(1, VOCABULARY)
        rest = self._text[sum(len(self._spellings[token]) for token in tokens) :]
        for length in range(1, len(rest) + 1):
            if (token := self._tokens.get(rest[:length])) is not None:
                logits_1V[0, token] = length
        return logits_1V


def _byte_letters() -> dict[str, int]:
    """How byte-level tokenizers write bytes as letters: printed ones as themselves, the others from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, vocabulary=VOCABULARY, stop_tokens=frozenset({tokenizer.eos_token_id}))


def reply_of(
    grammars: Grammars,
    tokenizer: PreTrainedTokenizerBase,
    schema: str,
    *,
    max_tokens: int = 200,
    stop: tuple[str, ...] = (),
) -> ReplySequence:
    return ReplySequence(
        PROMPT,
        sampler=Sampler(temperature=0, top_p=1),
        max_tokens=max_tokens,
        stop_tokens=frozenset({tokenizer.eos_token_id}),
        text=TextStream(tokenizer),
        stop=stop,
        constraint=grammars.constraint(schema),
    )


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        (SCHEMA, DOCUMENT),
        (CHOICE, {"direction": "northeast", "answer": "ê2"}),
        (CHOICE, {"direction": "north of here", "answer": "日3"}),
        (CONSTANT, {"text": '👩‍🚀 naïve 日本語 🎉 \\ " \n', "number": 17}),
    ],
)
def test_a_reply_is_the_document_that_the_model_wants_in_fewer_steps_than_tokens(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, schema: str, document: dict[str, object]
) -> None:
    text = json.dumps(document, ensure_ascii=False)
    sequence = reply_of(grammars, tokenizer, schema)
    written_text, tokens, steps = WishfulModel(tokenizer, text).decode(sequence)
    assert written_text == text
    assert (sequence.finish_reason, sequence.token_count <= 200) == (FinishReason.STOP, True)
    # All that was written is also read, but for what ends the document.
    assert text.startswith(str(tokenizer.decode(tokens)).rstrip("\ufffd"))
    assert len(tokens) <= sequence.token_count
    assert steps <= sequence.token_count - 4


def test_words_that_the_model_chooses_are_not_begun_for_it(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    # All three values begin with "north", but a model may know one of them by a token of its own.
    (*_, last_token) = reply_of(grammars, tokenizer, CHOICE).next_tokens
    assert str(tokenizer.decode(last_token)).endswith('"')


def test_a_reply_is_whole_however_few_tokens_it_may_have(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = WishfulModel(tokenizer, json.dumps(DOCUMENT, ensure_ascii=False))
    shortest_text = '{"feedback": "", "strengths": [""], "next_steps": ""}'
    longest_sequence = reply_of(grammars, tokenizer, SCHEMA)
    model.decode(longest_sequence)
    lengths = set()
    for max_tokens in range(20, longest_sequence.token_count + 1):
        sequence = reply_of(grammars, tokenizer, SCHEMA, max_tokens=max_tokens)
        text, _, _ = model.decode(sequence)
        assert list(json.loads(text)) == [*DOCUMENT]
        assert sequence.finish_reason is FinishReason.STOP
        assert sequence.token_count <= max_tokens
        lengths.add(len(text))
    assert min(lengths) < len(shortest_text) + 12
    assert json.loads(text) == DOCUMENT


def test_a_document_that_cannot_fit_is_cut_like_any_other_reply(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = json.dumps(DOCUMENT, ensure_ascii=False)
    sequence = reply_of(grammars, tokenizer, SCHEMA, max_tokens=9)
    cut_text, _, _ = WishfulModel(tokenizer, text).decode(sequence)
    assert text.startswith(cut_text)
    assert (sequence.token_count, sequence.finish_reason) == (9, FinishReason.LENGTH)


@pytest.mark.parametrize("stop", ['"feed', '": "', "why", 'strengths": [', "¡Qu", "🎉", '""]', "next", "on"])
def test_a_reply_ends_before_a_stop_sequence_wherever_it_is(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    text = json.dumps(DOCUMENT, ensure_ascii=False)
    sequence = reply_of(grammars, tokenizer, SCHEMA, stop=(stop,))
    written_text, _, _ = WishfulModel(tokenizer, text).decode(sequence)
    assert written_text == text[: text.index(stop)]
    assert sequence.finish_reason is FinishReason.STOP
    # No token is counted after the one that completes the stop sequence.
    assert sequence.token_count <= len(tokenizer(written_text + stop, add_special_tokens=False)["input_ids"]) + 1
