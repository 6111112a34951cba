"""The words around expressions and numbers that show what is asked, and what is offered as an answer.

All patterns read lower case. Those that end with `$` are searched in the few characters before a number, so that the
time stays in proportion to the text.
"""

import re

ASKS_BEFORE = re.compile(
    r"\b(?:what(?:'s|s| is| are| does| do you get (?:for|from|when you do))|how much (?:is|are|does)|calculate|compute"
    r"|find|evaluate|simplify|work(?:ing)? (?:it )?out|solve|figure out|answer (?:to|for|of)|result of|value of"
    r"|how (?:do|can|would|should|could|to) (?:i |you |we )?(?:do|get|find|make|solve|work)|(?:doing|explain)"
    r"|help(?: me)?(?: with| on| do| solve)|show me(?: how to do)?|understand|(?:don't|dont|didn't) get|stuck on)"
    r"\s*[:\"'\u201c]?\s*$"
)
# After a range or a size stands what is counted: "find 3-5 words".
ENDS_AFTER = re.compile(
    r"\s*(?:$|[.?!,;:)\n\"'\u201d]|(?:is|equals?|makes?|gives|and|or|right|correct|please|pl[sz]|i|but|because|so|my"
    r"|for me|with|step|using|by|without|when|again|it|comes|was|am|that|in|on|thx|thanks|then|bc|cuz|can|could)\b)"
)
LINE_START = re.compile(r"(?:^|[.?!:;\n])[\s\"'(\u201c]*$")
FRACTION_ALONE = re.compile(r"[0-9]+/[0-9]+")
# Between an expression and the number that is said to be its value.
TIES = re.compile(
    r"\s*[,:]?\s*(?:then\s+)?(?:is|makes?|gives?|was|be|comes (?:out )?to|(?:and |the |my )*answer(?: is|:)?)\s+"
    r"(?:it's |it is |just |really |always |simply )?[\"'\u201c]?"
)
# Between a number and the expression whose value it is said to be.
SAID_FOR = re.compile(
    r"\s*(?:as |is |be )*(?:the |my |a )?(?:right |correct )?(?:answer|result|solution|value|right|correct)?\s*"
    r"(?:to|for|of|from|when (?:i|you|we) (?:do|did|add|multiply|divide|subtract|work out)|on)\s+"
    r"(?:the (?:problem|question|exercise|sum) )?[\"'\u201c]?"
)
OFFERS_BEFORE = re.compile(
    r"(?:answer|result|solution|guess|(?:answer|result|solution|guess) (?:is|was|must be|should be|would be)"
    r"|\b(?:got|get|gets|say|says|said|think|thinks|thought|guess|guessed|put|wrote|chose|believe|calculated|know"
    r"|told me|came up with)(?: that| this)?(?: it'?s?| it is| it was| the answer is| that'?s| is)?"
    r"|\b(?:is|isn't|was) (?:it|that|this|the answer)|\bit'?s|\bit (?:is|equals|must be|should be|would be|was)"
    r"|\bthat'?s|\b(?:that|this) (?:is|makes|gives)|\b(?:so|therefore|thus|is|=))"
    r"\s*[:=-]?\s*(?:just |only |exactly |like |maybe |probably |definitely |still |it's |um |uh )?[\"'\u201c]?$"
)
CONFIRMS_AFTER = re.compile(
    r"[\"'\u201d]?\s*[,.!?-]*\s*(?:is (?:that|this|it) |am i |that's |that is |is )?(?:the )?"
    r"(?:right|correct|true|yes|yeah|ok|okay|no|answer)\b"
)
OR_ELSE = re.compile(r"\s*(?:[,?/]|\bor\b|\band\b)\s*(?:[,?/]\s*)?(?:or\s+)?(?:is it\s+|maybe\s+|perhaps\s+)?")
# Between two expressions that are asked together.
JOINS = re.compile(r"\s*(?:,|and|or|, and|, or)\s*(?:what (?:is|about)\s+)?")
MY_ANSWER = re.compile(r"my (?:answer|work|solution)(?: is|:)?\s*$")
# The answer of a student in the form of a baseline: the question stands before it.
ANSWER_MARKER = re.compile(
    r"\bmy (?:final )?(?:answer|solution|work)\s*(?:[:=-]|is\b(?! (?:right|correct|wrong|it|that|this|ok|good)\b))"
)
# Questions whose right answer is not, or not only, the exact value.
ASKS_OTHERWISE = re.compile(
    r"\b(?:estimat\w+|round\w*|roughly|approximate\w*|nearest|story|draw|compare|greater|bigger|smaller|sensible"
    r"|reasonable|expanded|standard form|scientific notation|true or false)\b"
)
# Questions for which a right number is only a part of a right answer.
ASKS_FOR_REASONS = re.compile(r"\b(?:explain|why|and (?:what|how|which)|how do you know|show your|describe|justify)\b")
# "1 inch = 10 miles" on a map is no conversion.
IS_SCALE = re.compile(r"\b(?:scale|map|drawing|model|represents?)\b")
DENIES = re.compile(r"\b(?:isn'?t|not|aren'?t|doesn'?t|don'?t|didn'?t|never|can'?t|cannot)\b[^.?!,\n0-9]{0,12}$")
WHY = re.compile(r"\b(?:why|how|show|explain|prove)\b[^.?!\n]*$")
ASKS_MORE = re.compile(r"\b(?:how|why|what|which|when|where|who|explain|show|help)\b")
ASKS_FOR_CHECK = re.compile(
    r"\bwhat (?:do|would) you (?:think|say)\b|\bhow (?:did|do) i do\b|\bhow is that\b|\bwhat'?s? my (?:score|grade)\b"
    r"|\bhelp me check\b"
)
