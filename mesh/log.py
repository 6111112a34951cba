"""Structured logs: events with facts, one line each, to standard error.

Events are constant words; facts are ids, counts, durations and states. No student's words are ever passed to a logger,
so there is nothing to redact. An exception's message may hold anything, so an exception is logged as its type and its
frames. `call_id`, and whatever else is bound to the context, is on every line of a call.
"""

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal

import structlog

from mesh.errors import AivoError

Logger = structlog.stdlib.BoundLogger


def configure(*, level: str, form: Literal["json", "console"], service: str, packages: Sequence[str]) -> None:
    """Sets up logging of this process, the standard library's loggers included.

    Args:
        level: Lowest level of our own events.
        form: How a line is written.
        service: Name of the process on every line.
        packages: Our own packages. All other loggers speak from WARNING on.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _method, event: {**event, "service": service},
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, _without_repr],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.ExceptionRenderer(_trace),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Otherwise libraries' deprecation warnings would bypass the log.
    logging.captureWarnings(capture=True)
    # Libraries log from WARNING on; our own loggers have the configured level.
    root.setLevel(logging.WARNING)
    for package in packages:
        logging.getLogger(package).setLevel(level.upper())
    # bitsandbytes warns about its own build at import, which no operator can act on.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def get_logger(name: str) -> Logger:
    """Returns the logger of a module."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger


def _trace(exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> str:
    return "\n".join(_lines(exc_info[1]))


def _lines(error: BaseException) -> Iterator[str]:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    # Our own messages hold only ids, counts and limits.
    yield f"{name}: {error}" if isinstance(error, AivoError) else name
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}"
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _lines(part)
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None:
        yield "caused by"
        yield from _lines(earlier)


def _without_repr(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    # After its first line, asyncio's report of a task that nobody awaited shows the exception with its message.
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
