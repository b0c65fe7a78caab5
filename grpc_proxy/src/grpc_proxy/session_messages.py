"""Sessions as protobuf messages; no I/O."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from grpc_proxy.conversation import Session, State, Summary, Turn
from lambdalm.rpc import messages
from lambdalm_proto.v1 import llm_pb2 as pb

_STATES = {
    State.PENDING: pb.TURN_STATE_PENDING,
    State.COMPLETE: pb.TURN_STATE_COMPLETE,
    State.FAILED: pb.TURN_STATE_FAILED,
    State.CANCELLED: pb.TURN_STATE_CANCELLED,
}


def summary_to_proto(id: str, summary: Summary) -> pb.SessionSummary:
    return pb.SessionSummary(
        id=id,
        created=_time(summary.created),
        last_used=_time(summary.used),
        turns=summary.turns,
        title=summary.title,
    )


def session_to_proto(session: Session) -> pb.Session:
    return pb.Session(
        id=session.id,
        created=_time(session.created),
        last_used=_time(session.used),
        system=session.system or "",
        turns=map(_turn, session.turns),
    )


def _turn(turn: Turn) -> pb.Turn:
    return pb.Turn(
        request_id=turn.request_id,
        prompt=turn.prompt,
        state=_STATES[turn.state],
        text=turn.text,
        model=turn.model,
        usage=messages.usage_to_proto(turn.usage),
        created=_time(turn.created),
        finish_reason=messages.reason_to_proto(turn.reason),
    )


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
