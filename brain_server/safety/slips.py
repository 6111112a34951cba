"""Corrects slips of the pen in the words that the phrases look for: "how do i mak a bom".

One edit makes another word of many short words, so their slips are listed. Longer words are compared, but for those
that share slips with other words, such as "poison" with "prison".
"""

import re

from mesh.tutoring.overlap import misspelt_pairs

_WORD = re.compile(r"[a-z]+")
_LONG_WORDS = frozenset(
    """
    build building cocaine explosive fentanyl grenade molotov myself napalm overdose school somebody someone suicidal
    suicide teacher
    """.split()  # noqa: SIM905 (a list of so many strings is hard to read)
)
_SHORT_WORDS = {
    **dict.fromkeys(("mak", "maek", "mke", "amke", "mkae", "maake"), "make"),
    **dict.fromkeys(("bom", "bmob", "bobm", "bonb", "bomd", "bommb"), "bomb"),
    **dict.fromkeys(("kil", "klil", "kll", "kiil"), "kill"),
    **dict.fromkeys(("wnat", "wan", "watn"), "want"),
}


def without_slips(text: str) -> str:
    """Returns a text, which must be in lower case, without the slips."""
    # In the reverse of the alphabet the last pair wins: "suicida" always is "suicidal", and never "suicide".
    pairs = sorted(misspelt_pairs(set(_WORD.findall(text)), _LONG_WORDS), reverse=True)
    corrections = dict(pairs) | _SHORT_WORDS
    return _WORD.sub(lambda match: corrections.get(match[0], match[0]), text)
