"""Running a Flask app as a hop: gunicorn with one process, our worker and enough threads.

`threads = max_in_flight + 16`, so that health checks and refusals always find one. The app is made after the fork,
in the process that serves: engines and gRPC channels do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from lambdalm.listen import Listen
from lambdalm.web.limits import Limits
from lambdalm.web.worker import Lifecycle, Worker

_SPARE_THREADS = 16
_SPARE_CONNECTIONS = 1024  # waiting for headers, or kept alive


class _Logger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log lines, written as all others are (lambdalm.logs)."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(self, make_app: Callable[[Lifecycle], flask.Flask], listen: Listen, limits: Limits) -> None:
        self._make_app = make_app
        self._listen = listen
        self._limits = limits
        self._lifecycle = Lifecycle(limits)
        super().__init__()

    def load_config(self) -> None:
        limits, lifecycle = self._limits, self._lifecycle
        threads = limits.max_in_flight + _SPARE_THREADS
        for name, value in {
            "bind": self._listen.address,
            "workers": 1,
            "threads": threads,
            "worker_class": type("HopWorker", (Worker,), {"limits": limits, "lifecycle": lifecycle}),
            "worker_connections": threads + _SPARE_CONNECTIONS,
            "backlog": 2048,
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
        return self._make_app(self._lifecycle)


def serve(make_app: Callable[[Lifecycle], flask.Flask], listen: Listen, limits: Limits) -> None:
    """Serve the app until SIGTERM or Ctrl-C; then leaves the process, as gunicorn does."""
    _Server(make_app, listen, limits).run()
