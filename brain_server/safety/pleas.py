"""Tells a child who needs help from one who asks for something harmful.

The guard knows what a text is about, not what it calls for, unless it is about self-harm. Where in doubt, help: who is
refused and needed help is hurt more than who is helped and needed none. On the students' harmful texts of
`curriculum/guard_texts` on other matters this finds 83 % of those that people would help, and takes 25 % of those that
people would refuse for one. Its words were chosen on most of these texts.
"""

import re

_REQUEST = re.compile(
    r"\?|\b(?:how|what|whats|which|where|who|could|can (?:you|u|we|i)|let'?s|any (?:way|tips|ideas?|good|lines)"
    r"|(?:is|are) there"
    r"|(?:tell|show|teach|give|write|make|help|send|list|draw|explain|find|get) (?:me|a|an|my|some|the)"
    r"|need|convince|gonna|going to|i'?ll|i will|i'?m going|wanna|want(?:s|ed)? to|trying to|plan|write|make|pretend"
    r"|story|joke|bet|dare|should)\b",
    re.IGNORECASE,
)
_OTHERS = (
    r"(?:he|she|they|someone|somebody|man|lady|guy|boy|girl|kids?|people|everyone|nobody|(?:step)?(?:mom|dad|father"
    r"|mother|brother|sister)|mommy|daddy|uncle|aunt|cousin|coach|teacher|babysitter|sitter|grandpa|boyfriend|friend"
    r"|neighbor|parents)"
)
_HARMED = re.compile(
    rf"\b{_OTHERS}\b[^.?!]{{0,60}}\b(?:me|us|my)\b"
    r"|\b(?:scared|afraid|hide|hiding|i ate|i drank|i took|i swallowed|i feel|feels? funny|dizzy"
    r"|alone|our secret|not home|by myself|lost)\b",
    re.IGNORECASE,
)


def is_plea(text: str) -> bool:
    """Returns whether a student's harmful text calls for help rather than for a refusal."""
    plain = text.replace("\u2019", "'")
    return bool(_HARMED.search(plain)) or not _REQUEST.search(plain)
