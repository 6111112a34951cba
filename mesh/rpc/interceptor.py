"""Wraps every call: gives it an id, admits it, checks its request, maps its errors, logs it and measures it.

Servicers raise errors and know nothing of this. Of gRPC's own services (health, reflection) only what can't be read is
answered here.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from prometheus_client import CollectorRegistry
from structlog.contextvars import bound_contextvars

from mesh.errors import (
    AivoError,
    DeadlineExceeded,
    InvalidArgument,
    MalformedRequest,
    MethodNotFound,
    QueueFull,
    RequestTooLarge,
    ServerDraining,
)
from mesh.log import get_logger
from mesh.rpc import validation
from mesh.rpc.callers import Callers, caller_of
from mesh.rpc.calls import deadline_of
from mesh.rpc.errors import DETAILS_KEY, RemoteError, code_of, status_of
from mesh.rpc.metrics import CallMetrics, MethodMeter

# Envoy's name for it: the id that a gateway gave a request is the id of the call.
CALL_ID_KEY = "x-request-id"
_CALL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# The largest request that is parsed: as much as the gateway takes as JSON, and more than the largest order kept.
MAX_REQUEST_BYTES = 8 << 20

# For the message of a call, which comes with its headers or soon after them; the gateway's time for a request.
REQUEST_SECONDS = 60.0

# Reports, among other things, that the server drains, so it is always admitted. Logged only if it fails.
_HEALTH = "GetHealth"

# A caller that gives up at its deadline is seen here a little before the deadline, which counts from the arrival.
_DEADLINE_SLACK_SECONDS = 0.1

# gRPC's own types say neither that a behaviour may be asynchronous nor which context it then gets.
_Behavior = Callable[..., Any]
_Parse = Callable[[bytes], Message]
# Quoted, as these are generic to the type checker alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "_Handler | None"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_log = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Call:
    """A call while it runs, and how it ended."""

    id: str
    deadline: float | None
    started_at: float = field(default_factory=time.perf_counter)
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str | None = None
    messages: int = 0
    first_message_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Time since the call arrived."""
        return time.perf_counter() - self.started_at

    @property
    def is_late(self) -> bool:
        """Whether the deadline passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline - _DEADLINE_SLACK_SECONDS


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of one server, and knows which run.

    Args:
        registry: Takes the metrics.
        caller_limit: Most calls that one caller may have at a time.
    """

    def __init__(self, registry: CollectorRegistry, *, caller_limit: int) -> None:
        self._metrics = CallMetrics(registry)
        self._callers = Callers(limit=caller_limit)
        self._wrapped: dict[str, _Handler] = {}
        # All unknown methods share one label: callers can make up any number of names.
        self._no_such_method = self._around_nothing(self._metrics.of("unknown", "unknown"))
        self._running: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._cut = False

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""
        return self._draining

    def drain(self) -> None:
        """Refuses new calls from now on; those that run go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns when no call runs."""
        await self._idle.wait()

    def cut(self) -> None:
        """Ends the calls that run; their callers get `SERVER_DRAINING`."""
        self._cut = True
        for task in self._running:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        """Returns the method's handler with this interceptor around it."""
        path = handler_call_details.method
        if path in self._wrapped:
            return self._wrapped[path]
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._no_such_method
        self._wrapped[path] = wrapped = self._wrap(handler, path)
        return wrapped

    # All handlers are for a stream of requests, and read the bytes of the one that they take. gRPC itself would never
    # answer a call without a message, and would answer bytes that are no message with Python's words.

    def _wrap(self, handler: _Handler, path: str) -> _Handler:
        service, method = path.removeprefix("/").split("/")
        meter = self._metrics.of(service, method)
        parse = handler.request_deserializer
        assert parse is not None
        behave = handler.stream_stream or handler.unary_stream or handler.unary_unary
        assert behave is not None
        if service.startswith("grpc."):
            if handler.request_streaming:
                wrapped = self._around_own_streams(behave, parse, meter)
            else:
                # Checks of health are not counted: a gateway makes them from an address where others may call from too.
                wrapped = self._around_own(behave, parse, meter, is_counted=handler.response_streaming)
        else:
            around = self._around_stream if handler.response_streaming else self._around_unary
            wrapped = around(behave, parse, meter)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(wrapped, response_serializer=handler.response_serializer)

    def _around_nothing(self, meter: MethodMeter) -> _Handler:
        async def refuse(_: object, context: _Context) -> None:
            async with self._around(context, meter):
                raise MethodNotFound

        return grpc.stream_unary_rpc_method_handler(refuse)

    def _around_unary(self, behave: _Behavior, parse: _Parse, meter: MethodMeter) -> _Behavior:
        async def unary(_: object, context: _Context) -> Message:
            async with self._around(context, meter) as call:
                request = await _read_request(context, parse)
                validation.check(request)
                response: Message = await behave(request, context)
                call.messages = 1
                return response

        return unary

    def _around_stream(self, behave: _Behavior, parse: _Parse, meter: MethodMeter) -> _Behavior:
        # Writes rather than yields: a generator would be left suspended when a write is cancelled, and the servicer's
        # generator, hence the work behind it, would end only when it is collected.
        async def stream(_: object, context: _Context) -> None:
            async with self._around(context, meter) as call:
                request = await _read_request(context, parse)
                validation.check(request)
                async with aclosing(behave(request, context)) as responses:
                    async for response in responses:
                        await context.write(response)
                        if not call.messages:
                            call.first_message_seconds = call.seconds
                        call.messages += 1

        return stream

    def _around_own(self, behave: _Behavior, parse: _Parse, meter: MethodMeter, *, is_counted: bool) -> _Behavior:
        async def own(_: object, context: _Context) -> object:
            async with self._refusing(context, meter, is_counted=is_counted):
                return await behave(await _read_request(context, parse), context)

        return own

    def _around_own_streams(self, behave: _Behavior, parse: _Parse, meter: MethodMeter) -> _Behavior:
        async def own(_: object, context: _Context) -> None:
            async with (
                self._refusing(context, meter, is_counted=True),
                aclosing(behave(_requests(context, parse), context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return own

    @asynccontextmanager
    async def _refusing(self, context: _Context, meter: MethodMeter, *, is_counted: bool) -> AsyncIterator[None]:
        """Around a call of gRPC's own services: answers it only where it is refused."""
        try:
            with self._callers.call(caller_of(context)) if is_counted else nullcontext():
                yield
        except (InvalidArgument, QueueFull) as error:
            async with self._around(context, meter, is_admitted=True):
                raise error from None

    @asynccontextmanager
    async def _around(
        self, context: _Context, meter: MethodMeter, *, is_admitted: bool = False
    ) -> AsyncIterator[_Call]:
        call = _Call(id=_call_id(context), deadline=deadline_of(context))
        # With the trailers: headers sent ahead of an error would keep a gateway from turning it into an HTTP status.
        context.set_trailing_metadata(((CALL_ID_KEY, call.id),))
        with bound_contextvars(call_id=call.id), self._counted(meter):
            try:
                with nullcontext() if is_admitted else self._admitted(context, meter.method):
                    yield call
            except (Exception, asyncio.CancelledError) as error:
                await self._answer(context, call, error)
                raise
            finally:
                _record(call, meter)

    @contextmanager
    def _admitted(self, context: _Context, method: str) -> Iterator[None]:
        if method == _HEALTH:
            yield
            return
        if self._draining:
            raise ServerDraining("the server is shutting down")
        with self._callers.call(caller_of(context)):
            yield

    async def _answer(self, context: _Context, call: _Call, error: Exception | asyncio.CancelledError) -> None:
        """Ends the call with the error's status, by raising what gRPC wants; returns if nobody waits for it."""
        if isinstance(error, asyncio.CancelledError) and self._cut:
            error = ServerDraining("the server shut down before the call was done")
        elif _is_gone(error):
            call.code = grpc.StatusCode.DEADLINE_EXCEEDED if call.is_late else grpc.StatusCode.CANCELLED
            return
        elif isinstance(error, TimeoutError) and call.is_late:
            error = DeadlineExceeded()
        call.code = code_of(error)
        call.reason = error.reason if isinstance(error, AivoError) else RemoteError.reason
        if call.code is grpc.StatusCode.INTERNAL:
            _log.error("call_failed", exc_info=error)
        status = status_of(error, call.id)
        trailers = ((DETAILS_KEY, status.SerializeToString()), (CALL_ID_KEY, call.id))
        await context.abort(call.code, status.message, trailers)

    @contextmanager
    def _counted(self, meter: MethodMeter) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._idle.clear()
        try:
            with meter.in_flight.track_inprogress():
                yield
        finally:
            self._running.discard(task)
            if not self._running:
                self._idle.set()


async def _read_request(context: _Context, parse: _Parse) -> Message:
    """Returns the request of a call that has one.

    Raises:
        RequestTooLarge: It has too many bytes.
        MalformedRequest: There is none, or it is no message of this method, as when a text in it is not UTF-8.
    """
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            data = await context.read()
    except TimeoutError:
        raise MalformedRequest(f"no message came within {REQUEST_SECONDS:.0f} s") from None
    if data is grpc.aio.EOF:
        raise MalformedRequest("the call has no message")
    return _parsed(data, parse)


async def _requests(context: _Context, parse: _Parse) -> AsyncIterator[Message]:
    while (data := await context.read()) is not grpc.aio.EOF:
        yield _parsed(data, parse)


def _parsed(data: bytes, parse: _Parse) -> Message:
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestTooLarge(f"a request may have at most {MAX_REQUEST_BYTES} bytes")
    try:
        return parse(data)
    except DecodeError:
        raise MalformedRequest("the bytes are no message of this method; texts must be UTF-8") from None


def _is_gone(error: BaseException) -> bool:
    """Whether nobody waits for the answer: the caller went away or its deadline passed; gRPC then cancels the task."""
    if isinstance(error, asyncio.CancelledError):
        # Otherwise something that the servicer awaited was cancelled, which is a bug. gRPC would take it for the
        # caller's doing and never answer.
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    # A write that found the connection closed, before the cancellation came.
    return isinstance(error, grpc.aio.InternalError)


def _record(call: _Call, meter: MethodMeter) -> None:
    seconds = call.seconds
    meter.count(call.code.name)
    meter.duration_seconds.observe(seconds)
    facts: dict[str, str | int | float] = {"code": call.code.name, "duration_ms": round(seconds * 1e3, 2)}
    if call.reason is not None:
        facts["reason"] = call.reason
    if call.first_message_seconds is not None:
        meter.first_message_seconds.observe(call.first_message_seconds)
        facts["first_message_ms"] = round(call.first_message_seconds * 1e3, 2)
    # Monitoring asks for health every second; a line for each answer would flood the log.
    log = _log.debug if meter.method == _HEALTH and call.code is grpc.StatusCode.OK else _log.info
    log("call", method=f"{meter.service}/{meter.method}", messages=call.messages, **facts)


def _call_id(context: _Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == CALL_ID_KEY and isinstance(value, str) and _CALL_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)
