"""Decodes one reply as a sequence of the running batch. For the event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from brain_server.adapters.choice import AdapterChoice
from brain_server.adapters.host_tier import HostAdapter
from brain_server.adapters.reply_stream import DecodingSummary
from brain_server.engine.contract import Generation
from brain_server.engine.deadline import Allowance, within
from brain_server.engine.defaults import serving_of
from brain_server.torch_engine.batch import Batch
from brain_server.torch_engine.compute.grammar import Constraint
from brain_server.torch_engine.compute.model import TorchModel
from brain_server.torch_engine.compute.sequences import TokenSequence
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.ticket import Ticket
from mesh.lm.chat import Prompt
from mesh.main_brain.roles import RoleName


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """What decoding needs of a request.

    Attributes:
        tokens: The prompt's token ids.
        constraint: Keeps the reply to its schema; None leaves it free.
    """

    tokens: tuple[int, ...]
    constraint: Constraint | None


class TorchReplyDecoder:
    """A `ReplyDecoder` on the running batch."""

    def __init__(self, model: TorchModel, batch: Batch, *, prompt_thread: ThreadPoolExecutor) -> None:
        """Keeps the parts that decode.

        Args:
            model: Makes the sequences.
            batch: Runs the sequences on the model.
            prompt_thread: Tokenises the prompts.
        """
        self._model = model
        self._batch = batch
        self._prompt_thread = prompt_thread

    async def encode(self, prompt: Prompt, allowance: Allowance) -> tuple[int, ...]:
        """Returns the prompt's token ids.

        Raises:
            InvalidField: The prompt is too long for the model.
            DeadlineExceeded: The deadline passed first.
        """
        loop = asyncio.get_running_loop()
        return await within(loop.run_in_executor(self._prompt_thread, self._model.encode, prompt), allowance)

    async def prepare(self, generation: Generation, allowance: Allowance) -> PreparedPrompt:
        """See `ReplyDecoder.prepare`. Also compiles the JSON schema, if there is one."""
        tokens = await self.encode(generation.prompt, allowance)
        if generation.json_schema is None:
            return PreparedPrompt(tokens=tokens, constraint=None)
        compilation = asyncio.to_thread(self._model.constraint, generation.json_schema)
        return PreparedPrompt(tokens=tokens, constraint=await within(compilation, allowance))

    async def decode(
        self,
        generation: Generation,
        prepared: PreparedPrompt,
        choice: AdapterChoice[SlotWeights],
        allowance: Allowance,
    ) -> AsyncGenerator[str | DecodingSummary, None]:
        """See `ReplyDecoder.decode`."""
        profile = choice.adapter.manifest.recipe.serving if choice.adapter else self._model.main_brain.serving
        sequence = self._model.reply(
            prepared.tokens,
            serving=serving_of(generation.sampling, profile),
            seed=generation.sampling.seed,
            stop=generation.sampling.stop,
            constraint=prepared.constraint,
        )
        in_batch = self.run(sequence, adapter=choice.adapter, allowance=allowance, student_id=generation.student_id)
        async with in_batch as ticket, aclosing(self._batch.pieces(ticket)) as pieces:
            async for piece in pieces:
                yield piece
        assert sequence.finish_reason is not None
        yield DecodingSummary(
            model=self._model.base.name,
            finish_reason=sequence.finish_reason,
            prompt_tokens=len(prepared.tokens),
            completion_tokens=sequence.token_count,
            started_at=ticket.joined_at,
            first_token_at=sequence.first_token_at,
        )

    @asynccontextmanager
    async def run(
        self,
        sequence: TokenSequence,
        *,
        adapter: HostAdapter[SlotWeights] | None,
        role: RoleName | None = None,
        allowance: Allowance,
        student_id: str | None,
    ) -> AsyncIterator[Ticket]:
        """Runs a sequence in the batch. On exit, the sequence has left the batch."""
        ticket = self._batch.submit(sequence, adapter=adapter, role=role, allowance=allowance, student_id=student_id)
        try:
            yield ticket
        finally:
            await self._batch.release(ticket)
