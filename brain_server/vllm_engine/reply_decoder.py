"""Decodes replies in vLLM. For the event loop; knows nothing of students."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from brain_server.adapters.choice import AdapterChoice
from brain_server.adapters.reply_stream import DecodingSummary
from brain_server.engine.contract import Generation
from brain_server.engine.deadline import Allowance, within
from brain_server.vllm_engine.adapter_folders import AdapterFolders, VllmAdapter
from brain_server.vllm_engine.base_model import Branches, VllmModel
from brain_server.vllm_engine.client import CompletionEnd, UnknownToVllm, VllmClient, VllmUnreachable
from brain_server.vllm_engine.completion import Completion, Limits, read_document
from brain_server.vllm_engine.roles import VllmRoles
from mesh.lm.chat import Prompt


class VllmReplyDecoder:
    """A `ReplyDecoder` on vLLM.

    Attributes:
        limits: What ends every reply.
    """

    def __init__(
        self, client: VllmClient, model: VllmModel, folders: AdapterFolders, *, roles: VllmRoles, limits: Limits
    ) -> None:
        """Takes the parts that decode.

        Args:
            client: Speaks to vLLM.
            model: The base model that vLLM serves.
            folders: Of the adapters that vLLM has loaded.
            roles: The roles among them, which stay in vLLM's memory.
            limits: What ends every reply.
        """
        self.limits = limits
        self._client = client
        self._model = model
        self._folders = folders
        self._roles = roles

    async def encode(self, prompt: Prompt, allowance: Allowance, *, reply_tokens: int = 1) -> tuple[int, ...]:
        """Returns the prompt's token ids.

        Args:
            prompt: What to tokenise.
            allowance: How long that may take.
            reply_tokens: Tokens of the context that the prompt must leave free.

        Raises:
            InvalidField: The prompt does not fit the model.
            DeadlineExceeded: The deadline passed first.
        """
        room = self.limits.context_tokens - reply_tokens
        return await within(asyncio.to_thread(self._model.encode, prompt, room=room), allowance)

    async def prepare(self, generation: Generation, allowance: Allowance) -> tuple[int, ...]:
        """See `ReplyDecoder.prepare`."""
        return await self.encode(generation.prompt, allowance)

    async def decode(
        self,
        generation: Generation,
        prepared: tuple[int, ...],
        choice: AdapterChoice[VllmAdapter],
        allowance: Allowance,
    ) -> AsyncGenerator[str | DecodingSummary, None]:
        """See `ReplyDecoder.decode`. A reply under a schema is one piece, sent once it is a whole document."""
        adapter = choice.adapter.content if choice.adapter else self._folders.blank
        profile = choice.adapter.manifest.recipe.serving if choice.adapter else self._model.files.serving
        completion = Completion.of(generation, prepared, model=adapter.name, profile=profile, limits=self.limits)
        first_token_at: float | None = None
        document: list[str] = []
        async with aclosing(self.complete(completion, adapter)) as events:
            while not isinstance(event := await within(anext(events), allowance), CompletionEnd):
                first_token_at = first_token_at or time.monotonic()
                if generation.json_schema is None:
                    yield event
                else:
                    document.append(event)
        if generation.json_schema is not None:
            yield read_document("".join(document))
        yield DecodingSummary(
            model=self._model.files.name,
            finish_reason=event.finish_reason,
            prompt_tokens=len(prepared),
            completion_tokens=event.tokens,
            started_at=None,
            first_token_at=first_token_at,
        )

    async def complete(self, completion: Completion, adapter: VllmAdapter) -> AsyncGenerator[str | CompletionEnd, None]:
        """Decodes; loads the adapter again if vLLM does not know it, as after a restart.

        Raises:
            AdapterIncompatible: vLLM refuses the adapter now.
            VllmUnreachable: vLLM does not answer, or has forgotten the adapter again.
        """
        self._roles.record_use(adapter)
        for last_try in (False, True):
            try:
                async with aclosing(self._client.stream(completion)) as events:
                    async for event in events:
                        yield event
            except UnknownToVllm as error:
                # vLLM says so before the first piece, never after it.
                if last_try:
                    raise VllmUnreachable("vLLM has forgotten an adapter that it has just loaded") from error
                await self._folders.restore(adapter)
            else:
                return

    async def next_logs(
        self, prompt: Sequence[int], branches: Branches, *, role: VllmAdapter | None
    ) -> Sequence[Mapping[int, float]]:
        """Returns what `Branches.weigh` takes: log-probabilities at each fork, after the prompt.

        Args:
            prompt: Token ids.
            branches: The labels.
            role: The role that reads the prompt; None for the base model.

        Raises:
            AdapterIncompatible: vLLM refuses the role now.
            VllmUnreachable: vLLM does not answer.
        """
        adapter = role or self._folders.blank
        self._roles.record_use(adapter)
        prompts = [(*prompt, *fork) for fork in branches.forks]
        try:
            return await self._client.next_logs(adapter.name, prompts, branches.tokens)
        except UnknownToVllm:
            await self._folders.restore(adapter)
            return await self._client.next_logs(adapter.name, prompts, branches.tokens)
