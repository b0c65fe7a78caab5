"""A small real hop for the tests of lambdalm.web: `python hop_app.py PORT LIMITS`, LIMITS as JSON.

It answers `/query` with the scripted model, and tells the tests what else they need to know. When it is ready it
prints its process's id.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
from collections.abc import Generator

import flask
import msgspec

from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import LlmError
from lambdalm.events import Heartbeat, Started, StreamEvent
from lambdalm.listen import Listen
from lambdalm.testing.scripted import play
from lambdalm.web.app import HttpHop
from lambdalm.web.limits import Limits
from lambdalm.web.query import add_query
from lambdalm.web.server import serve
from lambdalm.web.worker import Lifecycle

WAIT = 10  # seconds until somebody who waits is told that it did not happen


class Ends:
    """How each request's stream has ended, by its id."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends: dict[str, str] = collections.defaultdict(str)

    def tell(self, id: str, end: str) -> None:
        with self._changed:
            self._ends[id] = end
            self._changed.notify_all()

    def wait(self, id: str) -> str:
        with self._changed:
            self._changed.wait_for(lambda: self._ends[id], WAIT)
            return self._ends[id]


def make_app(lifecycle: Lifecycle, limits: Limits) -> flask.Flask:
    hop = HttpHop("hop", limits, lifecycle)
    ends = Ends()

    def open_stream(request: ChatRequest, call: Call) -> Generator[StreamEvent, None, None]:
        end = "finished"
        try:
            if request.model == "bug":
                yield Started(call.id, "bug")
                raise ZeroDivisionError("the secret of the house")
            if request.model == "beating":
                yield Heartbeat()
            yield from play(request, call)
        except LlmError as error:
            end = error.code
            raise
        except GeneratorExit:
            end = "closed"
            raise
        finally:
            ends.tell(call.id, end)

    add_query(hop, open_stream)

    @hop.app.get("/things")
    def things() -> flask.Response:
        return hop.answer({"things": []}, flask.g.clock)

    @hop.app.get("/bug")
    def bug() -> flask.Response:
        raise ZeroDivisionError("the secret of the house")

    @hop.app.get("/ends/<id>")
    def end(id: str) -> str:
        """Wait for the end of another request's stream."""
        return ends.wait(id)

    @hop.app.get("/draining")
    def draining() -> str:
        return str(lifecycle.draining.is_set())

    print(os.getpid(), flush=True)
    return hop.app


if __name__ == "__main__":
    limits = msgspec.json.decode(sys.argv[2], type=Limits)
    logs.configure("hop", logs.LogConfig(format="json"))
    serve(lambda lifecycle: make_app(lifecycle, limits), Listen("127.0.0.1", int(sys.argv[1])), limits)
