"""A key is in no line of any log, in no answer, in no error and in no `config --show`: a canary key, searched for.

The engines are such that repeat in their errors what they were sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from lambdalm.testing.chain import MODULES, Chain, free_ports
from lambdalm.testing.fake_bedrock import FakeBedrock
from lambdalm.testing.fake_engine import FakeEngine, Request
from lambdalm.testing.fake_http import Exchange, Reply
from lambdalm.testing.fake_openai import FakeOpenAI

from .conftest import post

CANARY = "canary-7e1d90c4"


class _Repeats(FakeEngine):
    """Mixed into a fake: its errors repeat the headers that hold a secret."""

    sent = ""

    def answer(self, exchange: Exchange) -> None:
        self.sent = " ".join(value for value in exchange.asked.headers.values() if CANARY in value)
        super().answer(exchange)  # type: ignore[safe-super]  # of the fake that it is mixed into

    def refusal(self, request: Request, why: str) -> Reply:
        body = json.dumps({"error": {"message": f"I refuse {self.sent}"}, "message": f"I refuse {self.sent}"})
        return Reply(403, body.encode(), headers=(("x-amzn-errortype", "AccessDeniedException"),))


class RepeatingOpenAI(_Repeats, FakeOpenAI):
    def failure(self, request: Request) -> bytes:
        return b"data: %b\n\n" % json.dumps({"error": {"message": f"I fail {self.sent}"}}).encode()


class RepeatingBedrock(_Repeats, FakeBedrock):
    pass


def _openai(fake: FakeEngine, tmp_path: Path) -> dict[str, str]:
    return {"PROVIDER": "openai", "OPENAI_BASE_URL": f"{fake.url}/v1", "OPENAI_API_KEY": CANARY}


def _openai_by_file(fake: FakeEngine, tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "key"
    file.write_text(CANARY)
    return {"PROVIDER": "openai", "OPENAI_BASE_URL": f"{fake.url}/v1", "OPENAI_API_KEY_FILE": str(file)}


def _bedrock(fake: FakeEngine, tmp_path: Path) -> dict[str, str]:
    return {
        "PROVIDER": "bedrock",
        "BEDROCK_ENDPOINT_URL": fake.url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_SESSION_TOKEN": f"{CANARY}-session",
    }


def config_of_all_hops(environ: dict[str, str]) -> str:
    shown = ""
    for module in MODULES.values():
        command = [sys.executable, "-m", module, "config", "--show"]
        ran = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=True)
        shown += ran.stdout + ran.stderr
    return shown


def talk(chain: Chain) -> str:
    """All that a client and an operator get to see."""
    seen = ""
    for model in ("echo", "thinking", "error-before", "error-in-stream", "cut", "garbage", "no-such-model"):
        for stream in (False, True):
            body: dict[str, Any] = {"prompt": "Hi", "model": model, "stream": stream}
            response = post(chain.url, body)
            seen += response.text + str(response.headers)
    for path in ("/health", "/models"):
        seen += requests.get(chain.backend_url + path, timeout=10).text
    return seen


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(RepeatingOpenAI, _openai), (RepeatingOpenAI, _openai_by_file), (RepeatingBedrock, _bedrock)],
    ids=["openai", "openai by file", "bedrock"],
)
def test_a_key_is_seen_nowhere(
    kind: type[FakeEngine], settings: Callable[[FakeEngine, Path], dict[str, str]], tmp_path: Path
) -> None:
    interactions, lines = tmp_path / "interactions.jsonl", list[str]()
    with kind() as fake:
        environ = settings(fake, tmp_path) | {"MODEL_NAME": "echo", "BEDROCK_MODEL": "echo", "LOG_LEVEL": "DEBUG"}
        environ |= {"INTERACTION_LOG_FILE": str(interactions), "INTERACTION_LOG_CONTENT": "full"}
        with Chain(free_ports(), environ, lambda _, line: lines.append(line)) as chain:
            seen = talk(chain)
        assert any(CANARY in str(asked.headers) for asked in fake.asked), "the engine got no key at all"
        seen += config_of_all_hops(environ) + interactions.read_text() + "\n".join(lines)
    assert "I refuse" in seen
    assert CANARY not in seen
