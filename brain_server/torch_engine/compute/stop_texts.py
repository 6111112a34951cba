"""Stop sequences: where a reply ends before the model ends it.

Knows nothing of tokens or engines; what goes in and comes out is text.
"""

from collections.abc import Iterable


class Stopping:
    """Lets a reply through, piece by piece, up to the first stop sequence.

    What may yet turn out to begin one is held back until the next pieces tell, and no more than that. However the reply
    is cut into pieces, it ends in the same place: before the sequence that begins first, as `str.find` would find it.

    Args:
        stops: The sequences, none of them empty. Without any, everything is let through at once.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        assert all(self._stops), "an empty sequence would stop everything"
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether the reply has ended at a stop sequence; what is pushed from then on is dropped."""
        return self._stopped

    def push(self, piece: str) -> str:
        """Takes the next piece of the reply and returns what may be sent now; perhaps nothing."""
        if self._stopped or not self._stops:
            return "" if self._stopped else piece
        text = self._held + piece
        for start in range(len(text)):
            if self._stops_at(text, start):
                return self._stop(text[:start])
            # A proper beginning of a sequence at the very end of the text.
            if any(stop.startswith(text[start:]) for stop in self._stops):
                self._held = text[start:]
                return text[:start]
        self._held = ""
        return text

    def rest(self) -> str:
        """Returns what was held back, as the model ended here; ask for `stopped` after this, not before.

        Where one sequence lies inside another, what was held back for the longer may still end at the shorter.
        """
        text, self._held = self._held, ""
        for start in range(len(text)):
            if self._stops_at(text, start):
                return self._stop(text[:start])
        return text

    def _stops_at(self, text: str, start: int) -> bool:
        return any(text.startswith(stop, start) for stop in self._stops)

    def _stop(self, sent: str) -> str:
        self._stopped = True
        self._held = ""
        return sent
