"""BrainService and AdapterService: parse, call, convert."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from aivo.brain.v1 import adapter_service_pb2 as adapter_pb
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceServicer
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceServicer

from brain_server.edge import adapter_wire, wire
from brain_server.edge.health import BrainHealthCheck
from brain_server.engine.contract import Delta, Engine, Fallback, Reply
from brain_server.safety.agent import SafetyAgent, ScreenedReply
from brain_server.safety.assessing import ScreenedAssessor
from mesh.rpc.calls import Context, call_id, deadline_of
from mesh.rpc.errors import status_of


class BrainServicer(BrainServiceServicer):
    """Answers for the safety agent, the assessor and the health check; raises what they raise."""

    def __init__(
        self,
        engine: Engine,
        *,
        agent: SafetyAgent,
        assessor: ScreenedAssessor,
        health: BrainHealthCheck,
        observe: Callable[[Reply], None],
    ) -> None:
        """Takes the parts that answer, and a function that is called with every reply of a model that is sent."""
        self._engine = engine
        self._agent = agent
        self._assessor = assessor
        self._health = health
        self._observe = observe

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Answers in one message."""
        generation = wire.generation_from(request, deadline=deadline_of(context))
        async with aclosing(self._agent.stream(generation, request_id=call_id())) as events:
            async for event in events:
                if isinstance(event, ScreenedReply):
                    self._count(event.reply)
                    return wire.response_from(event.reply, generation.prompt, event.verdict)
        raise AssertionError("a stream ends with its reply")

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        """Answers piece by piece."""
        generation = wire.generation_from(request, deadline=deadline_of(context))
        sent: list[str] = []
        async with aclosing(self._agent.stream(generation, request_id=call_id())) as events:
            try:
                async for event in events:
                    if isinstance(event, Delta):
                        sent.append(event.text)
                        yield wire.piece_from(len(sent), event.text)
                    else:
                        self._count(event.reply)
                        yield wire.finished_from(len(sent) + 1, event.reply, generation.prompt, event.verdict)
            except Exception as error:
                if sent:
                    status = status_of(error, call_id())
                    model = self._engine.facts.model
                    yield wire.broken_off_from(len(sent) + 1, status, text="".join(sent), model=model)
                raise

    async def Assess(self, request: pb.AssessRequest, context: Context) -> pb.AssessResponse:
        """Assesses an answer."""
        assessment = wire.assessment_from(request)
        screened = await self._assessor.assess(assessment, deadline=deadline_of(context), request_id=call_id())
        self._count(screened.verdict.reply)
        return wire.verdict_from(screened.verdict, screened.safety)

    async def GetHealth(self, request: pb.GetHealthRequest, context: Context) -> pb.GetHealthResponse:
        """Reports health."""
        return wire.health_from(await self._health.report())

    def _count(self, reply: Reply) -> None:
        # What people wrote took no model any time.
        if reply.fallback is not Fallback.SAFETY:
            self._observe(reply)


class AdapterServicer(AdapterServiceServicer):
    """Answers for the engine; raises what it raises."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def WarmAdapter(
        self, request: adapter_pb.WarmAdapterRequest, context: Context
    ) -> adapter_pb.WarmAdapterResponse:
        """Loads an adapter."""
        warmed = await self._engine.warm(request.student_id, adapter_wire.version_from(request))
        return adapter_wire.warmed_from(warmed)

    async def ListAdapters(
        self, request: adapter_pb.ListAdaptersRequest, context: Context
    ) -> adapter_pb.ListAdaptersResponse:
        """Lists the adapters in memory."""
        return adapter_wire.page_from(request, self._engine.residencies())

    async def EvictAdapter(
        self, request: adapter_pb.EvictAdapterRequest, context: Context
    ) -> adapter_pb.EvictAdapterResponse:
        """Drops a student's adapters from memory."""
        return adapter_wire.evicted_from(await self._engine.evict(request.student_id))
