"""A client for the part of vLLM's HTTP interface that the engine uses: completions of token ids, and loading adapters.

Uses the extensions of the OpenAI protocol in vLLM 0.32. Errors carry vLLM's status but not its message, which may quote
a request. Knows nothing of students, prompts or policies.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from brain_server.engine.contract import FinishReason
from brain_server.vllm_engine.completion import Completion
from mesh.errors import ModelNotLoaded

# vLLM runs beside the brain: a connection takes a millisecond. These limit what a stalled one costs a caller.
_CONNECT_SECONDS = 2.0
_STATUS_SECONDS = 5.0
# vLLM loads an adapter between two steps of its batch, which take long on a CPU while long prompts are prefilled.
_LOAD_SECONDS = 60.0
_EVENT_PREFIX = "data: "
_END_OF_STREAM = "[DONE]"
# vLLM names a token by its id with this prefix.
_ID_PREFIX = "token_id:"
_NOT_VLLM = "the answer is not that of a vLLM server; set VLLM_URL to the URL of one"


class VllmUnreachable(ModelNotLoaded):
    """vLLM does not answer, or broke off an answer."""


class VllmRefused(Exception):
    """vLLM answers with an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"vLLM answers with HTTP status {status}")
        self.status = status


class UnknownToVllm(VllmRefused):
    """vLLM has no base model or adapter of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a vLLM server serves.

    Attributes:
        name: Name of the base model (`--served-model-name`).
        context_tokens: Most tokens of a prompt and its reply together (`--max-model-len`).
        adapters: Folders of the loaded adapters, by name.
    """

    name: str
    context_tokens: int
    adapters: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionEnd:
    """How a completion ended.

    Attributes:
        finish_reason: Why decoding ended.
        tokens: Tokens of the text.
    """

    finish_reason: FinishReason
    tokens: int


