"""Logs that one can read: a line an event on stderr, for people (`console`) or machines (`json`).

Built on structlog over the standard library's logging, so that uvicorn's, Flask's and grpc's own lines look the same.
Every line names its hop; structlog's contextvars add what is bound to a
thread or task, such as a request's id.

A request's line is written by `request_line`, which formats it at once: structlog's processors took 47 µs for it, a
tenth of what some hops need for a request.

structlog is imported with the first line that is logged (or by `configure`): it takes longer to import than all that a
Lambda function needs to start.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

if TYPE_CHECKING:
    import structlog

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Format = Literal["console", "json"]

_EVENT_WIDTH = 30
_LEVEL = f"[{'info':<9}]"  # as wide as the longest, "exception"
_QUOTED = re.compile(r"""[ \t=\r\n"']""")  # a value with one of these is quoted in a line for people

_processors: list[structlog.typing.Processor] = []  # one list for good: loggers that are cached follow what it holds
_own = logging.getLogger(__name__)


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
    colors = sys.stderr.isatty()
    if config.format == "json":
        last = structlog.processors.JSONRenderer()
        shared.append(structlog.processors.format_exc_info)
    else:
        shared.append(_printable)
        last = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=_EVENT_WIDTH, exception_formatter=structlog.dev.plain_traceback
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
    _requests.follow(hop, config.format, None if colors and config.format == "console" else handler)


def request_line(event: str, **fields: object) -> None:
    """Log the one line of a request, at INFO: the same line as `get(...).info(event, **fields)`, for 5 µs.

    `fields` are what JSON can hold. structlog's contextvars and exceptions (`exc_info`) are not for these lines.
    Before `configure`, and on a terminal, where lines have colours, structlog writes it.
    """
    _requests.write(event, fields)


class _RequestLines:
    """Formats lines of requests and writes them where the handler of all other lines does."""

    def __init__(self) -> None:
        self._hop = ""
        self._line: Callable[[str, dict[str, object]], str] = self._for_people
        self._handler: logging.StreamHandler[Any] | None = None

    def follow(self, hop: str, format: Format, handler: logging.StreamHandler[Any] | None) -> None:
        """Write as a process does that is configured like this; without a handler structlog writes."""
        self._hop = hop
        self._line = self._for_machines if format == "json" else self._for_people
        self._handler = handler

    def write(self, event: str, fields: dict[str, object]) -> None:
        handler = self._handler
        if handler is None:
            get(__name__).info(event, **fields)
            return
        if not _own.isEnabledFor(logging.INFO):
            return
        line = self._line(event, fields) + "\n"
        handler.acquire()
        try:
            handler.stream.write(line)
            handler.flush()
        except (OSError, ValueError):  # stderr is closed: as in logging, a line that cannot be written stops nothing
            pass
        finally:
            handler.release()

    def _for_people(self, event: str, fields: dict[str, object]) -> str:
        fields["hop"] = self._hop
        named = " ".join([f"{name}={_shown(value)}" for name, value in sorted(fields.items())])
        return f"{_now()} {_LEVEL} {_without_controls(event):<{_EVENT_WIDTH}} {named}"

    def _for_machines(self, event: str, fields: dict[str, object]) -> str:
        fields["event"] = event
        fields["level"] = "info"
        fields["timestamp"] = _now()
        fields["hop"] = self._hop
        return _JSON.encode(fields)


_JSON = json.JSONEncoder(default=repr)
_requests = _RequestLines()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _shown(value: object) -> str:
    if not isinstance(value, str):
        return repr(value)
    text = _without_controls(value)
    return repr(text) if _QUOTED.search(text) else text


def _without_controls(text: str) -> str:
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else "\N{MIDDLE DOT}" for char in text])


def _printable(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Without control characters, which could steer the terminal that shows the log: they come from prompts, too."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _without_controls(value)
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
