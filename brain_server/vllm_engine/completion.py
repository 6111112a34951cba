"""One request to vLLM for a completion, and the JSON document that a completion under a schema is.

Knows nothing of HTTP or students.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from brain_server.engine.contract import Generation
from brain_server.engine.defaults import serving_of
from mesh.adapters.manifest import Serving
from mesh.errors import InvalidField, Violation

# When tokens run short, the torch engine ends a document early, which vLLM can't do. A document whose schema bounds its
# texts ends by itself if it has the room: four times the requested tokens are more than the longest feedback takes.
_DOCUMENT_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends every reply of a base model.

    Attributes:
        context_tokens: Most tokens of a prompt and its reply together.
        stop_tokens: Tokens that end a reply, beside those that vLLM knows; not part of it.
    """

    context_tokens: int
    stop_tokens: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A request for one reply.

    Attributes:
        model: Name of the base model or of an adapter.
        prompt: Token ids.
        serving: How to sample; `max_tokens` and the prompt together fit the context.
        seed: Seed of the sampling; None leaves it to vLLM.
        stop: Texts that end the reply; not part of it.
        stop_tokens: Tokens that end the reply; not part of it.
        json_schema: Schema that the reply must satisfy; None leaves it free.
    """

    model: str
    prompt: Sequence[int]
    serving: Serving
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    json_schema: str | None = None

    @classmethod
    def of(
        cls, generation: Generation, prompt: Sequence[int], *, model: str, profile: Serving | None, limits: Limits
    ) -> Self:
        """Returns the request to vLLM for a request to the engine.

        Args:
            generation: The request to the engine.
            prompt: Its prompt's token ids, fewer than the context has.
            model: Name of the adapter or base model that answers.
            profile: Serving profile of the adapter that answers, or of the Main Brain; None if it has none.
            limits: Limits of the base model.
        """
        serving = serving_of(generation.sampling, profile)
        max_tokens = serving.max_tokens * (1 if generation.json_schema is None else _DOCUMENT_FACTOR)
        return cls(
            model=model,
            prompt=prompt,
            serving=replace(serving, max_tokens=min(max_tokens, limits.context_tokens - len(prompt))),
            seed=generation.sampling.seed,
            stop=generation.sampling.stop,
            stop_tokens=limits.stop_tokens,
            json_schema=generation.json_schema,
        )

    def to_json(self) -> dict[str, object]:
        """Returns the body of a streaming `POST /v1/completions`."""
        body: dict[str, object] = {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.serving.max_tokens,
            "temperature": self.serving.temperature,
            "top_p": self.serving.top_p,
            "stop": list(self.stop),
            "stop_token_ids": list(self.stop_tokens),
            # Otherwise the model's generation_config.json could set these.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.seed is not None:
            body["seed"] = self.seed
        if self.json_schema is not None:
            body["structured_outputs"] = {"json": self.json_schema}
        return body


def read_document(text: str) -> str:
    """Returns the JSON document of a reply that was decoded under a schema.

    Raises:
        InvalidField: The document is cut off, as it did not fit `max_tokens`.
    """
    try:
        # XGrammar allows control characters in bounded strings; JSON forbids them.
        return json.dumps(json.loads(text, strict=False), ensure_ascii=False)
    except json.JSONDecodeError:
        raise InvalidField([Violation("max_tokens", "is too low for a whole document of the schema")]) from None
