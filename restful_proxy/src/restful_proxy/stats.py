"""`GET /stats`: what the gRPC proxy has done since it started, in the shape of seed 002."""

from __future__ import annotations

import flask
import msgspec

from lambdalm.call import Call
from lambdalm.http.app import HttpHop
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import caller
from restful_proxy.upstream import GrpcProxy

_SECONDS = 2.0


class Connections(msgspec.Struct, frozen=True):
    """Calls of the gRPC proxy: in progress, and all."""

    active_connections: int
    total_connections: int
    total_tokens_generated: int


class Conversations(msgspec.Struct, frozen=True):
    """Sessions in use and all that were made, turns that were completed, and the tokens of all answers."""

    active_sessions: int
    total_sessions: int
    total_turns: int
    total_tokens_generated: int


class Errors(msgspec.Struct, frozen=True):
    """Calls that failed, by status code."""

    total_errors: int
    by_category: dict[str, int]


class Stats(msgspec.Struct, frozen=True):
    """The body of `GET /stats`."""

    connections: Connections
    conversations: Conversations
    errors: Errors
    uptime_seconds: float


def add_stats(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve it on this hop, also when that takes no more requests."""

    @hop.app.get("/stats")
    async def stats() -> flask.Response:
        call = Call(flask.g.request_id, _SECONDS, flask.g.clock)
        found = await proxy.ask("GetStats", pb.GetStatsRequest(), call, caller.current())
        return hop.answer(statistics(found), call.clock)


def statistics(message: pb.GetStatsResponse) -> Stats:
    """The statistics in a message."""
    errors = dict(sorted(message.errors.items()))
    tokens = message.completion_tokens
    return Stats(
        Connections(message.active_calls, message.total_calls, tokens),
        Conversations(message.active_sessions, message.sessions, message.turns, tokens),
        Errors(sum(errors.values()), errors),
        round(message.uptime_seconds, 3),
    )
