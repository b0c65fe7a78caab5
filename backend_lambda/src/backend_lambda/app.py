"""The backend's HTTP face: `/query`, `/health` and `/models`."""

from __future__ import annotations

import flask

from backend_lambda.config import Config
from backend_lambda.service import Backend
from lambdalm.coalesce import Coalescer
from lambdalm.http.app import HttpHop
from lambdalm.http.query import add_query


def add_routes(hop: HttpHop, backend: Backend, config: Config) -> None:
    """Serve the backend on this hop."""
    add_query(hop, backend.answer, backend.stream, Coalescer(config.stream.frames_per_second))
    hop.open_paths |= {"/health", "/models"}

    @hop.app.get("/health")
    async def health() -> flask.Response:
        found = await backend.health(draining=hop.lifecycle.draining.is_set())
        return hop.answer(found, flask.g.clock, found.http_status)

    @hop.app.get("/models")
    async def models() -> flask.Response:
        return hop.answer(await backend.models(), flask.g.clock)
