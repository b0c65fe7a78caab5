"""A gRPC proxy that remembers, as far as its callers can tell: in a test, or as a program that prints its port.

It answers with the prompts that the session has had before. Owners are told apart by their key, else by their cookie.
"""

from __future__ import annotations

import argparse
import contextlib
import http.cookies
import secrets
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import grpc

from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Heartbeat, Started, TextDelta, Tokens, collect
from lambdalm.rpc import messages, status
from lambdalm.timings import HopTiming, encode
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

SESSION, OWNER = "LlmServiceStickiness", "LlmServiceOwner"
SAID_AT = 1_700_000_000  # seconds since 1970; when everything has happened
REFUSED = LlmError(Code.RESOURCE_EXHAUSTED, "this key may ask 2 times a minute", retry_after=29.5, origin="proxy")
FULL = LlmError(Code.RESOURCE_EXHAUSTED, "the disk is full", origin="store")
_TIMINGS = (("server-timing", encode({"proxy": HopTiming(2.0)})),)


class FakeProxy(llm_pb2_grpc.LlmServiceServicer):
    """The prompt "refuse me" fails with REFUSED, "no room" with FULL; "hold on" waits for `go_on` after a heartbeat."""

    def __init__(self, key: str | None = None, cookies: str = "Path=/; Max-Age=900; HttpOnly") -> None:
        self.key = key
        self._attributes = cookies
        self.seen: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.chain = pb.GetChainResponse(hops=[pb.HopStatus(hop="proxy", ok=True)])
        self._sessions: dict[tuple[str, str], list[str]] = {}

    def GenerateStream(self, request: pb.LLMRequest, context: Any) -> Iterator[pb.LLMStreamEvent]:  # noqa: N802
        caller = self._caller(context)
        remembers = request.memory != pb.MEMORY_OFF
        owner = caller or secrets.token_hex(8)
        session = self._session(request, owner) if remembers else ""
        given = {SESSION: session} if caller else {SESSION: session, OWNER: owner}
        set_cookies = tuple(("set-cookie", f"{name}={value}; {self._attributes}") for name, value in given.items())
        set_cookies = set_cookies if remembers else ()
        context.set_trailing_metadata((*_TIMINGS, *set_cookies))
        for prompt, error in (("refuse me", REFUSED), ("no room", FULL)):
            if request.prompt == prompt:
                fail(context, error, set_cookies)
        context.send_initial_metadata(set_cookies)
        if request.prompt == "hold on":
            yield messages.event_to_proto(Heartbeat())
            self.go_on.wait(60)
        before = self._sessions[owner, session] if remembers else []
        yield messages.event_to_proto(Started("r1", "fake", session or None))
        yield messages.event_to_proto(TextDelta(f"before: {', '.join(before) or 'nothing'}"))
        before.append(request.prompt)
        yield messages.event_to_proto(Finished(FinishReason.STOP, Tokens(3, 5)))

    def Generate(self, request: pb.LLMRequest, context: Any) -> pb.LLMResponse:  # noqa: N802
        events = map(messages.event_from_proto, self.GenerateStream(request, context))
        return messages.answer_to_proto(collect(events))

    def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:  # noqa: N802
        caller = self._caller(context)
        context.set_trailing_metadata(_TIMINGS)
        found = [(key[1], turns) for key, turns in self._sessions.items() if key[0] == caller]
        made = [pb.SessionSummary(id=name, turns=len(turns), title=turns[0]) for name, turns in found]
        for each in made:
            each.created.seconds = each.last_used.seconds = SAID_AT
        return pb.ListSessionsResponse(sessions=made)

    def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.Session:  # noqa: N802
        prompts = self._sessions[self._known(request.session_id, context)]
        turns = [pb.Turn(request_id="r1", prompt=p, text="…", state=pb.TURN_STATE_COMPLETE) for p in prompts]
        turns[0].usage.completion_tokens = 5
        turns[0].finish_reason = pb.FINISH_REASON_TOOL_CALLS
        turns.append(pb.Turn(prompt="and then?", state=pb.TURN_STATE_CANCELLED))
        session = pb.Session(id=request.session_id, system="be kind", turns=turns)
        session.created.seconds = session.last_used.seconds = SAID_AT
        for turn in session.turns:
            turn.created.FromNanoseconds(SAID_AT * 10**9 + 500_000_000)
        return session

    def DeleteSession(self, request: pb.DeleteSessionRequest, context: Any) -> pb.DeleteSessionResponse:  # noqa: N802
        del self._sessions[self._known(request.session_id, context)]
        return pb.DeleteSessionResponse()

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        models = [pb.Model(id="tiny", provider="llamacpp", context_window=2048), pb.Model(id="big", provider="ollama")]
        return pb.ListModelsResponse(models=models)

    def GetChain(self, request: pb.GetChainRequest, context: Any) -> pb.GetChainResponse:  # noqa: N802
        self._caller(context)
        return self.chain

    def GetStats(self, request: pb.GetStatsRequest, context: Any) -> pb.GetStatsResponse:  # noqa: N802
        self._caller(context)
        errors = {"UNAVAILABLE": 2, "CANCELLED": 1}
        return pb.GetStatsResponse(
            active_calls=3,
            total_calls=127,
            sessions=7,
            active_sessions=4,
            turns=89,
            completion_tokens=45678,
            errors=errors,
            uptime_seconds=9.5,
        )

    def _caller(self, context: Any) -> str:
        """Who calls: what is seen of others is none of theirs."""
        seen = dict(context.invocation_metadata())
        self.seen.append(seen)
        if self.key is not None and seen.get("authorization") != f"Bearer {self.key}":
            fail(context, LlmError(Code.UNAUTHENTICATED, "this server wants a key", origin="proxy"))
        return self.key or cookie(seen, OWNER) or ""

    def _session(self, request: pb.LLMRequest, owner: str) -> str:
        session = request.session_id or cookie(self.seen[-1], SESSION)
        if session is None or (owner, session) not in self._sessions:
            session = secrets.token_hex(8)
        self._sessions.setdefault((owner, session), [])
        return session

    def _known(self, id: str, context: Any) -> tuple[str, str]:
        found = (self._caller(context), id)
        if found not in self._sessions:
            fail(context, LlmError(Code.NOT_FOUND, "there is no such session", origin="proxy"))
        return found


def cookie(metadata: dict[str, Any], name: str) -> str | None:
    morsel = http.cookies.SimpleCookie(metadata.get("cookie", "")).get(name)
    return morsel.value if morsel else None


def fail(context: Any, error: LlmError, more: tuple[tuple[str, str], ...] = ()) -> NoReturn:
    context.set_trailing_metadata((*_TIMINGS, *more, *status.details(error)))
    context.abort(status.STATUS[error.code], error.message)
    raise AssertionError("abort raises")


@contextlib.contextmanager
def running(fake: FakeProxy, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    """On a free port of 127.0.0.1, which it gives."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    llm_pb2_grpc.add_LlmServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        fake.go_on.set()
        server.stop(0).wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", help="the key to want")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), type=Path, help="PEM files")
    given = parser.parse_args()
    fake, credentials = FakeProxy(given.key), None
    if given.tls:
        fake = FakeProxy(given.key, cookies="Path=/; Max-Age=900; Secure")
        certificate, key = (path.read_bytes() for path in given.tls)
        credentials = grpc.ssl_server_credentials([(key, certificate)])
    with running(fake, credentials) as port:
        print(port, flush=True)
        sys.stdin.read()  # until its parent closes it


if __name__ == "__main__":
    main()
