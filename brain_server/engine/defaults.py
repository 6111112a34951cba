"""What both engines decode alike: how a reply is sampled, and the probe that proves an adapter."""

from brain_server.engine.contract import Sampling
from mesh.adapters.manifest import Serving
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# What samples a reply where neither the request nor the student's adapter says how.
DEFAULT_SERVING = Serving(temperature=0.7, top_p=0.9, max_tokens=256)

# Enough to run an adapter through reading and writing both.
PROBE = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Hello"),))
PROBE_SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=4)


def serving_of(sampling: Sampling, profile: Serving | None) -> Serving:
    """How to sample a reply: what the request says, then the adapter's serving profile, then the defaults.

    Args:
        sampling: The request's own values, which win.
        profile: Of the adapter that answers; None for the base model.
    """
    profile = profile or DEFAULT_SERVING
    return Serving(
        temperature=profile.temperature if sampling.temperature is None else float(sampling.temperature),
        top_p=profile.top_p if sampling.top_p is None else float(sampling.top_p),
        max_tokens=profile.max_tokens if sampling.max_tokens is None else sampling.max_tokens,
    )
