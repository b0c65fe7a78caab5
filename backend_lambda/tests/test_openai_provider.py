"""What is particular to the OpenAI-style provider; what all do is in test_provider_contract.py.

The real peer is llama.cpp's own HTTP server, which the engine's library brings along, on the built-in model.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xllamacpp

from backend_lambda.providers import llamacpp
from backend_lambda.providers.openai import Config, OpenAIProvider, make
from lambdalm.chat import ChatRequest
from lambdalm.errors import Code, LlmError
from lambdalm.events import Finished, FinishReason, Started, TextDelta, checked, collect
from lambdalm.testing.fake_engine import BEHAVIOURS, Said
from lambdalm.testing.fake_http import Exchange, Reply
from lambdalm.testing.fake_openai import FakeOpenAI

from .conftest import WAIT, new_call

CANARY = "sk-canary-0123456789"


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as fake:
        yield fake


def provider(fake: FakeOpenAI, **config: Any) -> OpenAIProvider:
    return make(Config(base_url=f"{fake.url}/v1", **config), 4)


def sent(fake: FakeOpenAI) -> dict[str, Any]:
    """The body of the last request."""
    body = json.loads(fake.asked[-1].body)
    assert isinstance(body, dict)
    return body


def ask(asked: OpenAIProvider, **request: Any) -> str:
    return collect(asked.stream(ChatRequest(**{"prompt": "Hi", **request}), new_call())).text


def failure(asked: OpenAIProvider, **request: Any) -> LlmError:
    with pytest.raises(LlmError) as failed:
        ask(asked, **request)
    return failed.value


def test_the_defaults_of_the_config_go_along_and_the_request_beats_them(fake: FakeOpenAI) -> None:
    asked = provider(fake, model="echo", temperature=0.2, top_p=0.3, max_tokens=4)
    ask(asked)
    assert {name: sent(fake)[name] for name in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "echo",
        "temperature": 0.2,
        "top_p": 0.3,
        "max_tokens": 4,
    }
    ask(asked, model="length", temperature=0.0, top_p=1.0, max_tokens=9)
    assert {name: sent(fake)[name] for name in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "length",
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 9,
    }


def test_what_neither_says_is_left_to_the_server(fake: FakeOpenAI) -> None:
    assert ask(provider(fake)) == "Hi"
    assert set(sent(fake)) == {"messages", "stream", "stream_options"}


def test_the_field_for_the_number_of_tokens_can_be_the_newer_one(fake: FakeOpenAI) -> None:
    ask(provider(fake, max_tokens_field="max_completion_tokens"), max_tokens=9)
    assert sent(fake)["max_completion_tokens"] == 9
    assert "max_tokens" not in sent(fake)


def test_the_key_goes_as_a_bearer_and_comes_from_a_file_or_the_config(fake: FakeOpenAI, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{CANARY}\n")
    for asked in (provider(fake, api_key=CANARY), provider(fake, api_key_file=str(file))):
        ask(asked)
        assert fake.asked[-1].headers["authorization"] == f"Bearer {CANARY}"
    ask(provider(fake))
    assert "authorization" not in fake.asked[-1].headers


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"api_key_file": "no/such/file"}, "no/such/file cannot be read"),
        ({"api_key_file": "."}, "cannot be read"),
        ({"api_key": "a\nb"}, "printable ASCII"),
        ({"api_key": "ключ"}, "printable ASCII"),
        ({"api_key": "a", "api_key_file": "b"}, "both set"),
    ],
)
def test_a_key_that_cannot_be_had_stops_the_start(fake: FakeOpenAI, config: dict[str, str], named: str) -> None:
    with pytest.raises(LlmError, match=named) as failed:
        provider(fake, **config)
    assert failed.value.code is Code.FAILED_PRECONDITION
    assert "provider.openai.api_key" in failed.value.message


def test_a_wrong_key_is_unauthenticated_with_what_to_set() -> None:
    with FakeOpenAI(key="another") as fake:
        error = failure(provider(fake, api_key=CANARY))
    assert (error.code, error.origin) == (Code.UNAUTHENTICATED, "openai")
    assert "OPENAI_API_KEY_FILE" in error.message


class _Telltale(FakeOpenAI):
    """A server whose errors repeat the key, before the stream and in it."""

    def answer(self, exchange: Exchange) -> None:
        self.key = exchange.asked.headers["authorization"]
        if exchange.asked.path == "/v1/models":
            return exchange.reply(self.refusal(None, ""))
        return super().answer(exchange)

    def refusal(self, request: Any, why: str) -> Reply:
        return Reply(500, json.dumps({"error": {"message": f"bad key {self.key}"}}).encode())

    def failure(self, request: Any) -> bytes:
        return b"data: %b\n\n" % json.dumps({"error": f"bad key {self.key}"}).encode()


@pytest.mark.parametrize("model", ["error-before", "error-in-stream"])
def test_a_key_that_the_server_repeats_is_hidden(model: str) -> None:
    with _Telltale() as fake:
        asked = provider(fake, api_key=CANARY)
        for message in (failure(asked, model=model).message, asked.health().detail):
            assert "bad key Bearer ********" in message
            assert CANARY not in message


def test_llama_servers_error_field_of_2025_is_an_error() -> None:
    with FakeOpenAI(error_field=True) as fake:
        error = failure(provider(fake), model="error-in-stream")
    assert error.message.endswith("failed in the middle of its answer: the engine died")


def test_a_throttling_server_says_when_to_come_back(fake: FakeOpenAI) -> None:
    assert failure(provider(fake), model="throttle").retry_after == 2


class _StaysOpen(FakeOpenAI):
    """A server that says [DONE] and does not end its body."""

    def play(self, request: Any, exchange: Exchange) -> None:
        exchange.begin(self.stream_type)
        exchange.send(self.text(request, "Hi") + self.ending(request, Said("Hi", "", "stop", (1, 1))))
        exchange.pause(None)


def test_an_answer_is_over_when_the_server_says_so_and_not_when_it_closes() -> None:
    with _StaysOpen() as fake:
        assert ask(provider(fake)) == "Hi"
        assert fake.hung_up.acquire(timeout=WAIT)


class _Whole(FakeOpenAI):
    """A server that does not stream, whatever it is asked."""

    def play(self, request: Any, exchange: Exchange) -> None:
        super().play(request._replace(stream=False), exchange)


def test_an_answer_in_one_piece_is_an_answer() -> None:
    with _Whole() as fake:
        answer = collect(provider(fake).stream(ChatRequest(prompt="Hi", model="thinking"), new_call()))
    assert (answer.text, answer.model, answer.finish_reason) == ("Hello!", "thinking", FinishReason.STOP)
    assert answer.reasoning == "The user said something."
    assert answer.usage is not None


def test_the_models_are_the_servers_the_configured_one_first(fake: FakeOpenAI) -> None:
    assert [info.id for info in provider(fake).models()] == list(BEHAVIOURS)
    assert [info.id for info in provider(fake, model="cut").models()][:2] == ["cut", "echo"]
    assert [info.id for info in provider(fake, model="mine").models()][:2] == ["mine", "echo"]


def test_health_is_that_of_the_server() -> None:
    with FakeOpenAI() as fake:
        asked = provider(fake, model="echo")
        assert asked.health().ok
    health = asked.health()
    assert not health.ok
    assert f"openai at {fake.url}/v1 cannot be reached" in health.detail
    assert [info.id for info in asked.models()] == ["echo"]


class Peer(NamedTuple):
    """llama.cpp's HTTP server."""

    url: str
    key: str
    server: Any


