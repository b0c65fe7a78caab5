"""The edge's HTTP face: `/query`, `/healthz` (alive), `/readyz` (ready), and what the other modules add to it."""

from __future__ import annotations

import flask
import msgspec

from lambdalm.http.app import HttpHop
from lambdalm.http.query import add_query
from restful_proxy import caller
from restful_proxy.chain import add_chain
from restful_proxy.models import add_models
from restful_proxy.sessions import add_sessions
from restful_proxy.stats import add_stats
from restful_proxy.upstream import GrpcProxy

_CHECK_SECONDS = 1.0


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `/healthz` and `/readyz`."""

    status: str
    detail: str = ""


def add_routes(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve the edge on this hop. What says how things are is answered also while the hop takes no more requests."""
    hop.open_paths |= {"/healthz", "/readyz", "/chain", "/stats"}
    add_query(
        hop,
        lambda request, call: proxy.generate(request, call, caller.current()),
        lambda request, call: proxy.stream(request, call, caller.current()),
    )
    add_sessions(hop, proxy)
    add_models(hop, proxy)
    add_chain(hop, proxy)
    add_stats(hop, proxy)

    @hop.app.get("/healthz")
    def healthz() -> flask.Response:
        """200 while the process works at all, whatever is behind it."""
        return hop.answer(Status("ok"), flask.g.clock)

    @hop.app.get("/readyz")
    async def readyz() -> flask.Response:
        """200 when a request would be answered: this hop is not stopping and those behind it are healthy."""
        why = "shutting down" if hop.lifecycle.draining.is_set() else await proxy.healthy(_CHECK_SECONDS)
        if why is None:
            return hop.answer(Status("ready"), flask.g.clock)
        return hop.answer(Status("not ready", why), flask.g.clock, status=503)
