"""Two backends behind one proxy: one is killed, fails always, or hangs, and who may not notice does not."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import requests
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

import grpc_proxy
from lambdalm.testing.chain import Chain, Kind, free_ports
from tests.conftest import Load, Outcome, all_ok, chain_seen, post, until, wait_for
from tests.fake_backend import FakeBackend

SCRIPTED = {"PROVIDER": "scripted", "PARALLEL_SLOTS": "64"}
TWO = {"backend": Kind(number=2)}
CONFIG = Path(grpc_proxy.__file__).with_name("config.yaml")


@pytest.fixture
def pair() -> Iterator[Chain]:
    """A chain with two backends, both known to be well."""
    with Chain(free_ports(), SCRIPTED, kinds=TWO) as chain:
        until(lambda: all_ok(chain), "both backends are well")
        yield chain


def is_truthful(outcome: Outcome) -> bool:
    """Whether it is whole, or ends with an error after some of it was said."""
    error = outcome.end.get("error", {})
    told = (outcome.end.get("type"), error.get("code"), error.get("origin")) == ("error", "UNAVAILABLE", "backend")
    return outcome.finished or bool(told and outcome.text)


def moved(chain: Chain) -> float:
    """How many requests have moved from one backend to another, as the proxy's metrics tell."""
    metrics = requests.get(chain.health_url("proxy").replace("/readyz", "/metrics"), timeout=5).text
    counts = re.findall(r"^llm_service_retries_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, counts))


def test_a_backend_killed_under_load_is_noticed_only_by_streams_that_had_begun(pair: Chain) -> None:
    with Load(pair.url, 16) as load:
        for _ in range(50):
            load.ask(2, model="slow", max_tokens=6)
            load.ask(2, model="echo")
        wait_for(load.done, 40)
        pair.hops["backend-2"].kill()
        outcomes = load.outcomes()
    assert moved(pair) > 0
    assert [outcome for outcome in outcomes if not is_truthful(outcome)] == []
    assert 0 < sum(not outcome.finished for outcome in outcomes) <= 16
    assert len(outcomes) == 200

    pair.start("backend-2")
    until(lambda: all_ok(pair), "the backend is back")


class Counting(NamedTuple):
    """An edge, and two backends that count what they are asked."""

    url: str
    good: FakeBackend
    bad: FakeBackend

    @property
    def asked(self) -> int:
        return self.good.questions + self.bad.questions


@contextlib.contextmanager
def counting(tmp_path: Path, **breaker: int) -> Iterator[Counting]:
    """Both are well at first; `breaker` is a section of the proxy's config."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["routing"]["breaker"] |= breaker
    file = tmp_path / "grpc_proxy.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    kinds = {"backend": Kind(number=0), "proxy": Kind(options=["--config", str(file)])}
    with contextlib.ExitStack() as stack:
        good, bad = (stack.enter_context(FakeBackend()) for _ in range(2))
        environ = {"BACKEND_URL": f"{good.query_url},{bad.query_url}"}
        chain = stack.enter_context(Chain(free_ports(), environ, kinds=kinds))
        until(lambda: all_ok(chain), "both backends are well")
        yield Counting(chain.url, good, bad)


def test_a_backend_that_always_fails_costs_a_fifth_more_calls_at_most_and_no_client_an_error(tmp_path: Path) -> None:
    with counting(tmp_path, seconds=1, max_seconds=1) as backends:
        backends.bad.broken = True
        with Load(backends.url, 16) as load:
            load.ask(300)
            outcomes = load.outcomes()
        assert [outcome for outcome in outcomes if not outcome.finished] == []
        assert backends.bad.questions > 0
        assert backends.asked <= 1.2 * len(outcomes)

        backends.bad.broken = False
        before = backends.bad.questions

        def is_asked_again() -> bool:
            assert post(backends.url, {"prompt": "x", "memory": "off"}).status_code == 200
            return backends.bad.questions > before

        until(is_asked_again, "the backend that was mended is asked", 10)


def test_where_no_backend_is_ever_left_out_retries_keep_to_their_budget_all_the_same(tmp_path: Path) -> None:
    with counting(tmp_path, failures=1_000_000) as backends:
        backends.bad.broken = True
        with Load(backends.url, 16) as load:
            load.ask(300)
            outcomes = load.outcomes()
        assert {outcome.status for outcome in outcomes} == {200, 503}
        assert len(outcomes) < backends.asked <= 1.2 * len(outcomes) + 10  # which there are to begin with


def grpc_health(chain: Chain) -> int:
    with grpc.insecure_channel(chain.grpc_target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def readiness(chain: Chain) -> tuple[int, int, int]:
    """What the edge, the proxy over HTTP and the proxy over gRPC say of it."""
    urls = (f"{chain.url}/readyz", chain.health_url("proxy"))
    edge, bridge = (requests.get(url, timeout=5).status_code for url in urls)
    return edge, bridge, grpc_health(chain)


NOT_READY = (503, 503, health_pb2.HealthCheckResponse.NOT_SERVING)
READY = (200, 200, health_pb2.HealthCheckResponse.SERVING)


def test_a_backend_that_hangs_is_out_of_rotation_and_readiness_says_so_until_it_goes_on(own_scripted: Chain) -> None:
    assert readiness(own_scripted) == READY
    with own_scripted.hops["backend"].paused():
        until(lambda: readiness(own_scripted) == NOT_READY, "not ready", 15)
        assert chain_seen(own_scripted)["first_broken"] == "backend"
        refused = post(own_scripted.url, {"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["origin"]) == (503, "backend")
    until(lambda: readiness(own_scripted) == READY, "ready", 5)
    assert chain_seen(own_scripted)["first_broken"] is None
    assert post(own_scripted.url, {"prompt": "x"}).json()["text"] == "x"


def test_with_a_second_backend_nobody_gets_an_error_while_one_hangs(pair: Chain) -> None:
    with pair.hops["backend"].paused(), Load(pair.url, 16) as load:
        load.ask(100)
        assert all(outcome.finished for outcome in load.outcomes())
        assert readiness(pair) == READY
        assert chain_seen(pair)["first_broken"] is None
        assert [hop["name"] for hop in chain_seen(pair)["hops"] if not hop["ok"]] == ["main-1"]
    until(lambda: all_ok(pair), "both backends are well", 5)
