"""Mutated requests and messages find no fault in a hop; `python -m tests.fuzz_http` and `fuzz_grpc` send far more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import fuzz_grpc, fuzz_http
from tests.fuzz_target import Logs, Target, chain_of

Fuzzed = tuple[dict[str, Target], Logs]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    with chain_of(("edge", "proxy", "backend")) as (targets, logs):
        yield {target.name: target for target in targets}, logs


@pytest.mark.parametrize("hop", ["edge", "backend"])
@pytest.mark.parametrize("requests", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_mutated_http_requests_find_no_fault(fuzzed: Fuzzed, hop: str, requests: int) -> None:
    targets, logs = fuzzed
    found = fuzz_http.fuzz(targets[hop], requests, seed=requests)
    assert not found.faults, str(found)
    assert not logs.faults()


@pytest.mark.parametrize("requests", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_mutated_protobuf_messages_find_no_fault(fuzzed: Fuzzed, requests: int) -> None:
    targets, logs = fuzzed
    found = fuzz_grpc.fuzz(targets["proxy"], requests, seed=requests)
    assert not found.faults, str(found)
    assert not logs.faults()
