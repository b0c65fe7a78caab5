"""The backend's HTTP face: `/query`, `/health` and `/models`."""

from __future__ import annotations

import flask

from backend_lambda.config import Config
from backend_lambda.service import Backend
from lambdalm.coalesce import Coalescer
from lambdalm.web.app import HttpHop
from lambdalm.web.query import add_query


def add_routes(hop: HttpHop, backend: Backend, config: Config) -> None:
    """Serve the backend on this hop."""
    add_query(hop, backend.stream, Coalescer(config.stream.frames_per_second))

    @hop.app.get("/health")
    def health() -> flask.Response:
        found = backend.health(draining=hop.lifecycle.draining.is_set())
        response = hop.answer(found, flask.g.clock)
        response.status_code = found.http_status
        return response

    @hop.app.get("/models")
    def models() -> flask.Response:
        return hop.answer(backend.models(), flask.g.clock)
