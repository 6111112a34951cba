"""What a student's clones are to callers of cloning servers, for the check of their histories.

No clone ends here but by being cancelled. A student is the clones that are held of them: first those that have ended,
then the open ones in the order of acceptance.
Each function returns what a call with a certain outcome does to a student, as `testing.linearizability` takes it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldClone:
    """A clone that servers hold.

    Attributes:
        clone_id: Empty until a caller learns it: that of a start whose answer was lost.
        request_id: Of the request that made it; empty if it has none.
        is_open: Whether it is not final.
    """

    clone_id: str
    request_id: str
    is_open: bool = True


Student: TypeAlias = tuple[HeldClone, ...]
Transition: TypeAlias = Callable[[Student], Iterable[Student]]

NO_CLONES: Student = ()


def start_answered(clone_id: str, *, request_id: str, may_wait: bool) -> Transition:
    """A start that was answered with this clone; an empty id stands for an answer that was lost."""

    def states_after(student: Student) -> Iterable[Student]:
        earlier = _made_by(request_id, student)
        if earlier:
            return _learn(student, earlier, clone_id or earlier.clone_id)
        if _blocker(student, may_wait=may_wait) or (clone_id and _find(clone_id, student)):
            return []
        return [(*student, HeldClone(clone_id=clone_id, request_id=request_id))]

    return states_after


def start_refused(blocker_id: str, *, request_id: str, may_wait: bool) -> Transition:
    """A start that was refused because this clone must end first."""

    def states_after(student: Student) -> Iterable[Student]:
        blocker = _blocker(student, may_wait=may_wait)
        if _made_by(request_id, student) or blocker is None:
            return []
        return _learn(student, blocker, blocker_id)

    return states_after


def get_answered(clone_id: str, *, is_open: bool | None) -> Transition:
    """A get that told whether the clone is open; None: that there is no such clone."""

    def states_after(student: Student) -> Iterable[Student]:
        clone = _find(clone_id, student)
        return [student] if (clone.is_open if clone else None) == is_open else []

    return states_after


def cancel_answered(clone_id: str) -> Transition:
    """A cancellation that was answered with the cancelled clone."""

    def states_after(student: Student) -> Iterable[Student]:
        clone = _find(clone_id, student)
        return [_with_cancelled(clone, student)] if clone else []

    return states_after


def cancel_any(student: Student) -> Iterator[Student]:
    """What a deletion does before it removes anything: it cancels a clone."""
    for clone in student:
        if clone.is_open:
            yield _with_cancelled(clone, student)


def deletion_answered(clone_count: int | None) -> Transition:
    """A deletion whose receipt tells this number of clones; None if the receipt was lost."""

    def states_after(student: Student) -> Iterable[Student]:
        is_possible = clone_count in (None, len(student)) and not any(clone.is_open for clone in student)
        return [NO_CLONES] if is_possible else []

    return states_after


def _find(clone_id: str, student: Student) -> HeldClone | None:
    return next((clone for clone in student if clone.clone_id == clone_id), None)


def _made_by(request_id: str, student: Student) -> HeldClone | None:
    return next((clone for clone in student if request_id and clone.request_id == request_id), None)


def _blocker(student: Student, *, may_wait: bool) -> HeldClone | None:
    """The clone that must end before another can be accepted: one runs, and one may wait behind it."""
    lane = [clone for clone in student if clone.is_open]
    return lane[may_wait] if len(lane) > may_wait else None


def _learn(student: Student, clone: HeldClone, clone_id: str) -> Iterable[Student]:
    """The student with this clone known by this id; nothing if it has another, or if another clone has it."""
    if clone.clone_id == clone_id:
        return [student]
    if clone.clone_id or _find(clone_id, student):
        return []
    return [_replaced(student, clone, replace(clone, clone_id=clone_id))]


def _with_cancelled(clone: HeldClone, student: Student) -> Student:
    """The student with this clone cancelled. Nothing depends on the order of those that are not open."""
    clones = [replace(each, is_open=False) if each is clone else each for each in student]
    cancelled = sorted((each for each in clones if not each.is_open), key=lambda each: (each.clone_id, each.request_id))
    return (*cancelled, *(each for each in clones if each.is_open))


def _replaced(student: Student, old: HeldClone, new: HeldClone) -> Student:
    return tuple(new if clone is old else clone for clone in student)
