"""Running a Flask app as a hop: gunicorn with one process, our worker and enough threads.

`threads = max_in_flight + 16`, so that health checks and refusals always find one. The app is made after the fork,
in the process that serves: engines and gRPC channels do not survive a fork.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from lambdalm import logs
from lambdalm.descriptors import raise_limit
from lambdalm.errors import LlmError
from lambdalm.listen import Listen
from lambdalm.runtime import settle
from lambdalm.web.limits import Limits
from lambdalm.web.worker import Lifecycle, Worker

_SPARE_THREADS = 16
_BACKLOG = 2048
_SPARE_CONNECTIONS = 1024  # waiting for headers, or kept alive


class _Logger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log lines, written as all others are (lambdalm.logs)."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(self, make_app: Callable[[Lifecycle], flask.Flask], descriptor: int, limits: Limits) -> None:
        self._make_app = make_app
        self._descriptor = descriptor  # of the listening socket; gunicorn takes it over
        self._limits = limits
        self._lifecycle = Lifecycle(limits)
        super().__init__()

    def load_config(self) -> None:
        limits, lifecycle = self._limits, self._lifecycle
        threads = limits.max_in_flight + _SPARE_THREADS
        for name, value in {
            "bind": f"fd://{self._descriptor}",
            "workers": 1,
            "threads": threads,
            "worker_class": type("HopWorker", (Worker,), {"limits": limits, "lifecycle": lifecycle}),
            "worker_connections": threads + _SPARE_CONNECTIONS,
            "keepalive": 75,
            "graceful_timeout": int(limits.drain_pause + limits.grace) + 5,
            "limit_request_line": 8190,
            "control_socket_disable": True,
            "logger_class": _Logger,
            "loglevel": "warning",
            "proc_name": "lambdalm",
        }.items():
            self.cfg.set(name, value)

    def load(self) -> flask.Flask:
        try:
            app = self._make_app(self._lifecycle)
        except LlmError as error:
            logs.get(__name__).error("cannot start", why=error.message)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)  # any other status, and gunicorn tries for ever
        settle()
        return app


def serve(make_app: Callable[[Lifecycle], flask.Flask], listen: Listen, limits: Limits) -> None:
    """Serve the app until SIGTERM or Ctrl-C; then leaves the process, as gunicorn does.

    Raises OSError when the address cannot be had.
    """
    raise_limit()
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        sock = socket.create_server((listen.host, listen.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            f"cannot listen on {listen.address}: {error.strerror}; is another server running there?"
        ) from None
    host, port = sock.getsockname()[:2]
    logs.get(__name__).info("listening", address=f"{host}:{port}")
    _Server(make_app, sock.detach(), limits).run()
