"""Seed 000's test of sticky sessions, with two proxies and one Redis: whoever answers knows what was said before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lambdalm.testing.chain import Chain, Kind, free_ports
from lambdalm.testing.valkey import redis_server

CLIENT = Path(__file__).resolve().parent.parent / "examples" / "client.py"


@pytest.fixture
def two_proxies(tmp_path: Path) -> Iterator[Chain]:
    with redis_server(tmp_path) as redis:
        environ = {"PROVIDER": "llamacpp", "STORE": "redis", "REDIS_URL": redis.url}
        with Chain(free_ports(), environ, kinds={"proxy": Kind(number=2)}) as chain:
            yield chain


def ask(chain: Chain, proxy: str, jar: Path, prompt: str) -> str:
    """What the example client prints."""
    target = f"127.0.0.1:{chain.port(proxy)}"
    command = [sys.executable, str(CLIENT), "--target", target, "--cookie-jar", str(jar), "--prompt", prompt]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_the_second_proxy_knows_what_was_said_to_the_first_which_was_killed(two_proxies: Chain, tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    ask(two_proxies, "proxy", jar, "My name is Zorbo.")
    two_proxies.hops["proxy"].kill()
    assert "Zorbo" in ask(two_proxies, "proxy-2", jar, "What is my name?")
    assert "Zorbo" not in ask(two_proxies, "proxy-2", tmp_path / "another's.txt", "What is my name?")
