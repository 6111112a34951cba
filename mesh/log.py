"""Structured logs: events with facts, one line each, to standard error.

Events are constant words and facts are ids, counts, durations and states: a student's words are never passed to a
logger, so there is nothing to redact. `call_id` and what else is bound to the context is on every line of a call.
"""

import logging
import sys
from typing import Literal

import structlog

Logger = structlog.stdlib.BoundLogger


def configure(*, level: str, form: Literal["json", "console"], service: str) -> None:
    """Sets up logging of this process, the standard library's loggers included."""
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
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak only when something is wrong; our own loggers have the level that was asked for.
    root.setLevel(logging.WARNING)
    for package in ("mesh", "brain_server", "cloning_server"):
        logging.getLogger(package).setLevel(level.upper())


def get_logger(name: str) -> Logger:
    """Returns the logger of a module."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger
