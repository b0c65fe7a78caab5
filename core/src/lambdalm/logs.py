"""Logs that one can read: a line an event on stderr, for people (`console`) or machines (`json`).

Built on structlog over the standard library's logging, so that gunicorn's, Flask's and grpc's own lines look the same.
Every line names its hop; structlog's contextvars add what is bound to a
thread or task, such as a request's id.

structlog is imported with the first line that is logged (or by `configure`): it takes longer to import than all that a
Lambda function needs to start.
"""

from __future__ import annotations

import logging
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

if TYPE_CHECKING:
    import structlog

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Format = Literal["console", "json"]


_processors: list[structlog.typing.Processor] = []  # one list for good: loggers that are cached follow what it holds


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much to log, and for whom."""

    level: Level = "INFO"
    format: Format = "console"


def configure(hop: str, config: LogConfig) -> None:
    """Set the process's logging up; every line from here on names `hop`."""
    import structlog

    def add_hop(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["hop"] = hop
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_hop,
    ]
    last: structlog.typing.Processor
    if config.format == "json":
        last = structlog.processors.JSONRenderer()
        shared.append(structlog.processors.format_exc_info)
    else:
        shared.append(_printable)
        last = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=30, exception_formatter=structlog.dev.plain_traceback
        )
    _processors[:] = [*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    structlog.configure(
        processors=_processors,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level)


def _printable(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Without control characters, which could steer the terminal that shows the log: they come from prompts, too."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in value)
    return event


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger called `name`."""
    return cast("structlog.stdlib.BoundLogger", _Lazy(name))


class _Lazy:
    """structlog's logger, got when it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._logger, attribute)

    @cached_property
    def _logger(self) -> Any:
        import structlog

        return structlog.stdlib.get_logger(self._name)
