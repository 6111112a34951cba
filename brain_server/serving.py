"""How a reply is sampled: what the request says, then the adapter's serving profile, then the defaults."""

from brain_server.engine import Sampling
from mesh.adapters.manifest import Serving

# What samples a reply where neither the request nor the student's adapter says how.
DEFAULT_SERVING = Serving(temperature=0.7, top_p=0.9, max_tokens=256)


def serving_of(sampling: Sampling, profile: Serving | None) -> Serving:
    """How to sample a reply.

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
