"""Stop sequences: texts that end a reply before the model ends it.

Knows nothing of tokens or engines; input and output are text.
"""

from collections.abc import Iterable


class StopFilter:
    """Passes a reply on, piece by piece, up to the first stop sequence.

    Text that may turn out to begin a stop sequence is withheld until later pieces decide, and no more than that.
    However the reply is cut into pieces, it ends in the same place: before the sequence that begins first, as
    `str.find` would find it.

    Args:
        stops: The stop sequences, none of them empty. Without any, every piece passes at once.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        assert all(self._stops), "a stop sequence must not be empty: it would end every reply"
        self._withheld_text = ""
        self._has_stopped = False

    @property
    def has_stopped(self) -> bool:
        """Whether the reply has ended at a stop sequence. Pieces pushed after that are dropped."""
        return self._has_stopped

    def push(self, piece: str) -> str:
        """Takes the next piece of the reply and returns the text that may be sent now, which may be empty."""
        if self._has_stopped or not self._stops:
            return "" if self._has_stopped else piece
        text = self._withheld_text + piece
        for start in range(len(text)):
            if self._stops_at(text, start):
                return self._stop(text[:start])
            # A proper prefix of a stop sequence at the very end of the text.
            if any(stop.startswith(text[start:]) for stop in self._stops):
                self._withheld_text = text[start:]
                return text[:start]
        self._withheld_text = ""
        return text

    def flush(self) -> str:
        """Returns the withheld text, because the model ended the reply here. Check `has_stopped` after this call.

        Where one stop sequence lies inside another, text withheld for the longer may still end at the shorter.
        """
        text, self._withheld_text = self._withheld_text, ""
        for start in range(len(text)):
            if self._stops_at(text, start):
                return self._stop(text[:start])
        return text

    def _stops_at(self, text: str, start: int) -> bool:
        return any(text.startswith(stop, start) for stop in self._stops)

    def _stop(self, text_before: str) -> str:
        self._has_stopped = True
        self._withheld_text = ""
        return text_before
