"""What clients see when the store is down or full: memory is refused, at once and truly; what needs none goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from lambdalm.testing.chain import Chain, Kind, free_ports
from lambdalm.testing.valkey import RedisServer, redis_server
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc
from tests.conftest import chain_seen, post, until
from tests.fake_backend import FakeBackend

FAST = 1.0  # seconds: half of what one call of the store may take


class Visitor:
    """A client whose session is kept; `reads` gives what it has said."""

    def __init__(self, url: str, http: requests.Session) -> None:
        self._url = url
        self._http = http

    def says(self, prompt: str) -> requests.Response:
        return self._http.post(f"{self._url}/query", json={"prompt": prompt}, timeout=30)

    def reads(self, session_id: str) -> list[str]:
        answer = self._http.get(f"{self._url}/sessions/{session_id}", timeout=30)
        assert answer.status_code == 200, answer.text
        return [turn["prompt"] for turn in answer.json()["turns"] if turn["state"] == "complete"]


def refused(answer: requests.Response, status: int, code: str) -> bool:
    """Whether it is so because of the store; the answer says it."""
    error: dict[str, Any] = answer.json().get("error", {})
    found = answer.status_code, error.get("code"), error.get("origin")
    assert found in ((status, code, "store"), (200, None, None)), answer.text
    return answer.status_code == status


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def on_redis(redis: RedisServer) -> Iterator[Chain]:
    environ = {"PROVIDER": "scripted", "STORE": "redis", "REDIS_URL": redis.url}
    with Chain(free_ports(), environ) as chain:
        yield chain


Fault = tuple[Callable[[RedisServer], None], Callable[[RedisServer], None]]
STOPPED: Fault = (RedisServer.kill, RedisServer.start)
PAUSED: Fault = (RedisServer.pause, RedisServer.resume)


@pytest.mark.parametrize("fault", [STOPPED, PAUSED], ids=["stopped", "paused"])
def test_without_redis_memory_is_refused_and_what_needs_none_goes_on(
    on_redis: Chain, redis: RedisServer, fault: Fault
) -> None:
    begin, end = fault
    with requests.Session() as http:
        visitor = Visitor(on_redis.url, http)
        session_id = visitor.says("before").json()["session_id"]
        begin(redis)
        try:
            began = time.monotonic()
            first = visitor.says("meanwhile")
            assert time.monotonic() - began < 3
            assert refused(first, 503, "UNAVAILABLE")
            assert "Retry-After" in first.headers
            assert statistics.median(times_of(visitor, 9)) < FAST
            assert post(on_redis.url, {"prompt": "x", "memory": "off"}).json()["text"] == "x"
            assert chain_seen(on_redis)["first_broken"] == "store"
            assert requests.get(f"{on_redis.url}/readyz", timeout=5).status_code == 200
        finally:
            end(redis)
        until(lambda: visitor.says("after").status_code == 200, "memory is back", 5)
        assert visitor.reads(session_id) == ["before", "after"]
        assert chain_seen(on_redis)["first_broken"] is None


def times_of(visitor: Visitor, requests: int) -> Iterator[float]:
    """Seconds that each of them took to be refused."""
    for _ in range(requests):
        began = time.monotonic()
        assert refused(visitor.says("meanwhile"), 503, "UNAVAILABLE")
        yield time.monotonic() - began


class SmallDisk:
    """A disk of 2 MiB, which only the proxy sees that is started under `command`; others reach it through /proc."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        mount = 'mount -t tmpfs -o size=2m tmpfs "$0" && exec "$@"'
        self.command = ["unshare", "-Urm", "sh", "-c", mount, str(folder)]

    def fill(self, chain: Chain) -> None:
        """Until nothing more goes in."""
        with self._ballast(chain).open("ab", buffering=0) as ballast, contextlib.suppress(_NoRoomError):
            while True:
                _write(ballast.fileno(), bytes(4096))

    def free(self, chain: Chain) -> None:
        self._ballast(chain).unlink()

    def _ballast(self, chain: Chain) -> Path:
        return Path(f"/proc/{chain.hops['proxy'].process.pid}/root{self._folder}/ballast")


class _NoRoomError(Exception):
    """The disk is full."""


def _write(file: int, data: bytes) -> None:
    try:
        os.write(file, data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _NoRoomError from None
        raise


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    disk = SmallDisk(tmp_path)
    tried = subprocess.run([*disk.command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no user namespaces here: {tried.stderr.strip()}")
    return disk


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend() as fake:
        yield fake


@pytest.fixture
def on_small_disk(disk: SmallDisk, backend: FakeBackend, tmp_path: Path) -> Iterator[Chain]:
    environ = {"BACKEND_URL": backend.query_url, "STORE_SQLITE_PATH": str(tmp_path / "proxy.sqlite")}
    kinds = {"backend": Kind(number=0), "proxy": Kind(under=disk.command)}
    with Chain(free_ports(), environ, kinds=kinds) as chain:
        yield chain


def over_grpc(chain: Chain, prompt: str) -> grpc.StatusCode:
    with grpc.insecure_channel(chain.grpc_target) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as failed:
            stub.Generate(pb.LLMRequest(prompt=prompt), timeout=10)
    code: grpc.StatusCode = failed.value.code()
    return code


def test_a_full_disk_refuses_memory_before_generating_and_reading_goes_on(
    on_small_disk: Chain, disk: SmallDisk, backend: FakeBackend
) -> None:
    long = "long " * 8000  # what is left in files that are there already is soon used up
    with requests.Session() as http:
        visitor = Visitor(on_small_disk.url, http)
        session_id = visitor.says("before").json()["session_id"]
        disk.fill(on_small_disk)
        until(lambda: refused(visitor.says(long), 503, "RESOURCE_EXHAUSTED"), "the disk is full")

        asked = backend.questions
        assert refused(visitor.says(long), 503, "RESOURCE_EXHAUSTED")
        assert over_grpc(on_small_disk, long) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert backend.questions == asked
        said = visitor.reads(session_id)
        assert said[0] == "before"
        assert post(on_small_disk.url, {"prompt": long, "memory": "off"}).json()["text"] == "fine"
        assert requests.get(f"{on_small_disk.url}/readyz", timeout=5).status_code == 200

        disk.free(on_small_disk)
        until(lambda: visitor.says("after").status_code == 200, "memory is back", 1)
        assert visitor.reads(session_id) == [*said, "after"]
