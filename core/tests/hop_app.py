"""A small real hop for the tests of lambdalm.http: `python hop_app.py PORT LIMITS WORKERS [PIPE]`, LIMITS as JSON.

It answers `/query` with the scripted model, and tells the tests what else they need to know. When it is ready it
prints its process's id. After `GET /never-close` it does not close when it is stopped. Of
several workers the second is ready when somebody writes to the named PIPE.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path

import flask
import msgspec

from lambdalm import logs
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import LlmError
from lambdalm.events import Answer, Collector, Delta, Heartbeat, Started, StreamContract, StreamEvent
from lambdalm.http.admission import Lifecycle
from lambdalm.http.app import HttpHop
from lambdalm.http.limits import Limits
from lambdalm.http.query import add_query
from lambdalm.http.server import serve
from lambdalm.listen import Listen
from lambdalm.testing.scripted import play_on_loop

WAIT = 10  # seconds until a request that waits is answered that it did not happen


class Ends:
    """How each request's stream has ended, by its id."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.Future[str]] = collections.defaultdict(asyncio.get_running_loop().create_future)

    def tell(self, id: str, end: str) -> None:
        if not self._ends[id].done():
            self._ends[id].set_result(end)

    async def wait(self, id: str) -> str:
        async with asyncio.timeout(WAIT):
            return await asyncio.shield(self._ends[id])


def make_hop(lifecycle: Lifecycle, limits: Limits) -> HttpHop:
    hop = HttpHop("hop", limits, lifecycle)
    ends = Ends()

    async def events(request: ChatRequest, call: Call) -> AsyncGenerator[list[StreamEvent], None]:
        end = "finished"
        try:
            if request.model == "bug":
                yield [Started(call.id, "bug")]
                raise ZeroDivisionError("the secret of the house")
            if request.model == "beating":
                yield [Heartbeat()]
            async with contextlib.aclosing(play_on_loop(request, call)) as played:
                async for batch in played:
                    yield batch
        except LlmError as error:
            end = error.code
            raise
        except asyncio.CancelledError:
            end = "CANCELLED"
            raise
        except GeneratorExit:
            end = "closed"
            raise
        finally:
            ends.tell(call.id, end)

    async def whole(request: ChatRequest, call: Call) -> Answer:
        collector, contract = Collector(), StreamContract()
        async with contextlib.aclosing(events(request, call)) as batches:
            async for batch in batches:
                for event in batch:
                    if isinstance(event, Delta):
                        call.clock.first_delta()
                    collector.add(contract.accept(event))
        contract.close()
        return collector.answer()

    add_query(hop, whole, events)

    @hop.app.get("/things")
    def things() -> flask.Response:
        return hop.answer({"things": []}, flask.g.clock)

    @hop.app.get("/bug")
    def bug() -> flask.Response:
        raise ZeroDivisionError("the secret of the house")

    @hop.app.get("/ends")
    async def end() -> str:
        """Wait for the end of another request's stream."""
        return await ends.wait(flask.request.args["id"])

    @hop.app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    @hop.app.get("/garbage")
    def garbage() -> str:
        """How many objects only a garbage collection could free."""
        return str(gc.collect())

    @hop.app.get("/draining")
    def draining() -> str:
        return str(lifecycle.draining.is_set())

    hop.open_paths |= {"/garbage", "/things", "/draining", "/ends", "/pid"}
    return hop


def opener(
    limits: Limits, change: Callable[[HttpHop], None] = lambda hop: None, pipe: str | None = None
) -> Callable[[Lifecycle], contextlib.AbstractAsyncContextManager[HttpHop]]:
    """What opens the hop; `change` has it before it serves."""

    @contextlib.asynccontextmanager
    async def opened(lifecycle: Lifecycle) -> AsyncIterator[HttpHop]:
        hop = make_hop(lifecycle, limits)
        change(hop)
        may_close = asyncio.Event()
        may_close.set()

        @hop.app.get("/never-close")
        def never_close() -> str:
            may_close.clear()
            return ""

        if pipe is not None and lifecycle.worker == 1:
            await asyncio.to_thread(Path(pipe).read_bytes)
        print(os.getpid(), flush=True)
        yield hop
        await may_close.wait()

    return opened


if __name__ == "__main__":
    limits = msgspec.json.decode(sys.argv[2], type=Limits)
    logs.configure("hop", logs.LogConfig(format="json"))
    pipe = sys.argv[4] if len(sys.argv) > 4 else None
    serve(opener(limits, pipe=pipe), Listen("127.0.0.1", int(sys.argv[1])), limits, int(sys.argv[3]))
