"""vLLM's HTTP interface, as much of it as the engine uses: completions of token ids, and adapters loaded at run time.

vLLM's own extensions of the OpenAI protocol are those of vLLM 0.32. Of an error, vLLM's status is told on but not its
words, which may quote a request. Knows nothing of students, prompts or policies.
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

# vLLM is a neighbour: a connection takes a millisecond, and these are what a stalled one may cost a caller.
_CONNECT_SECONDS = 2.0
_ASK_SECONDS = 5.0
# vLLM loads an adapter between two steps of its batch; prefill of long prompts makes those long on a CPU.
_LOAD_SECONDS = 60.0
_DATA = "data: "
_DONE = "[DONE]"
# How vLLM names a token by its id.
_ID_PREFIX = "token_id:"


class VllmUnreachable(ModelNotLoaded):
    """vLLM does not answer, or went away while it did."""


class VllmRefused(Exception):
    """vLLM answers with an error; the status is that of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"vLLM answers with status {status}")
        self.status = status


class UnknownToVllm(VllmRefused):
    """vLLM has no base model or adapter of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a vLLM serves.

    Attributes:
        name: Of the base model (`--served-model-name`).
        context_tokens: Most tokens of a prompt and its reply (`--max-model-len`).
        adapters: Names of the adapters that it knows, and the folders they came from.
    """

    name: str
    context_tokens: int
    adapters: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """How a reply ended; `tokens` are those of its text."""

    finish_reason: FinishReason
    tokens: int


class VllmClient:
    """Speaks to one vLLM server. Made by `open`.

    Every method raises `VllmUnreachable` when vLLM does not answer, and `VllmRefused` when it answers with an error.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Self]:
        """Opens a pool of connections, none of them yet; leaving closes them."""
        # A reply may wait in vLLM's queue for as long as its caller does: no limit on reading, nor on connections.
        timeout = httpx.Timeout(_ASK_SECONDS, connect=_CONNECT_SECONDS, read=None, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        # vLLM is beside us, never behind a proxy of the environment.
        async with httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False) as http:
            yield cls(http)

    async def ask(self) -> Served:
        """Asks whether vLLM is well, and what it serves. Raises `VllmUnreachable` also if it says that it is not."""
        try:
            await self._send("GET", "/health", read_seconds=_ASK_SECONDS)
            answer = await self._send("GET", "/v1/models", read_seconds=_ASK_SECONDS)
        except VllmRefused as error:
            raise VllmUnreachable(f"vLLM is not well (status {error.status})") from error
        cards = _parsed(_Models, answer.content).data
        base = next((card for card in cards if card.parent is None), None)
        if base is None or base.max_model_len is None:
            raise VllmUnreachable("what answers does not speak as vLLM does")
        adapters = {card.id: Path(card.root) for card in cards if card.parent is not None and card.root is not None}
        return Served(name=base.id, context_tokens=base.max_model_len, adapters=adapters)

    async def load(self, name: str, folder: Path, *, again: bool = False) -> None:
        """Loads an adapter from a folder that vLLM sees under the same path.

        Args:
            name: What completions will name it by.
            folder: In PEFT's layout. vLLM reads it again whenever the adapter comes back to its memory.
            again: Whether it may be there already.
        """
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": again}
        await self._send("POST", "/v1/load_lora_adapter", json=body, read_seconds=_LOAD_SECONDS)

    async def unload(self, name: str) -> None:
        """Has vLLM forget an adapter; requests that decode with it go on."""
        await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": name}, read_seconds=_LOAD_SECONDS)

    async def stream(self, completion: Completion) -> AsyncGenerator[str | Completed, None]:
        """Decodes: pieces of text, then how it ended. Closing the generator makes vLLM stop within a step."""
        ended: FinishReason | None = None
        stop_token = 0
        async with AsyncExitStack() as stack:
            stack.enter_context(_reaching())
            asked = self._http.stream("POST", "/v1/completions", json=completion.to_json())
            response = await stack.enter_async_context(asked)
            if not response.is_success:
                raise _refusal(response)
            async for line in response.aiter_lines():
                if not line.startswith(_DATA) or (data := line.removeprefix(_DATA)) == _DONE:
                    continue
                chunk = _parsed(_Chunk, data)
                if chunk.error is not None:
                    raise VllmRefused(chunk.error.code)
                for choice in chunk.choices:
                    if choice.text:
                        yield choice.text
                    if choice.finish_reason is not None:
                        ended = FinishReason.LENGTH if choice.finish_reason == "length" else FinishReason.STOP
                        # vLLM counts the token that ends a reply, unless a stop text did.
                        stop_token = int(choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str))
                if chunk.usage is not None and ended is not None:
                    yield Completed(finish_reason=ended, tokens=chunk.usage.completion_tokens - stop_token)
                    return
        raise VllmUnreachable("vLLM ended a reply without saying how")

    async def next_logs(
        self, model: str, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[dict[int, float]]:
        """The log-probability of each of the tokens after each of the prompts, in one batch.

        Args:
            model: Name of the base model or of an adapter.
            prompts: Token ids; what they have in common vLLM's prefix cache computes once.
            tokens: At most 128.
        """
        body = {
            "model": model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": len(tokens),
            "logprob_token_ids": list(tokens),
            # By their text, tokens that are no whole character could not be told apart.
            "return_tokens_as_token_ids": True,
        }
        answer = await self._send("POST", "/v1/completions", json=body, read_seconds=None)
        choices = sorted(_parsed(_Chunk, answer.content).choices, key=lambda choice: choice.index)
        if len(choices) != len(prompts):
            raise VllmRefused(answer.status_code)
        return [choice.first_logs for choice in choices]

    async def _send(
        self, method: str, path: str, *, read_seconds: float | None, json: object | None = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(_ASK_SECONDS, connect=_CONNECT_SECONDS, read=read_seconds, pool=None)
        with _reaching():
            response = await self._http.request(method, path, json=json, timeout=timeout)
        if not response.is_success:
            raise _refusal(response)
        return response


class _Error(BaseModel):
    code: int


class _Usage(BaseModel):
    completion_tokens: int


class _Logs(BaseModel):
    top_logprobs: list[dict[str, float]]


class _Choice(BaseModel):
    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: _Logs | None = None

    @property
    def first_logs(self) -> dict[int, float]:
        """Of the tokens that were asked for, at the first place."""
        logs = self.logprobs.top_logprobs[0] if self.logprobs and self.logprobs.top_logprobs else {}
        return {int(name.removeprefix(_ID_PREFIX)): value for name, value in logs.items()}


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Card(BaseModel):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Card]


M = TypeVar("M", bound=BaseModel)


def _parsed(kind: type[M], data: bytes | str) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        # Its message would quote what did not parse.
        raise VllmUnreachable("what answers does not speak as vLLM does") from None


def _refusal(response: httpx.Response) -> VllmRefused:
    kind = UnknownToVllm if response.status_code == HTTPStatus.NOT_FOUND else VllmRefused
    return kind(response.status_code)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise VllmUnreachable(f"vLLM does not answer ({type(error).__name__})") from error
