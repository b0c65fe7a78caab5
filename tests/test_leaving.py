"""What becomes of an answer whose client leaves, through the whole chain: as the request says."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from lambdalm.testing.chain import Chain

from .conftest import events_of, idle, pass_first_delta, until


def turns(chain: Chain, jar: requests.Session) -> list[dict[str, Any]]:
    """Of the client's only session."""
    (session,) = jar.get(f"{chain.url}/sessions", timeout=10).json()["sessions"]
    found: list[dict[str, Any]] = jar.get(f"{chain.url}/sessions/{session['id']}", timeout=10).json()["turns"]
    return found


@pytest.mark.parametrize(("policy", "state", "words"), [("drain", "complete", 30), ("cancel", "cancelled", None)])
def test_it_is_finished_and_found_on_return_or_stopped(
    scripted: Chain, policy: str, state: str, words: int | None
) -> None:
    with requests.Session() as jar:
        body = {"prompt": "go on", "model": "slow", "max_tokens": 30, "stream": True, "on_disconnect": policy}
        with jar.post(f"{scripted.url}/query", json=body, stream=True, timeout=30) as answer:
            pass_first_delta(events_of(answer))
        until(lambda: turns(scripted, jar)[0]["state"] == state, f"the turn is {state}")
        until(lambda: idle(scripted), "the engine is free")
        (turn,) = turns(scripted, jar)
        said = len(turn["text"].split())
        assert said == words if words is not None else 0 < said < 30
