"""What a distilled reply depends on."""

from dataclasses import dataclass

from cloning_server.examples.manner import Manner
from cloning_server.examples.situations import Situation
from mesh.lm.chat import Prompt
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.policy import Scaffold
from mesh.tutoring.profile import StudentProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyBrief:
    """All that a distilled reply depends on.

    The student's own words are in `prompt`, and in the reference of a private brief; neither is ever shared.

    Attributes:
        profile: The student's, with the response's own subject.
        situation: What the student needs.
        question: The question of the item.
        reference: The right answer; empty if it is not known, or if the reply must not say it.
        verdict: The verdict that is in the prompt; None if there is none.
        scaffold: The support that the student needs in this skill.
        manner: What all replies to the student have in common.
        is_private: Whether the reference is the student's own answer; such a brief is never shared.
        draw: Picks among phrases that say the same; the item alone decides it.
        prompt: What the Main Brain replies to, where there is no right answer to say, or no way to say it in form.
    """

    profile: StudentProfile
    situation: Situation
    question: str
    reference: str
    verdict: AnswerVerdict | None
    scaffold: Scaffold
    manner: Manner
    is_private: bool
    draw: int
    prompt: Prompt
