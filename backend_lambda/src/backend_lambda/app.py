"""The backend's HTTP face: `/query`, `/health` and `/models`."""

from __future__ import annotations

import flask
import msgspec

from backend_lambda.config import Config
from backend_lambda.providers.base import ModelInfo
from backend_lambda.service import Backend
from lambdalm.coalesce import Coalescer
from lambdalm.web.app import HttpHop
from lambdalm.web.query import add_query


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `/health`; `in_flight` counts the generations that run in the engine now."""

    status: str
    provider: str
    model: str
    in_flight: int
    waiting: int
    slots: int
    detail: str = ""


class Models(msgspec.Struct, frozen=True):
    """The body of `/models`; the default model is first."""

    models: list[ModelInfo]


def add_routes(hop: HttpHop, backend: Backend, config: Config) -> None:
    """Serve the backend on this hop."""
    add_query(hop, backend.stream, Coalescer(config.stream.frames_per_second))

    @hop.app.get("/health")
    def health() -> flask.Response:
        """200 when the engine can answer, 503 with the reason when it cannot or the server is stopping."""
        found = backend.provider.health()
        draining = hop.lifecycle.draining.is_set()
        status = "draining" if draining else "ok" if found.ok else "unavailable"
        body = Health(
            status=status,
            provider=backend.provider.name,
            model=backend.provider.models()[0].id,
            in_flight=backend.slots.held,
            waiting=backend.slots.waiting,
            slots=config.provider.slots,
            detail=found.detail,
        )
        response = hop.answer(body, flask.g.clock)
        response.status_code = 200 if status == "ok" else 503
        return response

    @hop.app.get("/models")
    def models() -> flask.Response:
        return hop.answer(Models(list(backend.provider.models())), flask.g.clock)
