"""What is one caller's no other caller sees, whichever call they try; and a key is seen nowhere at all.

Through the whole chain, with API keys and, where none are asked for, with owners' cookies.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import requests

from lambdalm.testing.chain import Chain, free_ports
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc

from .conftest import frames, until

SECRET = "the eagle has landed"
NOWHERE = "AAAAAAAAAAAAAAAAAAAAAA"  # an id as ours are, which nobody has


class Place(NamedTuple):
    """A chain, what it has logged, the folder with all that it keeps, how to become somebody, and its keys, if any."""

    chain: Chain
    lines: list[str]
    folder: Path
    somebody: Callable[[str], User]
    keys: str | None


class User:
    """One caller, over HTTP and over gRPC."""

    def __init__(self, chain: Chain, key: str | None = None) -> None:
        self.http = requests.Session()
        self.key = key
        if key is not None:
            self.http.headers["Authorization"] = f"Bearer {key}"
        self.url = chain.url
        self.target = chain.grpc_target

    def ask(self, prompt: str, **body: Any) -> requests.Response:
        wanted = {"prompt": prompt, "model": "echo", **body}
        return self.http.post(f"{self.url}/query", json=wanted, timeout=30, stream=body.get("stream", False))

    def call(self, method: str, request: Any) -> Any:
        """A call over gRPC, with what the HTTP side has; gives the answer, or the error."""
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies)
        metadata = [("cookie", cookies)] if cookies else []
        metadata += [("x-api-key", self.key)] if self.key else []
        with grpc.insecure_channel(self.target) as channel:
            stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                return getattr(stub, method)(request, metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                return error


@pytest.fixture(scope="module", params=["keys", "cookies"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("isolation")
    lines: list[str] = []
    environ = {"PROVIDER": "scripted", "LOG_LEVEL": "DEBUG", "STORE_SQLITE_PATH": str(folder / "store.sqlite")}
    if request.param == "keys":
        environ["API_KEYS_FILE"] = str(folder / "keys.yaml")
        grpc_proxy("key-create", "first", **environ)
    with Chain(free_ports(), environ, lambda _, line: lines.append(line)) as chain:

        def somebody(name: str) -> User:
            if request.param == "cookies":
                return User(chain)
            options = ["--tokens-per-minute", "1000000"]
            user = User(chain, grpc_proxy("key-create", name, *options, **environ).strip())
            until(lambda: user.http.get(f"{user.url}/sessions", timeout=10).ok, "the new key is known")
            return user

        yield Place(chain, lines, folder, somebody, environ.get("API_KEYS_FILE"))


def grpc_proxy(*arguments: str, **environ: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "grpc_proxy", *arguments]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def alice(place: Place, request: pytest.FixtureRequest) -> User:
    return place.somebody(f"alice of {request.node.name}"[:64])


@pytest.fixture
def bob(place: Place, request: pytest.FixtureRequest) -> User:
    return place.somebody(f"bob of {request.node.name}"[:64])


def refusal(response: requests.Response) -> tuple[int, Any]:
    """All but the times, and the request's id is not in it."""
    return response.status_code, response.json()["error"]


def test_every_call_with_anothers_session_is_answered_as_if_there_were_none(alice: User, bob: User) -> None:
    session = alice.ask(SECRET).json()["session_id"]
    bob.ask("hello")
    for stream in (False, True):
        theirs = refusal(bob.ask("go on", session_id=session, stream=stream))
        assert theirs == refusal(bob.ask("go on", session_id=NOWHERE, stream=stream))
        assert theirs[0] == 404
    for verb in ("get", "delete"):
        theirs = refusal(getattr(bob.http, verb)(f"{bob.url}/sessions/{session}", timeout=10))
        assert theirs == refusal(getattr(bob.http, verb)(f"{bob.url}/sessions/{NOWHERE}", timeout=10))
        assert theirs[0] == 404
    for method, message in (
        ("Generate", pb.LLMRequest(prompt="go on")),
        ("GetSession", pb.GetSessionRequest()),
        ("DeleteSession", pb.DeleteSessionRequest()),
    ):
        found = []
        for named in (session, NOWHERE):
            message.session_id = named
            error = bob.call(method, message)
            found.append((error.code(), error.details()))
        assert found[0] == found[1]
        assert found[0][0] is grpc.StatusCode.NOT_FOUND
    kept = alice.http.get(f"{alice.url}/sessions/{session}", timeout=10).json()
    assert [turn["prompt"] for turn in kept["turns"]] == [SECRET]


