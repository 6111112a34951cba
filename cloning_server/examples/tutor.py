"""The Main Brain as tutor: it replies where there is no right answer to restate.

A reply to a wrong answer, or to a student who is stuck, must not say the right one; and not every right answer can be
said in the form that a student needs. The Main Brain has learned to reply. Its sentences are checked; where they state
another verdict than the prompt, or the answer to a wrong one, none is used. Trained on them, an adapter loses nothing
of what the Main Brain can do, and learns what is the student's own around them.

Knows nothing of caches or how adapters are trained.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from cloning_server.compute.batch_decoding import MAX_ROWS, Continuation, Opening
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.decoded import greedy_opening, text_of
from cloning_server.examples.phrases import SHORT_SENTENCE_WORDS
from mesh.lm.chat import Prompt, encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import count_words, split_sentences
from mesh.tutoring.judgement import agrees, contains_answer, judges

# Sentences that are used; the rest is not even decoded.
MAX_SENTENCES = 2
MAX_TUTOR_TOKENS = 56

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_STEP_NUMBER = re.compile(r"^\s*\d+[.)]\s+")
_SAYS_DONE = re.compile(r"\b(?:done|finished|the end)\b", re.IGNORECASE)

# Briefs, and the openings to decode for them.
TutorBatch: TypeAlias = Sequence[tuple[ReplyBrief, Opening]]


def tutor_batches(briefs: Iterable[ReplyBrief], base: BaseModel) -> Iterator[TutorBatch]:
    """Yields the openings of briefs, those with prompts of similar length together."""
    openings = [(brief, _opening(brief.prompt, base)) for brief in briefs]
    openings.sort(key=lambda pair: (len(pair[1].tokens), pair[1].tokens))
    for start in range(0, len(openings), MAX_ROWS):
        yield openings[start : start + MAX_ROWS]


def tutor_sentences(brief: ReplyBrief, continuation: Continuation, base: BaseModel) -> list[str]:
    """Returns the sentences of a reply that may be used, at most `MAX_SENTENCES`; none if it fails a check.

    The questions at its end and a word on the end of the work are not among them: the frame has its own.
    """
    sentences = _sentences_in(text_of(base, continuation.tokens))
    # What the limit of tokens cut off is no sentence.
    whole = [sentence for sentence in sentences if sentence.rstrip("\"')").endswith((".", "!", "?"))][:MAX_SENTENCES]
    while whole and (whole[-1].endswith("?") or _SAYS_DONE.search(whole[-1])):
        whole.pop()
    limit = SHORT_SENTENCE_WORDS.get(brief.manner.writing)
    # The first sentence states the verdict.
    short = [text for text in whole if limit is None or text == whole[0] or count_words(text) <= limit]
    usable = list(dict.fromkeys(short))
    numbers = _numbers_in(brief.prompt)
    # A small model calculates by chance: of its sentences, those with a number that nobody gave it teach nothing.
    if not usable or not _said_numbers(usable[0]) <= numbers:
        return []
    sure = [sentence for sentence in usable if _said_numbers(sentence) <= numbers]
    return sure if _is_sound(brief, " ".join(sure)) else []


def _numbers_in(prompt: Prompt) -> frozenset[str]:
    """The numbers that a prompt tells: in the student's turn, in what is known of the answer, and in its facts."""
    reference = prompt.assessment.reference_answer if prompt.assessment else ""
    return _said_numbers(" ".join((prompt.turns[-1].text, reference, *prompt.facts)))


def _said_numbers(text: str) -> frozenset[str]:
    return frozenset(_NUMBER.findall(text))


def _is_sound(brief: ReplyBrief, text: str) -> bool:
    assessment = brief.prompt.assessment
    if assessment is None or assessment.verdict is None:
        return not judges(text)
    if not agrees(text, assessment.verdict):
        return False
    is_settled = assessment.verdict is AnswerVerdict.CORRECT
    return is_settled or not contains_answer(text, assessment.reference_answer)


def _opening(prompt: Prompt, base: BaseModel) -> Opening:
    def is_enough(tokens: Sequence[int]) -> bool:
        # The sentence after the last one must have begun: a number of a step ends like a sentence.
        ends = str(base.tokenizer.decode([tokens[-1]])).rstrip().endswith((".", "!", "?"))
        return ends and len(_sentences_in(text_of(base, tokens))) > MAX_SENTENCES

    prompt_tokens = encode_prompt(base.tokenizer, prompt)
    return greedy_opening(base, prompt_tokens, max_tokens=MAX_TUTOR_TOKENS, is_enough=is_enough)


def _sentences_in(text: str) -> list[str]:
    lines = (_STEP_NUMBER.sub("", line).strip() for line in text.splitlines())
    return [sentence for line in lines if line for sentence in split_sentences(line)]
