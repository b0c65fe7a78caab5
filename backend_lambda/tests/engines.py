"""The engines that the provider contract is run against: a row each, with what it takes to try it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest

from backend_lambda.providers import bedrock, llamacpp, ollama, openai, scripted
from backend_lambda.providers.base import Provider
from lambdalm.chat import ChatRequest
from lambdalm.events import FinishReason
from lambdalm.testing.fake_bedrock import FakeBedrock
from lambdalm.testing.fake_engine import FakeEngine
from lambdalm.testing.fake_ollama import FakeOllama
from lambdalm.testing.fake_openai import FakeOpenAI

PROMPT = "Say «λλM 🦊» and\nnothing else."


class Running(NamedTuple):
    """A provider, and the fake behind it; an engine in this process has none and counts what it has `said` instead."""

    provider: Provider
    fake: FakeEngine | None
    said: Callable[[], int] = lambda: 0


class CountingEngine:
    """llama.cpp, whose chunks are counted."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.chunks = 0

    def handle_chat_completions(self, body: dict[str, Any], take: Any) -> Any:
        def counted(chunk: Any) -> Any:
            self.chunks += 1
            return take(chunk)

        return self._server.handle_chat_completions(body, counted)


MOST = 2000
"""Chunks: far fewer than an endless answer has, and more than an engine may be ahead of its reader."""


class Engine(NamedTuple):
    """A row. `start` takes config values; `without` says which columns it cannot have, and why."""

    name: str
    start: Callable[..., AbstractContextManager[Running]]
    reasons: Mapping[str, FinishReason]
    """What is asked for → how its answer ends."""
    without: Mapping[str, str]
    ask: Callable[[str], ChatRequest] = lambda model: ChatRequest(prompt=PROMPT, model=model)
    """The request for a behaviour."""
    api: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.api})" if self.api else self.name


_ALL_REASONS = {
    "echo": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "filtered": FinishReason.CONTENT_FILTER,
}


@contextlib.contextmanager
def _openai(**config: Any) -> Iterator[Running]:
    with FakeOpenAI() as fake:
        yield Running(openai.make(openai.Config(base_url=f"{fake.url}/v1", **config), 4), fake)


@contextlib.contextmanager
def _ollama(**config: Any) -> Iterator[Running]:
    with FakeOllama() as fake:
        yield Running(ollama.make(ollama.Config(base_url=fake.url, **config), 4), fake)


@contextlib.contextmanager
def _bedrock(**config: Any) -> Iterator[Running]:
    with FakeBedrock() as fake, pytest.MonkeyPatch.context() as environ:
        environ.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        environ.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        environ.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
        yield Running(bedrock.make(bedrock.Config(endpoint_url=fake.url, **config), 4), fake)


@contextlib.contextmanager
def _titan(**config: Any) -> Iterator[Running]:
    with _bedrock(api="titan", **config) as running:
        yield running


@contextlib.contextmanager
def _scripted(**config: Any) -> Iterator[Running]:
    yield Running(scripted.make(scripted.Config(**config), 4), None)


@contextlib.contextmanager
def _llamacpp(**config: Any) -> Iterator[Running]:
    provider = llamacpp.make(llamacpp.Config(**config), 1)
    engine = provider._server = CountingEngine(provider._server)
    try:
        yield Running(provider, None, lambda: engine.chunks)
    finally:
        provider.close()


_IN_PROCESS = "it runs in this process: there is no connection"
_OWN_TEST = f"{_IN_PROCESS}; joining has a test of its own"
_ONE_MODEL = "the built-in model does not do that; the codec is that of `openai`"

_OF_THE_DEMO_MODEL = {
    "echo": ChatRequest(prompt="Name three colors."),
    "length": ChatRequest(prompt="Who are you?", max_tokens=2),
    "unknown": ChatRequest(prompt=PROMPT, model="unknown"),
}
# It is rewarded for saying the same again, and goes on as long as its context lasts.
_ENDLESS = ChatRequest(prompt="a a a a a a a a", frequency_penalty=-2.0, max_tokens=4000)

ENGINES = (
    Engine(
        "llamacpp",
        _llamacpp,
        {"echo": FinishReason.STOP, "length": FinishReason.LENGTH},
        {
            "slow reader": _OWN_TEST,
            "reasoning": _ONE_MODEL,
            "error in the stream": _IN_PROCESS,
            "cut stream": _IN_PROCESS,
            "garbage": _IN_PROCESS,
            "timeout": f"{_IN_PROCESS}; the deadline counts",
            "cancel before headers": _IN_PROCESS,
        },
        lambda model: _OF_THE_DEMO_MODEL.get(model, _ENDLESS),
    ),
    Engine("ollama", _ollama, {"echo": FinishReason.STOP, "length": FinishReason.LENGTH}, {}),
    Engine("openai", _openai, _ALL_REASONS, {}),
    Engine("bedrock", _bedrock, _ALL_REASONS, {}),
    Engine("bedrock", _titan, _ALL_REASONS, {"reasoning": "Titan Text's format has no place for it"}, api="titan"),
    Engine(
        "scripted",
        _scripted,
        {"echo": FinishReason.STOP, "slow": FinishReason.LENGTH, "filtered": FinishReason.CONTENT_FILTER},
        {
            "slow reader": _OWN_TEST,
            "timeout": f"{_IN_PROCESS}; the deadline counts",
            "cancel before headers": _IN_PROCESS,
        },
    ),
)