@pytest.fixture(scope="module")
def peer() -> Peer:
    config, key = llamacpp.Config(context_tokens=512), secrets.token_hex(16)
    parameters = llamacpp._parameters(config, llamacpp._BUILTIN_FILE, 1)
    parameters.api_keys = [key]
    server = llamacpp._load(parameters, llamacpp._BUILTIN_FILE)
    assert isinstance(server, xllamacpp.Server)
    return Peer(server.listening_address, key, server)


@pytest.fixture
def real(peer: Peer) -> OpenAIProvider:
    return make(Config(base_url=f"{peer.url}/v1", api_key=peer.key), 1)


def test_the_real_server_answers_in_a_stream(real: OpenAIProvider) -> None:
    events = list(checked(real.stream(ChatRequest(prompt="What is the capital of France?"), new_call())))
    assert events[0] == Started("r1", "lambdalm-demo")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "The capital of France is Paris."
    assert isinstance(events[-1], Finished)
    assert events[-1].usage is not None
    assert (events[-1].usage.completion_tokens or 0) > 3


def test_the_real_server_says_which_model_answers_whatever_was_asked_for(real: OpenAIProvider) -> None:
    """llama-server has one model and takes any name for it; the answer does not repeat the wrong name."""
    answer = collect(real.stream(ChatRequest(prompt="Hello!", model="gpt-4"), new_call()))
    assert answer.model == "lambdalm-demo"


def test_the_real_server_refuses_a_wrong_key(peer: Peer) -> None:
    error = failure(make(Config(base_url=f"{peer.url}/v1", api_key=CANARY), 1))
    assert error.code is Code.UNAUTHENTICATED
    assert CANARY not in error.message


def test_cancelling_frees_the_real_servers_only_slot(real: OpenAIProvider) -> None:
    endless = ChatRequest(prompt="a a a a a a a a", frequency_penalty=-2.0, max_tokens=1024)
    call = new_call()
    stream = real.stream(endless, call)
    assert isinstance(next(stream), Started)
    call.cancel("enough")
    with pytest.raises(LlmError) as failed:
        list(stream)
    assert failed.value.code is Code.CANCELLED
    assert collect(real.stream(ChatRequest(prompt="Hello!"), new_call(WAIT))).text


def test_the_real_server_is_healthy_and_names_its_model(real: OpenAIProvider) -> None:
    assert real.health().ok
    assert [info.id for info in real.models()] == ["lambdalm-demo"]
