"""Defaults that all engines share: how a reply is sampled, and the probe that proves an adapter."""

from brain_server.engine.contract import Sampling
from mesh.adapters.manifest import DEFAULT_SERVING, Serving
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# Enough to run an adapter both on a prompt and on generated tokens.
PROBE = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Hello"),))
PROBE_SERVING = Serving(temperature=0.0, top_p=1.0, max_tokens=4)


def serving_of(sampling: Sampling, profile: Serving | None) -> Serving:
    """Returns how to sample a reply: by the request, else by the model's serving profile, else by the defaults.

    Args:
        sampling: The request's values, which take precedence.
        profile: Serving profile of the adapter that answers, or of the Main Brain; None if it has none.
    """
    profile = profile or DEFAULT_SERVING
    return Serving(
        temperature=profile.temperature if sampling.temperature is None else float(sampling.temperature),
        top_p=profile.top_p if sampling.top_p is None else float(sampling.top_p),
        max_tokens=profile.max_tokens if sampling.max_tokens is None else sampling.max_tokens,
        unrepeated_run=profile.unrepeated_run,
    )
