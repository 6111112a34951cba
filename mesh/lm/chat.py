"""The one prompt renderer: what a model reads when it is trained is, token for token, what it reads when it serves.

Also the border between a student's words and control: nothing that a student writes can end their turn or begin
another, in any chat template whose turn borders are tokens or bracketed markers, as all of the catalogue's are.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from jinja2 import TemplateError

from mesh.tutoring.profile import StudentProfile
from mesh.tutoring.teaching import instruct

# What chat templates write turn borders with: <|user|>, <s>, </s>, <<SYS>>, [INST], [/INST].
_MARKER = re.compile(r"<{1,2}/?\|?[A-Za-z_][\w ]*\|?>{1,2}|\[/?[A-Z_]{2,}\]")
_PROBE = "probe"


class Tokenizer(Protocol):
    """What the renderer asks of a transformers tokenizer; said here so that a prompt can be made without loading it."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a turn."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """The tokens beside the vocabulary, control tokens among them."""

    def get_chat_template(self) -> str:
        """The chat template, in Jinja."""

    # transformers' own types here are unions over every way to call them.
    def apply_chat_template(self, conversation: Any, /, *, tokenize: bool, add_generation_prompt: bool) -> Any:  # noqa: ANN401
        """The conversation as one text."""

    def __call__(self, text: str, /, *, add_special_tokens: bool) -> Any:  # noqa: ANN401
        """The text's token ids, under `input_ids`."""


class Role(StrEnum):
    """Who speaks in a turn."""

    STUDENT = "user"
    TUTOR = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, in the words that were written."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """All that a reply depends on.

    Attributes:
        profile: The student, as far as prompts know them.
        turns: The conversation so far, oldest first: student and tutor in turn, from the student to the student.
        instruction: What the system turn says; of the profile, where it is None. Distillation gives a fuller one.
    """

    profile: StudentProfile
    turns: tuple[Turn, ...]
    instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenised training conversation.

    Attributes:
        tokens: The prompt's token ids, then the reply's, then the end-of-turn token.
        reply_start: Index of the reply's first token; the loss is over the tokens from here on.
    """

    tokens: tuple[int, ...]
    reply_start: int


def render(prompt: Prompt, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """The conversation as chat-template messages: a system turn made of the profile, then the turns.

    Markers of the tokenizer and its template are broken up in every text, so that they are read as plain words. For a
    template without a system role, the system text is the beginning of the first student turn.

    Raises:
        ValueError: If the turns don't alternate, beginning and ending with the student's; some templates need that.
    """
    speakers = [turn.role for turn in prompt.turns]
    if len(speakers) % 2 == 0 or speakers != list(itertools.islice(itertools.cycle(Role), len(speakers))):
        raise ValueError("the turns must alternate, beginning and ending with the student's")
    markers = _markers_of(tokenizer)
    system = _defuse(prompt.instruction or instruct(prompt.profile), markers)
    messages = [{"role": turn.role.value, "content": _defuse(turn.text, markers)} for turn in prompt.turns]
    if _takes_system_turn(tokenizer):
        return [{"role": "system", "content": system}, *messages]
    first = next(message for message in messages if message["role"] == Role.STUDENT)
    first["content"] = f"{system}\n\n{first['content']}"
    return messages


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The token ids that a model reads before it replies, up to and including the opening of the tutor's turn.

    Raises:
        ValueError: If the turns don't alternate, beginning and ending with the student's; some templates need that.
    """
    text = _apply(tokenizer, render(prompt, tokenizer), opened=True)
    return _encode(tokenizer, text)


def encode_example(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> Example:
    """A training example: exactly `encode_prompt`'s ids, then the reply as the model would have to decode it.

    Prompt and reply are tokenised apart, because that is where a decoder starts: tokenised as one text, the border
    could merge into a token that no prompt ends with.

    Raises:
        ValueError: If the turns don't alternate, beginning and ending with the student's; some templates need that.
    """
    head = encode_prompt(tokenizer, prompt)
    body = _encode(tokenizer, _defuse(reply.strip(), _markers_of(tokenizer)))
    return Example(tokens=(*head, *body, end_of_turn(tokenizer)), reply_start=len(head))


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that ends the tutor's turn, in training and in decoding.

    Raises:
        ValueError: If the tokenizer names none.
    """
    token = tokenizer.eos_token_id
    if token is None:
        raise ValueError("the tokenizer has no end-of-turn token")
    return int(token)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # A template writes its own beginning-of-text token; the tokenizer must not add a second one.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, opened: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened))


def _defuse(text: str, markers: re.Pattern[str]) -> str:
    """The text with a space after the first character of every marker; the fixed point, as markers may overlap."""
    while (spaced := markers.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = spaced
    return text


def _markers_of(tokenizer: Tokenizer) -> re.Pattern[str]:
    return _compile_markers(tuple(tokenizer.get_added_vocab()), _template_of(tokenizer))


@functools.lru_cache(maxsize=16)
def _compile_markers(added: tuple[str, ...], template: str) -> re.Pattern[str]:
    """Whatever the tokenizer or its template may take for more than words: added tokens, and what looks like markers.

    A marker with blank space inside, or of one character, is left: a space in it would not break it up, and such ones
    are layout (line breaks, runs of spaces), not turn borders.
    """
    found = {*added, *_MARKER.findall(template)}
    words = sorted((one for one in found if len(one) > 1 and not re.search(r"\s", one)), key=len, reverse=True)
    # A pattern that matches nothing, if there is no marker.
    return re.compile("|".join(re.escape(word) for word in words) or r"(?!)")


def _takes_system_turn(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a system role: some refuse it with an error, some leave its words out."""
    messages = [{"role": "system", "content": _PROBE}, {"role": Role.STUDENT.value, "content": "x"}]
    try:
        return _PROBE in _apply(tokenizer, messages, opened=True)
    except TemplateError:
        return False


def _template_of(tokenizer: Tokenizer) -> str:
    return str(tokenizer.get_chat_template())