class VllmClient:
    """A client of one vLLM server. Create it with `open`.

    Every method raises `VllmUnreachable` when vLLM does not answer, and `VllmRefused` when it answers with an error.

    Attributes:
        tokens_decoded: Tokens of all completions so far.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.tokens_decoded = 0
        self._http = http

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        """Yields a client with a pool of connections, which are made on demand and closed on exit."""
        # A reply may wait in vLLM's queue for as long as its caller waits: no limit on reading, nor on connections.
        timeout = httpx.Timeout(_STATUS_SECONDS, connect=_CONNECT_SECONDS, read=None, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        # vLLM runs beside the brain, never behind a proxy that the environment names.
        async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False) as http:
            yield cls(http)

    async def query_served_model(self) -> ServedModel:
        """Returns what vLLM serves. Raises `VllmUnreachable` also if vLLM reports that it is unhealthy."""
        try:
            await self._send("GET", "/health", read_seconds=_STATUS_SECONDS)
            answer = await self._send("GET", "/v1/models", read_seconds=_STATUS_SECONDS)
        except VllmRefused as error:
            raise VllmUnreachable(f"vLLM reports that it is unhealthy (HTTP status {error.status})") from error
        cards = _parse(_ModelList, answer.content).data
        base = next((card for card in cards if card.parent is None), None)
        if base is None or base.max_model_len is None:
            raise VllmUnreachable(_NOT_VLLM)
        adapters = {card.id: Path(card.root) for card in cards if card.parent is not None and card.root is not None}
        return ServedModel(name=base.id, context_tokens=base.max_model_len, adapters=adapters)

    async def load(self, name: str, folder: Path, *, replace: bool = False) -> None:
        """Loads an adapter from a folder that vLLM sees under the same path.

        Args:
            name: What completions name it by.
            folder: A folder in PEFT's layout. vLLM reads it again whenever the adapter returns to its memory.
            replace: Whether an adapter of this name may be loaded already; it is then replaced.
        """
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": replace}
        await self._send("POST", "/v1/load_lora_adapter", json=body, read_seconds=_LOAD_SECONDS)

    async def unload(self, name: str) -> None:
        """Unloads an adapter; requests that decode with it continue."""
        await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": name}, read_seconds=_LOAD_SECONDS)

    async def stream(self, completion: Completion) -> AsyncGenerator[str | CompletionEnd, None]:
        """Decodes: yields pieces of text, then the end. Closing the generator makes vLLM stop within one step."""
        finish_reason: FinishReason | None = None
        stop_token = 0
        async with AsyncExitStack() as stack:
            stack.enter_context(_connecting())
            request = self._http.stream("POST", "/v1/completions", json=completion.to_json())
            response = await stack.enter_async_context(request)
            if not response.is_success:
                raise _error_of(response)
            async for line in response.aiter_lines():
                if not line.startswith(_EVENT_PREFIX) or (data := line.removeprefix(_EVENT_PREFIX)) == _END_OF_STREAM:
                    continue
                chunk = _parse(_CompletionChunk, data)
                if chunk.error is not None:
                    raise VllmRefused(chunk.error.code)
                for choice in chunk.choices:
                    if choice.text:
                        yield choice.text
                    if choice.finish_reason is not None:
                        finish_reason = _finish_reason_of(choice.finish_reason)
                        # vLLM counts the token that ends a reply, unless a stop text ended it.
                        stop_token = int(choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str))
                if chunk.usage is not None and finish_reason is not None:
                    end = CompletionEnd(finish_reason=finish_reason, tokens=chunk.usage.completion_tokens - stop_token)
                    self.tokens_decoded += end.tokens
                    yield end
                    return
        raise VllmUnreachable("vLLM broke off a reply before its end")

    async def next_logs(
        self, model: str, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[dict[int, float]]:
        """Returns, for each prompt, the log-probability of each of the tokens as the next one.

        Args:
            model: Name of the base model or of an adapter.
            prompts: Token ids, computed in one batch; vLLM's prefix cache computes a common beginning once.
            tokens: Token ids, at most 128.
        """
        body = {
            "model": model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": len(tokens),
            "logprob_token_ids": list(tokens),
            # By text, tokens that are parts of a character could not be distinguished.
            "return_tokens_as_token_ids": True,
        }
        answer = await self._send("POST", "/v1/completions", json=body, read_seconds=None)
        choices = sorted(_parse(_CompletionChunk, answer.content).choices, key=lambda choice: choice.index)
        if len(choices) != len(prompts):
            raise VllmRefused(answer.status_code)
        return [choice.first_logs for choice in choices]

    async def _send(
        self, method: str, path: str, *, read_seconds: float | None, json: object | None = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(_STATUS_SECONDS, connect=_CONNECT_SECONDS, read=read_seconds, pool=None)
        with _connecting():
            response = await self._http.request(method, path, json=json, timeout=timeout)
        if not response.is_success:
            raise _error_of(response)
        return response


class _ErrorBody(BaseModel):
    code: int


class _TokenUsage(BaseModel):
    completion_tokens: int


class _LogProbabilities(BaseModel):
    top_logprobs: list[dict[str, float]]


class _CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _LogProbabilities | None = None

    @property
    def first_logs(self) -> dict[int, float]:
        """Log-probabilities at the first position, by token id."""
        logs = self.logprobs.top_logprobs[0] if self.logprobs and self.logprobs.top_logprobs else {}
        return {int(name.removeprefix(_ID_PREFIX)): value for name, value in logs.items()}


class _CompletionChunk(BaseModel):
    choices: list[_CompletionChoice] = []
    usage: _TokenUsage | None = None
    error: _ErrorBody | None = None


class _ModelCard(BaseModel):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _ModelList(BaseModel):
    data: list[_ModelCard]


M = TypeVar("M", bound=BaseModel)


def _parse(kind: type[M], data: bytes | str) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        # Its message would quote the answer.
        raise VllmUnreachable(_NOT_VLLM) from None


def _finish_reason_of(reason: str) -> FinishReason:
    return FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _error_of(response: httpx.Response) -> VllmRefused:
    kind = UnknownToVllm if response.status_code == HTTPStatus.NOT_FOUND else VllmRefused
    return kind(response.status_code)


@contextmanager
def _connecting() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise VllmUnreachable(f"vLLM does not answer ({type(error).__name__})") from error
