"""One reply as it is asked of vLLM, and the document that it must be if it has a schema.

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

# vLLM can't end a document early, as the torch engine does when tokens run short. A schema that bounds its texts ends
# by itself, and is given the room to: four times what was asked for is more than the longest feedback takes.
_DOCUMENT_ROOM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ends every reply of a base model.

    Attributes:
        context_tokens: Most tokens of a prompt and its reply.
        stop_tokens: End a reply, beside those that vLLM knows; not part of it.
    """

    context_tokens: int
    stop_tokens: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A reply to ask for.

    Attributes:
        model: Name of the base model or of an adapter.
        prompt: Token ids.
        serving: How to sample; `max_tokens` fits the context with the prompt.
        seed: Of the sampling; None for vLLM's own.
        stop: Texts that end the reply; not part of it.
        stop_tokens: Tokens that end the reply; not part of it.
        json_schema: What the reply must satisfy; None leaves it free.
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
        """What to ask vLLM for.

        Args:
            generation: What was asked of the engine.
            prompt: Its token ids; fewer than the context has.
            model: Name of what answers.
            profile: Serving profile of the adapter that answers; None for the base model.
            limits: Of the base model.
        """
        serving = serving_of(generation.sampling, profile)
        wanted = serving.max_tokens * (1 if generation.json_schema is None else _DOCUMENT_ROOM)
        return cls(
            model=model,
            prompt=prompt,
            serving=replace(serving, max_tokens=min(wanted, limits.context_tokens - len(prompt))),
            seed=generation.sampling.seed,
            stop=generation.sampling.stop,
            stop_tokens=limits.stop_tokens,
            json_schema=generation.json_schema,
        )

    def to_json(self) -> dict[str, object]:
        """The body of `POST /v1/completions`, streaming."""
        body: dict[str, object] = {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.serving.max_tokens,
            "temperature": self.serving.temperature,
            "top_p": self.serving.top_p,
            "stop": list(self.stop),
            "stop_token_ids": list(self.stop_tokens),
            # What the model's own generation_config.json could say otherwise.
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
    """The JSON document that was decoded under a schema.

    Raises:
        InvalidField: It is cut, as it did not fit the tokens that it could have.
    """
    try:
        # XGrammar lets control characters into bounded strings, where JSON forbids them.
        return json.dumps(json.loads(text, strict=False), ensure_ascii=False)
    except json.JSONDecodeError:
        raise InvalidField([Violation("max_tokens", "is too low for a whole document of the schema")]) from None