def test_a_list_has_the_callers_own_sessions_only(alice: User, bob: User) -> None:
    mine = alice.ask(SECRET).json()["session_id"]
    theirs = bob.ask("hello").json()["session_id"]
    for user, own in ((alice, mine), (bob, theirs)):
        over_http = user.http.get(f"{user.url}/sessions", timeout=10)
        assert [session["id"] for session in over_http.json()["sessions"]] == [own]
        over_grpc = user.call("ListSessions", pb.ListSessionsRequest())
        assert [session.id for session in over_grpc.sessions] == [own]
    assert SECRET not in bob.http.get(f"{bob.url}/sessions", timeout=10).text


def test_anothers_session_cookie_begins_a_session_of_ones_own(alice: User, bob: User) -> None:
    session = alice.ask(SECRET).json()["session_id"]
    bob.http.cookies.set("LlmServiceStickiness", session)
    for stream in (False, True):
        response = bob.ask("what was said?", stream=stream)
        answer = frames(response)[0] if stream else response.json()
        assert answer["session_id"] != session
    assert len(alice.http.get(f"{alice.url}/sessions/{session}", timeout=10).json()["turns"]) == 1


def test_the_owner_does_all_that_others_may_not(alice: User) -> None:
    session = alice.ask(SECRET).json()["session_id"]
    assert alice.ask("go on", session_id=session).json()["session_id"] == session
    assert len(alice.call("GetSession", pb.GetSessionRequest(session_id=session)).turns) == 2
    assert alice.http.delete(f"{alice.url}/sessions/{session}", timeout=10).status_code == 204
    assert alice.http.get(f"{alice.url}/sessions/{session}", timeout=10).status_code == 404


@pytest.mark.parametrize("place", ["keys"], indirect=True)
def test_who_has_no_key_may_do_nothing(place: Place) -> None:
    assert place.keys is not None
    stranger = User(place.chain)
    revoked = place.somebody("revoked")
    shown = grpc_proxy("keys", API_KEYS_FILE=place.keys)
    key_id = next(line.split()[0] for line in shown.splitlines() if "  revoked  " in line and "created" not in line)
    assert revoked.ask("hello").status_code == 200
    grpc_proxy("key-revoke", key_id, API_KEYS_FILE=place.keys)
    forged = User(place.chain, f"{(revoked.key or '')[:-1]}x")
    for user in (stranger, forged):
        for path in ("/sessions", f"/sessions/{NOWHERE}", "/stats", "/models"):
            response = user.http.get(f"{user.url}{path}", timeout=10)
            assert (path, response.status_code) == (path, 401)
        assert user.ask("hello").status_code == 401
        for method, message in (
            ("Generate", pb.LLMRequest(prompt="hi")),
            ("generateText", pb.LlmQueryRequest(prompt="hi")),
            ("ListModels", pb.ListModelsRequest()),
            ("ListSessions", pb.ListSessionsRequest()),
            ("GetSession", pb.GetSessionRequest(session_id=NOWHERE)),
            ("DeleteSession", pb.DeleteSessionRequest(session_id=NOWHERE)),
            ("GetChain", pb.GetChainRequest()),
            ("GetStats", pb.GetStatsRequest()),
        ):
            assert user.call(method, message).code() is grpc.StatusCode.UNAUTHENTICATED
    until(lambda: revoked.ask("hello").status_code == 401, "the revoked key is refused")


def test_keys_and_owners_cookies_are_seen_nowhere(place: Place, alice: User) -> None:
    session = alice.ask("hello").json()["session_id"]
    seen = "".join(
        response.text
        for response in (
            alice.ask("hello", model="error-before"),
            alice.ask("hello", session_id=NOWHERE),
            alice.http.get(f"{alice.url}/sessions", timeout=10),
            alice.http.get(f"{alice.url}/sessions/{session}", timeout=10),
            alice.http.get(f"{alice.url}/chain", timeout=10),
            alice.http.get(f"{alice.url}/stats", timeout=10),
            requests.get(place.chain.health_url("proxy").replace("readyz", "metrics"), timeout=10),
        )
    )
    kept = b"".join(file.read_bytes() for file in place.folder.iterdir())
    secret = alice.key or alice.http.cookies["LlmServiceOwner"]
    assert "llm_service_requests_total" in seen
    assert session.encode() in kept
    for where in (seen, "\n".join(place.lines), kept.decode("latin-1")):
        assert secret not in where
