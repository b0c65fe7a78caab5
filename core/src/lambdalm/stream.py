"""StreamEvents as server-sent events, without I/O: what `/query` speaks when it streams, on both HTTP hops.

Each event is one message whose name and `type` are the event's; a heartbeat is a comment; a failure after the first
event is one terminal message `error` with the LlmError and the timings so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from lambdalm import sse
from lambdalm.errors import Code, ErrorBody, LlmError
from lambdalm.events import Heartbeat, StreamContract, StreamEvent, broken
from lambdalm.timings import Timings

_T = TypeVar("_T")

_event_decoder = msgspec.json.Decoder(StreamEvent)
_encoder = msgspec.json.Encoder()


class ErrorEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="error"):
    """The end of a stream that failed."""

    error: ErrorBody
    timings: Timings = {}


class ErrorAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An HTTP answer that is an error: the same two fields."""

    error: ErrorBody
    timings: Timings = {}


_error_decoder = msgspec.json.Decoder(ErrorEvent)


def encode_event(event: StreamEvent) -> bytes:
    """One event as it goes over the wire."""
    if isinstance(event, Heartbeat):
        return sse.HEARTBEAT
    return sse.encode(str(event.__struct_config__.tag), _encoder.encode(event))


def encode_error(error: LlmError, timings: Timings) -> bytes:
    """The terminal event of a stream that failed."""
    return sse.encode("error", _encoder.encode(ErrorEvent(ErrorBody.of(error), timings)))


class EventReader:
    """Reads one stream: bytes in, events out, held to their contract.

    `timings` has what the sender reported, once its end event or its error has come.
    """

    def __init__(self) -> None:
        self.timings: Timings = {}
        self._decoder = sse.Decoder()
        self._contract = StreamContract()

    @property
    def finished(self) -> bool:
        return self._contract.finished

    def feed(self, chunk: bytes) -> Iterator[StreamEvent]:
        """The events that this chunk completes; raises the LlmError that the stream ends in.

        Raises `LlmError(INTERNAL)` for anything that is not such a stream. Iterate it to its end before the
        next `feed`.
        """
        for message in self._decoder.feed(chunk):
            if message.event == "error":
                if self.finished:
                    raise broken("error after finished")
                raise self._failure(message.data)
            event = self._contract.accept(_decode(_event_decoder, message.data))
            if self.finished:
                self.timings = getattr(event, "timings", {})
            yield event

    def close(self) -> None:
        """The input has ended: raises `LlmError(UNAVAILABLE)` unless the end event came first."""
        self._contract.close()

    def _failure(self, data: str) -> LlmError:
        failed = _decode(_error_decoder, data)
        self.timings = failed.timings
        return failed.error.to_error()


def _decode(decoder: msgspec.json.Decoder[_T], data: str) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise LlmError(Code.INTERNAL, f"an event in the stream makes no sense: {error}") from None
