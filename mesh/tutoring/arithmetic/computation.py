"""Computes what a student's turn asks, and judges the answer that it offers.

Rules read the words around expressions and numbers. They rather find nothing than something wrong: a turn that offers
several answers, or none that belongs to an expression, gets no verdict.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.tutoring.arithmetic import wording
from mesh.tutoring.arithmetic.chains import WINDOW, Chain, find_chains
from mesh.tutoring.arithmetic.equality import is_same_quantity
from mesh.tutoring.arithmetic.equations import facts_of, holds, is_comparable, is_value, results_of
from mesh.tutoring.arithmetic.expression import Expression
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict

MAX_FACTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """What code knows of a student's turn.

    Attributes:
        facts: Exact results, such as `3/4 + 1/8 = 7/8`.
        assessment: The verdict on the answer that the student offers; None if there is none, or none can be judged.
    """

    facts: tuple[str, ...] = ()
    assessment: AnswerAssessment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """An answer that the student offers, with its remainder; `is_working` if an equation ends with it."""

    number: Expression
    remainder: int | None
    is_working: bool


def compute(text: str) -> Computation:
    """Returns the facts of a student's turn, and the verdict on the one answer that it offers.

    Never raises, and takes time in proportion to the text.
    """
    turn = _TurnReading(text)
    return Computation(facts=turn.facts(), assessment=turn.assessment())


def open_expressions(text: str) -> tuple[Expression, ...]:
    """Returns the different expressions that a text asks for without a value; for questions of a test.

    A question that asks for more than exact values, such as an estimate or a reason, has none.
    """
    lower = text.lower()
    if wording.ASKS_OTHERWISE.search(lower) or wording.ASKS_FOR_REASONS.search(lower):
        return ()
    return tuple(_TurnReading(text).questions.values())


class _TurnReading:
    """The expressions of a turn, and the answers that it offers."""

    def __init__(self, text: str) -> None:
        lower = text.lower()
        # A few letters have another length in lower case; the rules must read where the expressions are.
        self._text = (lower if len(lower) == len(text) else text).replace("\u2019", "'")
        passages = find_chains(self._text)
        self._chains = passages.chains
        self._has_rest = passages.has_rest
        marker = wording.ANSWER_MARKER.search(self._text)
        # Where the student's answer begins, if a question stands before it.
        self._answer_start = marker.end() if marker and self._text[: marker.start()].strip() else None
        self._tied = dict(self._ties())
        self.equations = [chain for chain in self._chains if chain.is_equation and is_comparable(chain)]
        if wording.IS_SCALE.search(self._text):
            self.equations = [chain for chain in self.equations if not chain.asks.is_literal]
        self._requests = self._find_asked()
        answered: set[str] = set()
        if self._answer_start is None:
            answered.update(chain.asks.text for chain in (*self.equations, *map(self._chains.__getitem__, self._tied)))
        self.questions = {chain.asks.text: chain.asks for chain in self._requests if chain.asks.text not in answered}

    def facts(self) -> tuple[str, ...]:
        """Returns a line for each expression that is asked or said to have a value."""
        lines: dict[str, None] = {}
        for index, chain in enumerate(self._chains):
            if chain in self.equations:
                lines.update(dict.fromkeys(facts_of(chain)))
            elif chain in self._requests or index in self._tied:
                lines[f"{chain.asks.text} = {chain.asks.described_result}"] = None
        return tuple(lines)[:MAX_FACTS]

    def assessment(self) -> AnswerAssessment | None:
        """Returns the verdict on the one answer that is offered."""
        offers = self._offers()
        if self._has_alternatives(offers) or wording.ASKS_OTHERWISE.search(self._text):
            return None
        if self._answer_start is not None and (len(self.questions) != 1 or not offers or self._has_givens()):
            return None
        if len(self.questions) == 1 and offers:
            return self._judge_answer(offers[0], *self.questions.values())
        return self._judge_equations(offers)

    def _judge_answer(self, offer: _Offer, question: Expression) -> AnswerAssessment | None:
        outcome = is_value(offer.number, question, offer.remainder)
        if outcome is None:
            return None
        is_right = outcome and self._first_wrong() is None
        if is_right and wording.ASKS_FOR_REASONS.search(self._text[: self._answer_start or 0]):
            return None
        return _assessed(question.described_result, is_right=is_right)

    def _judge_equations(self, offers: Sequence[_Offer]) -> AnswerAssessment | None:
        outcomes = [*(holds(chain) for chain in self.equations), *self._tied_outcomes()]
        if not outcomes or None in outcomes or any(self._is_denied(chain) for chain in self.equations):
            return None
        wrong = self._first_wrong()
        if wrong is not None:
            return _assessed(wrong, is_right=False)
        contradicts = any(not self._is_equal_to_all(offer) for offer in offers)
        if contradicts or self.questions or self._asks_more() or self._has_context(offers):
            return None
        return _assessed(self._last_reference(), is_right=True)

    def _has_givens(self) -> bool:
        """Whether the question before the answer holds mathematics that it doesn't ask for."""
        starts = [chain.start for chain in (*self.equations, *map(self._chains.__getitem__, self._tied))]
        return self._has_rest or min(starts, default=len(self._text)) < (self._answer_start or 0)

    def _has_context(self, offers: Sequence[_Offer]) -> bool:
        """Whether right equations may be steps of something larger, which code can't judge."""
        numbers = sum(chain.is_number for chain in self._chains)
        return self._has_rest or numbers > len(self._tied) + len(offers)

    def _find_asked(self) -> list[Chain]:
        requests: list[Chain] = []
        for index, chain in enumerate(self._chains):
            follows = bool(requests) and index > 0 and self._chains[index - 1] is requests[-1]
            joined = follows and wording.JOINS.fullmatch(self._text[requests[-1].end : chain.start])
            if not chain.is_equation and (self._asks(chain) or (joined and not chain.asks.is_literal)):
                requests.append(chain)
        return requests

    def _asks(self, chain: Chain) -> bool:
        """Whether the signs of an expression, or the words around it, show that its value matters."""
        asks = chain.asks
        if chain.is_open:
            return not asks.is_literal or wording.FRACTION_ALONE.fullmatch(asks.text) is not None
        if not asks.is_literal and not chain.is_weak:
            return True
        after = self._text[chain.end : chain.end + WINDOW]
        before = self._text[max(0, chain.start - WINDOW) : chain.start]
        if not wording.ENDS_AFTER.match(after):
            return False
        return self._asks_division(chain, before) if asks.is_literal else self._asks_weakly(chain, before, after)

    def _asks_weakly(self, chain: Chain, before: str, after: str) -> bool:
        """Whether the words around it show that an expression is neither a range nor a score, a size or a ratio."""
        operators = chain.asks.operators
        is_tight = " " not in self._text[chain.start : chain.end]
        if ":" in operators and (is_tight or "ratio" in before):
            return False
        if wording.LINE_START.search(before) and re.match(r"\s*(?:$|[=?!.\n])", after):
            is_whole_turn = chain.end - chain.start == len(self._text.strip(" ?!.="))
            # "3-5" is a range, and "1920x1080" a size; "12-5" as the whole turn is a difference.
            is_difference = operators == ("-",) and is_whole_turn and chain.asks.value.number > 0
            return not is_tight or is_difference or (operators != ("-",) and chain.asks.value.number < 10_000)
        return wording.ASKS_BEFORE.search(before) is not None or self._follows_offer(chain)

    def _asks_division(self, chain: Chain, before: str) -> bool:
        """A fraction alone asks nothing, but "what is 12/4?" asks for 3."""
        value = chain.asks.value
        asks = re.search(r"(?:what(?:'s|s| is)|calculate|compute|work out|solve|how much is|divide)\s*$", before)
        is_division = wording.FRACTION_ALONE.fullmatch(chain.asks.text) and not chain.asks.text.endswith("/1")
        return bool(asks and is_division and value.number.denominator == 1 and value.number > 1)

    def _follows_offer(self, chain: Chain) -> bool:
        index = self._chains.index(chain)
        return index > 0 and self._chains[index - 1].is_number and self._said_for(index - 1)

    def _said_for(self, index: int) -> bool:
        """Whether a number is offered for the expression that follows it: "i got 12 for 3x4"."""
        if index + 1 >= len(self._chains):
            return False
        number, expression = self._chains[index], self._chains[index + 1]
        between = self._text[number.end : expression.start]
        if expression.is_number or len(between) > WINDOW or not wording.SAID_FOR.fullmatch(between):
            return False
        before = self._text[max(0, number.start - WINDOW) : number.start]
        says_answer = re.search(r"answer|result|solution|right|correct|value", between)
        return bool(says_answer or wording.OFFERS_BEFORE.search(before))

    def _ties(self) -> list[tuple[int, int]]:
        """Pairs of an expression and the number that is said to be its value: "6 x 7 is 45"."""
        pairs = []
        for index, (chain, following) in enumerate(zip(self._chains, self._chains[1:], strict=False)):
            between = self._text[chain.end : following.start]
            if chain.is_number or chain.is_equation or chain.is_open or not following.is_number:
                continue
            if chain.start < (self._answer_start or 0) <= following.start:
                # "My answer: 45" behind a question offers a value; the question says none.
                continue
            if len(between) <= WINDOW and not chain.asks.is_literal and wording.TIES.fullmatch(between):
                pairs.append((index, index + 1))
        return pairs

    def _tied_outcomes(self) -> list[bool | None]:
        return [
            is_value(self._chains[number].asks, self._chains[index].asks, self._chains[number].remainder)
            for index, number in self._tied.items()
        ]

    def _first_wrong(self) -> str | None:
        """The right value for the first expression that is said to have a wrong one."""
        results = [results_of(chain)[0] for chain in self.equations if holds(chain) is False]
        results += [
            (self._chains[index].asks.text, self._chains[index].asks.described_result)
            for index, outcome in zip(self._tied, self._tied_outcomes(), strict=True)
            if outcome is False
        ]
        if not results:
            return None
        text, result = results[0]
        return f"{text} = {result}" if len(self.equations) + len(self._tied) > 1 else result

    def _last_reference(self) -> str:
        if self.equations:
            return results_of(self.equations[-1])[0][1]
        return self._chains[list(self._tied)[-1]].asks.described_result

    def _offers(self) -> list[_Offer]:
        """The numbers that are offered as answers, each value once."""
        offers: list[_Offer] = []
        offered: set[int] = set()
        asks = self._requests or [chain for chain in self._chains if not chain.is_number]
        first_asked = min((chain.start for chain in asks), default=None)
        for index, chain in enumerate(self._chains):
            if index in self._tied.values():
                continue
            is_offer = chain not in self._requests and self._offers_answer(index, after=first_asked)
            if not is_offer and chain.is_number and index - 1 in offered:
                is_offer = self._is_alternative(index)
            if is_offer:
                # Working does not count beside the answer that it leads to.
                offers = [offer for offer in offers if not offer.is_working]
                offered.add(index)
                offers.append(_Offer(number=chain.sides[-1], remainder=chain.remainder, is_working=chain.is_equation))
        return offers

    def _offers_answer(self, index: int, *, after: int | None) -> bool:
        chain = self._chains[index]
        before = self._text[max(0, chain.start - WINDOW) : chain.start]
        if chain.is_equation:
            # The working of an answer; its end is the answer.
            return self._answer_start is not None and chain.start >= self._answer_start and chain.sides[-1].is_literal
        if not chain.is_number:
            return False
        if self._said_for(index):
            return True
        if after is None or chain.start < after:
            return bool(wording.MY_ANSWER.search(before))
        following = self._text[chain.end : chain.end + WINDOW]
        alone = wording.LINE_START.search(before) and re.match(r"\s*(?:$|[?!.\n])", following)
        return bool(alone or wording.OFFERS_BEFORE.search(before) or wording.CONFIRMS_AFTER.match(following))

    def _is_alternative(self, index: int) -> bool:
        """Whether a number is one more guess after the chain before it."""
        between = self._text[self._chains[index - 1].end : self._chains[index].start]
        following = self._text[self._chains[index].end : self._chains[index].end + WINDOW]
        return len(between) <= WINDOW and bool(
            wording.OR_ELSE.fullmatch(between) and wording.ENDS_AFTER.match(following)
        )

    def _has_alternatives(self, offers: Sequence[_Offer]) -> bool:
        """Whether more than one answer is offered."""
        if any(not is_same_quantity(offers[0].number.value, offer.number.value) for offer in offers[1:]):
            return True
        ends = {index for index, chain in enumerate(self._chains) if chain in self.equations} | set(self._tied.values())
        return any(
            self._chains[index + 1].is_number and self._is_alternative(index + 1)
            for index in ends
            if index + 1 < len(self._chains)
        )

    def _is_denied(self, chain: Chain) -> bool:
        """Whether the words before an equation say that it does not hold."""
        return wording.DENIES.search(self._text[max(0, chain.start - WINDOW) : chain.start]) is not None

    def _is_equal_to_all(self, offer: _Offer) -> bool:
        """Whether an offer does not contradict the equations beside it."""
        return all(is_same_quantity(offer.number.value, chain.asks.value) for chain in self.equations)

    def _asks_more(self) -> bool:
        """Whether the turn asks for something else than whether its right equations are right."""
        last = self.equations[-1] if self.equations else self._chains[list(self._tied.values())[-1]]
        before = self._text[max(0, last.start - WINDOW) : last.start]
        rest = wording.ASKS_FOR_CHECK.sub("", self._text[last.end :])
        return bool(wording.WHY.search(before) or wording.ASKS_MORE.search(rest))


def _assessed(reference: str, *, is_right: bool) -> AnswerAssessment:
    verdict = AnswerVerdict.CORRECT if is_right else AnswerVerdict.INCORRECT
    return AnswerAssessment(verdict=verdict, reference_answer=reference)
