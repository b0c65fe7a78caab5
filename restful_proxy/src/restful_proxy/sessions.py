"""Sessions over HTTP: `GET /sessions` and `GET`, `DELETE /sessions/<id>`, the caller's own only.

Whose they are, and which there are, the gRPC proxy decides; these are its answers as JSON.
"""

from __future__ import annotations

import datetime
from typing import Any

import flask
import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from lambdalm.events import Tokens
from lambdalm.http.app import HttpHop
from lambdalm.rpc import messages
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import caller
from restful_proxy.upstream import GrpcProxy


class Summary(msgspec.Struct, frozen=True):
    """A session in a list: when it was made and last used, how many turns it has, how its first prompt begins."""

    id: str
    created: datetime.datetime
    last_used: datetime.datetime
    turns: int
    title: str


class Sessions(msgspec.Struct, frozen=True):
    """The body of `GET /sessions`, the session used last first."""

    sessions: list[Summary]


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the user said and what came of it. `state` is pending, complete, failed or cancelled."""

    request_id: str
    prompt: str
    state: str | None
    text: str
    created: datetime.datetime
    model: str | None = None
    finish_reason: str | None = None
    usage: Tokens | None = None


class Session(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of `GET /sessions/<id>`, its turns oldest first."""

    id: str
    created: datetime.datetime
    last_used: datetime.datetime
    turns: list[Turn]
    system: str | None = None


def add_sessions(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve the three on this hop."""

    @hop.app.get("/sessions")
    async def sessions() -> flask.Response:
        with hop.call() as call:
            found = await proxy.ask("ListSessions", pb.ListSessionsRequest(), call, caller.current())
            return hop.answer(summaries(found), call.clock)

    @hop.app.get("/sessions/<id>")
    async def session(id: str) -> flask.Response:
        with hop.call() as call:
            found = await proxy.ask("GetSession", pb.GetSessionRequest(session_id=id), call, caller.current())
            return hop.answer(whole(found), call.clock)

    @hop.app.delete("/sessions/<id>")
    async def forget(id: str) -> flask.Response:
        with hop.call() as call:
            await proxy.ask("DeleteSession", pb.DeleteSessionRequest(session_id=id), call, caller.current())
            return hop.no_content(call.clock)


def summaries(message: pb.ListSessionsResponse) -> Sessions:
    """The list in a message."""
    return Sessions([Summary(s.id, _time(s.created), _time(s.last_used), s.turns, s.title) for s in message.sessions])


def whole(message: pb.Session) -> Session:
    """The session in a message."""
    return Session(
        id=message.id,
        created=_time(message.created),
        last_used=_time(message.last_used),
        turns=[_turn(turn) for turn in message.turns],
        system=message.system or None,
    )


def _turn(turn: pb.Turn) -> Turn:
    return Turn(
        request_id=turn.request_id,
        prompt=turn.prompt,
        state=_word(pb.TurnState, "TURN_STATE_", turn.state),
        text=turn.text,
        created=_time(turn.created),
        model=turn.model or None,
        finish_reason=_word(pb.FinishReason, "FINISH_REASON_", turn.finish_reason),
        usage=messages.usage_from_proto(turn.usage) if turn.HasField("usage") else None,
    )


def _time(at: Timestamp) -> datetime.datetime:
    return at.ToDatetime(datetime.UTC)


def _word(enum: Any, prefix: str, number: int) -> str | None:
    """TURN_STATE_COMPLETE as "complete"; None for what is not said, or what this version does not know."""
    if number == 0 or number not in enum.values():
        return None
    return str(enum.Name(number)).removeprefix(prefix).lower()
