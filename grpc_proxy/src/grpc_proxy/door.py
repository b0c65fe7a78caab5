"""What every call of LlmService goes through, whatever it asks: id, budget, a place among those in progress, who calls;
and at its end its status, its trailing metadata, a line in the log and its place in the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn

import grpc

from grpc_proxy.callers import Caller, Callers
from grpc_proxy.config import LimitsConfig
from grpc_proxy.detached import DetachedRuns, cut_off
from grpc_proxy.exchange import Exchange
from grpc_proxy.metrics import Metrics
from grpc_proxy.outlet import ReaderStuckError
from lambdalm import call as calls
from lambdalm import logs, timings, tracing
from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError, bug
from lambdalm.rpc import status
from lambdalm.timings import HopClock
from lambdalm.tracing import Span
from lambdalm_proto.v1 import llm_pb2

HOP = "proxy"
_ERROR_SECONDS = 10.0  # for a caller to take the error of its call, behind what it has not read yet
_TRACED = {"generateText", "Generate", "GenerateStream"}  # who asks how things are, asks often

_SERVICE = llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name

_log = logs.get(__name__)

Context = grpc.aio.ServicerContext[object, object]


class Asked:
    """One call that was let in: its Call, its caller and, when it wants an answer, the exchange."""

    def __init__(self, method: str, call: Call) -> None:
        self.method = method
        self.call = call
        self.caller = Caller("", b"")
        self.exchange: Exchange | None = None
        self.begun = False
        """Whether its initial metadata has been sent."""

    def wants(self, request: ChatRequest, makes_session: bool = True) -> Exchange:
        """The call asks for this."""
        self.exchange = Exchange(request, self.caller, self.call, makes_session)
        return self.exchange

    def cookies(self) -> status.Metadata:
        found = self.exchange.cookies if self.exchange is not None else []
        return tuple(("set-cookie", cookie) for cookie in found)

    def trailing(self) -> status.Metadata:
        shares = timings.encode(self.call.clock.timings())
        return ((timings.SERVER_TIMING, shares), (calls.REQUEST_ID, self.call.id), *self.cookies())

    def for_log(self, prompt_chars: int) -> dict[str, Any]:
        """What a line of the log says of it, with so many characters of its prompt."""
        known = {"request_id": self.call.id, "method": self.method, "ms": self.call.clock.total_ms()}
        if self.caller.key is not None:
            known["key"] = self.caller.key.id
        if self.exchange is None:
            return known
        asked = {"session": self.exchange.session_id, "upstream": self.exchange.upstream, "model": self.exchange.model}
        asked["prompt"] = self.exchange.prompt[:prompt_chars]
        return known | {name: value for name, value in asked.items() if value}


class Door:
    """One per process, used in one event loop."""

    def __init__(
        self, limits: LimitsConfig, prompt_chars: int, callers: Callers, detached: DetachedRuns, metrics: Metrics
    ) -> None:
        self._limits = limits
        self._prompt_chars = prompt_chars
        self._callers = callers
        self._detached = detached
        self._metrics = metrics
        self._running: dict[Asked, asyncio.Timeout] = {}
        self._stopped = False

    def stop_all(self) -> None:
        """End all calls with an error that says that the server stops."""
        self._stopped = True
        now = asyncio.get_running_loop().time()
        for asked, timeout in self._running.items():
            asked.call.cancel("the server is shutting down", Code.UNAVAILABLE)
            if not timeout.expired():
                timeout.reschedule(now)

    @contextlib.asynccontextmanager
    async def call(self, method: str, context: Context) -> AsyncIterator[Asked]:
        """Let one call in; ends it with its status and trailing metadata."""
        clock = HopClock(HOP)
        asked = Asked(method, Call("", self._limits.max_timeout, clock))
        self._metrics.began()
        code: Code | None = Code.CANCELLED
        try:
            metadata = _texts(context)
            asked.call = _call(metadata, context.time_remaining(), self._limits, clock)
            if method in _TRACED:
                asked.call.span = _span(method, metadata, asked.call.id)
            self._check_room()
            asked.call.check()
            asked.caller = self._callers.identify(metadata)
            if len(self._running) + len(self._detached) >= self._limits.max_in_flight:
                self._detached.make_room()
            async with self._while_there_is_time(asked):
                yield asked
            context.set_trailing_metadata(asked.trailing())
            code = None
            logs.request_line("answered", **asked.for_log(self._prompt_chars))
        except LlmError as error:
            code = error.code
            await self._abort(context, asked, error.at(HOP))
        except (asyncio.CancelledError, grpc.aio.InternalError):  # the latter comes of a write to a caller who has left
            logs.request_line("the caller left", **asked.for_log(self._prompt_chars))
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001  # the edge of the process: the caller must be told, whatever it was
            code = Code.INTERNAL
            _log.error("a bug: the call raised", request_id=asked.call.id, exc_info=error)
            await self._abort(context, asked, bug(HOP))
        finally:
            self._metrics.ended(method, code, clock.total_ms() / 1000)
            asked.call.span.end(code)

    async def _abort(self, context: Context, asked: Asked, error: LlmError) -> NoReturn:
        """End the call with an error. gRPC resets one whose caller does not read that."""
        logs.request_line("failed", **asked.for_log(self._prompt_chars), **error.for_log())
        seconds = 0 if isinstance(error, ReaderStuckError) else _ERROR_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await context.abort(status.STATUS[error.code], error.message, asked.trailing() + status.details(error))
        except TimeoutError:
            raise asyncio.CancelledError from None

    def _check_room(self) -> None:
        if len(self._running) >= self._limits.max_in_flight:
            self._metrics.refused("calls in progress")
            why = f"{len(self._running)} calls are in progress, which is the limit: come back later"
            raise LlmError(Code.RESOURCE_EXHAUSTED, why, retry_after=1)

    @contextlib.asynccontextmanager
    async def _while_there_is_time(self, asked: Asked) -> AsyncIterator[None]:
        """Until the call's budget is used up or the server has to stop; raises LlmError then."""
        try:
            async with asyncio.timeout(asked.call.remaining()) as timeout:
                self._running[asked] = timeout
                yield
        except TimeoutError:
            if self._stopped:
                raise cut_off() from None
            raise asked.call.out_of_time() from None
        finally:
            self._running.pop(asked, None)


def _call(metadata: Mapping[str, str], left: float | None, limits: LimitsConfig, clock: HopClock) -> Call:
    budget = limits.default_timeout if left is None else left
    return Call(calls.request_id(metadata.get(calls.REQUEST_ID)), min(budget, limits.max_timeout), clock)


def _span(method: str, metadata: Mapping[str, str], request_id: str) -> Span:
    known = {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method, "lambdalm.request_id": request_id}
    return tracing.span(f"{_SERVICE}/{method}", "server", tracing.read(metadata.get), known)


def _texts(context: Context) -> dict[str, str]:
    """The metadata that is text; a name that comes more than once is joined as HTTP joins cookies."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        found[name] = f"{found[name]}; {text}" if name in found else text
    return found
