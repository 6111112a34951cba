"""The form of a reply, as rules that a machine can check: length of sentences, steps, what it must and must not say.

Training keeps or drops replies by these rules, and the gate measures a student's model by them. They judge form alone,
never whether a reply is right.
"""

import re
from dataclasses import dataclass

LONG_WORD_LETTERS = 10
# A step's number or a bullet at the start of a line.
_MARKER = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+")
_NUMBERED = re.compile(r"^\s*\d{1,2}[.)]\s+\S")
# The end of a sentence: its mark and what closes with it, then blank space. "3.5" and "U.S.A" have none inside.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+")
# Full stops that end no sentence.
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|Dr|Mr|Mrs|Ms|No|Fig)\.\s*$", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\d+(?:[.,]\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormRules:
    """The form that a reply must have; a field left at None, False or empty sets no rule.

    Attributes:
        max_sentence_words: Words in the longest sentence.
        max_sentences: Sentences in the whole reply.
        max_paragraph_sentences: Sentences in one paragraph; a line is a paragraph.
        max_long_words: Different words of `LONG_WORD_LETTERS` or more; key terms are long, so a few must be allowed.
        numbered_steps: Has at least two lines that start with a number.
        ends_with_question: Its last sentence is a question.
        avoids: Phrases that the reply must not contain, lower case, whole words.
        required_phrases: Phrases of which the reply contains at least one, lower case, whole words.
    """

    max_sentence_words: int | None = None
    max_sentences: int | None = None
    max_paragraph_sentences: int | None = None
    max_long_words: int | None = None
    numbered_steps: bool = False
    ends_with_question: bool = False
    avoids: tuple[str, ...] = ()
    required_phrases: tuple[str, ...] = ()

    def violations(self, text: str) -> list[str]:
        """Returns the rules that a reply breaks, one short line of constant words each; empty if it breaks none.

        A line names counts and the rule's own phrases, never the reply's words.
        """
        sentences = split_sentences(text)
        if not sentences:
            return ["is empty"]
        return [
            *_over("words in a sentence", max(map(count_words, sentences)), self.max_sentence_words),
            *_over("sentences", len(sentences), self.max_sentences),
            *_over("sentences in a paragraph", _longest_paragraph(text), self.max_paragraph_sentences),
            *_over("long words", _count_long_words(text), self.max_long_words),
            *(["has no numbered steps"] if self.numbered_steps and not _has_numbered_steps(text) else []),
            *(["does not end with a question"] if self.ends_with_question and not _is_question(sentences[-1]) else []),
            *(f"says '{phrase}'" for phrase in self.avoids if _contains(text, phrase)),
            *(["says none of the required phrases"] if not self._contains_required(text) else []),
        ]

    def combine(self, other: "FormRules") -> "FormRules":
        """Returns rules that hold exactly when both do; if both have required phrases, the other's win."""
        return FormRules(
            max_sentence_words=_tighter(self.max_sentence_words, other.max_sentence_words),
            max_sentences=_tighter(self.max_sentences, other.max_sentences),
            max_paragraph_sentences=_tighter(self.max_paragraph_sentences, other.max_paragraph_sentences),
            max_long_words=_tighter(self.max_long_words, other.max_long_words),
            numbered_steps=self.numbered_steps or other.numbered_steps,
            ends_with_question=self.ends_with_question or other.ends_with_question,
            avoids=tuple(dict.fromkeys((*self.avoids, *other.avoids))),
            required_phrases=other.required_phrases or self.required_phrases,
        )

    def _contains_required(self, text: str) -> bool:
        return not self.required_phrases or any(_contains(text, phrase) for phrase in self.required_phrases)


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text without numbers and bullets at line starts; a line break ends a sentence."""
    sentences: list[str] = []
    for line in text.splitlines():
        pending = ""
        for piece in _SENTENCE_END.split(_MARKER.sub("", line)):
            pending = f"{pending} {piece}".strip()
            if _ABBREVIATION.search(pending):
                continue
            if _WORD.search(pending):
                sentences.append(pending)
                pending = ""
        if _WORD.search(pending):
            sentences.append(pending)
    return sentences


def count_words(sentence: str) -> int:
    """Counts the words of a sentence; a number is one word, and so is a hyphenated word."""
    return len(_WORD.findall(sentence))


def _over(what: str, count: int, limit: int | None) -> list[str]:
    return [] if limit is None or count <= limit else [f"has {count} {what}, at most {limit}"]


def _tighter(limit: int | None, other: int | None) -> int | None:
    return min((value for value in (limit, other) if value is not None), default=None)


def _longest_paragraph(text: str) -> int:
    return max(len(split_sentences(line)) for line in text.splitlines())


def _count_long_words(text: str) -> int:
    words = {word.lower() for word in _WORD.findall(text)}
    return sum(len(word) >= LONG_WORD_LETTERS and not word[0].isdigit() for word in words)


def _has_numbered_steps(text: str) -> bool:
    return sum(bool(_NUMBERED.match(line)) for line in text.splitlines()) >= 2


def _is_question(sentence: str) -> bool:
    return sentence.rstrip("\"'\u201d\u2019)] ").endswith("?")


def _contains(text: str, phrase: str) -> bool:
    plain = text.lower().replace("\u2019", "'")
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", plain) is not None
