"""The one prompt renderer: training and serving give the model the same tokens.

Also the border between a student's words and control: nothing that a student writes can end their turn or begin
another, in any chat template whose turn borders are tokens or bracketed markers. All templates of the catalogue are.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from jinja2 import TemplateError

from mesh.tutoring.assessment import AnswerAssessment, describe_assessment, describe_facts
from mesh.tutoring.profile import StudentProfile
from mesh.tutoring.teaching import instruct, instruct_with_verdict

# The turn borders of chat templates: <|user|>, <s>, </s>, <<SYS>>, [INST], [/INST].
_MARKER = re.compile(r"<{1,2}/?\|?[A-Za-z_][\w ]*\|?>{1,2}|\[/?[A-Z_]{2,}\]")
# A reply's first sentence, and the number of a step behind it.
_FIRST_SENTENCE = re.compile(r".*?[.!?][\"')]*\s+(?:\d+[.)]\s+)?(?=\S)", re.DOTALL)
_PROBE = "probe"


class Tokenizer(Protocol):
    """What the renderer needs of a transformers tokenizer; declared here so that this module need not import it."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a turn."""

    def get_added_vocab(self) -> Mapping[str, int]:
        """The tokens added to the vocabulary, control tokens included."""

    def get_chat_template(self) -> str:
        """The chat template, in Jinja."""

    # transformers' own types here are unions over all its signatures.
    def apply_chat_template(self, conversation: Any, /, *, tokenize: bool, add_generation_prompt: bool) -> Any:  # noqa: ANN401
        """The conversation as one text."""

    def __call__(self, text: str, /, *, add_special_tokens: bool) -> Any:  # noqa: ANN401
        """The text's token ids, under `input_ids`."""


class Role(StrEnum):
    """The speaker of a turn."""

    STUDENT = "user"
    TUTOR = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, as it was written."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Everything that a reply depends on.

    Attributes:
        profile: The part of the student's context that shapes prompts.
        turns: The conversation so far, oldest first; student and tutor alternate, and the student begins and ends.
        instruction: Text of the system turn; None for the profile's own. Distillation gives a fuller one.
        assessment: What is known of the answer in the last turn; None for nothing.
        facts: What code computed from the last turn, such as `7 x 8 = 56`.
    """

    profile: StudentProfile
    turns: tuple[Turn, ...]
    instruction: str | None = None
    assessment: AnswerAssessment | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenised training conversation.

    Attributes:
        tokens: The prompt's token ids, then the reply's, then the end-of-turn token.
        reply_start: Index of the reply's first token; the loss covers the tokens from here on.
        body_start: Index of the first token behind the reply's first sentence; None where it has but one.
    """

    tokens: tuple[int, ...]
    reply_start: int
    body_start: int | None = None


def render(prompt: Prompt, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Returns the conversation as chat-template messages: a system turn made of the profile, then the turns.

    The system turn ends with what is known of the student's answer, where no student can write.

    Breaks up markers of the tokenizer and its template in every text, so that the model reads them as plain words. If
    the template has no system role, the first student turn begins with the system text.

    Raises:
        ValueError: If the turns don't alternate, or don't begin and end with the student's; some templates need that.
    """
    speakers = [turn.role for turn in prompt.turns]
    if len(speakers) % 2 == 0 or speakers != list(itertools.islice(itertools.cycle(Role), len(speakers))):
        raise ValueError("the turns must alternate, and begin and end with the student's")
    markers = _markers_of(tokenizer)
    system = _defuse(_system_text(prompt), markers)
    messages = [{"role": turn.role.value, "content": _defuse(turn.text, markers)} for turn in prompt.turns]
    if _takes_system_turn(tokenizer):
        return [{"role": "system", "content": system}, *messages]
    first = next(message for message in messages if message["role"] == Role.STUDENT)
    first["content"] = f"{system}\n\n{first['content']}"
    return messages


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Returns the token ids that a model reads before it replies, up to and including the opening of the tutor's turn.

    Raises:
        ValueError: If the turns don't alternate, or don't begin and end with the student's; some templates need that.
    """
    text = _apply(tokenizer, render(prompt, tokenizer), with_opening=True)
    return _encode(tokenizer, text)


def encode_example(tokenizer: Tokenizer, prompt: Prompt, reply: str) -> Example:
    """Returns a training example: exactly the ids of `encode_prompt`, then the reply as the model would decode it.

    Prompt and reply are tokenised separately, because decoding starts between them: in one text the border could merge
    into a token that no prompt ends with.

    Raises:
        ValueError: If the turns don't alternate, or don't begin and end with the student's; some templates need that.
    """
    prompt_tokens = encode_prompt(tokenizer, prompt)
    text = _defuse(reply.strip(), _markers_of(tokenizer))
    reply_tokens = _encode(tokenizer, text)
    opening = _FIRST_SENTENCE.match(text)
    return Example(
        tokens=(*prompt_tokens, *reply_tokens, end_of_turn(tokenizer)),
        reply_start=len(prompt_tokens),
        # A blank belongs to the token behind it, a line break does not.
        body_start=len(prompt_tokens) + len(_encode(tokenizer, opening[0].rstrip(" "))) if opening else None,
    )


def end_of_turn(tokenizer: Tokenizer) -> int:
    """Returns the token that ends the tutor's turn, in training and in decoding.

    Raises:
        ValueError: If the tokenizer names none.
    """
    token = tokenizer.eos_token_id
    if token is None:
        raise ValueError("the tokenizer has no end-of-turn token")
    return int(token)


def _system_text(prompt: Prompt) -> str:
    parts = [prompt.instruction or instruct(prompt.profile), describe_facts(prompt.facts)]
    if prompt.assessment:
        parts += [describe_assessment(prompt.assessment), instruct_with_verdict(prompt.profile)]
    return " ".join(filter(None, parts))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # The template writes its own beginning-of-text token; the tokenizer must not add a second.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _apply(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, with_opening: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=with_opening))


def _defuse(text: str, markers: re.Pattern[str]) -> str:
    """Returns the text with a space after the first character of every marker. Repeats, as markers may overlap."""
    while (spaced := markers.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = spaced
    return text


def _markers_of(tokenizer: Tokenizer) -> re.Pattern[str]:
    return _compile_markers(tuple(tokenizer.get_added_vocab()), _template_of(tokenizer))


@functools.lru_cache(maxsize=16)
def _compile_markers(added: tuple[str, ...], template: str) -> re.Pattern[str]:
    """Compiles what the tokenizer or its template may read as control: added tokens, and text that looks like a marker.

    Leaves out markers of one character or with blank space inside: a space would not break them up, and they are layout
    (line breaks, runs of spaces), not turn borders.
    """
    candidates = {*added, *_MARKER.findall(template)}
    markers = sorted(
        (word for word in candidates if len(word) > 1 and not re.search(r"\s", word)), key=len, reverse=True
    )
    # Without any marker, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, markers)) or r"(?!)")


def _takes_system_turn(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a system role: some raise an error for it, some drop its text."""
    messages = [{"role": "system", "content": _PROBE}, {"role": Role.STUDENT.value, "content": "x"}]
    try:
        return _PROBE in _apply(tokenizer, messages, with_opening=True)
    except TemplateError:
        return False


def _template_of(tokenizer: Tokenizer) -> str:
    return str(tokenizer.get_chat_template())
