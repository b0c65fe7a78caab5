"""What the chain promises as a whole: one shape on both HTTP hops, byte-exact text, and hops that come and go."""

from __future__ import annotations

import grpc
import pytest
import requests
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdalm.testing.chain import Chain, ChainError, free_ports
from tests.conftest import bedrest, events_of, frames, pass_first_delta, post, text_of, until

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300).filter(lambda text: text.strip())
ON_THE_CHAIN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_both_http_hops_speak_the_same_query(scripted: Chain) -> None:
    for stream in (False, True):
        shapes = []
        for url in (scripted.url, scripted.backend_url):
            response = post(url, {"prompt": "Hello", "stream": stream, "memory": "off"})
            assert response.status_code == 200
            assert response.headers["X-Request-Id"]
            shapes.append(frames(response)[-1] if stream else response.json())
        edge, backend = shapes
        assert set(edge) == set(backend)
        assert list(edge["timings"]) == ["backend", "proxy", "edge"]
        assert list(backend["timings"]) == ["backend"]


@ON_THE_CHAIN
@given(text=TEXT)
def test_any_text_comes_back_byte_for_byte(scripted: Chain, text: str) -> None:
    assert post(scripted.url, {"prompt": text}).json()["text"] == text
    assert text_of(frames(post(scripted.url, {"prompt": text, "stream": True}))) == text


def test_the_request_id_goes_through_all_hops(scripted: Chain) -> None:
    response = post(scripted.url, {"prompt": "Hello"}, headers={"X-Request-Id": "my-id.1"})
    assert response.headers["X-Request-Id"] == "my-id.1"
    assert response.json()["id"] == "my-id.1"
    refused = post(scripted.url, {"prompt": "Hello"}, headers={"X-Request-Id": "not an id"})
    assert refused.status_code == 400
    assert "X-Request-Id" in refused.json()["error"]["message"]


def test_all_parameters_reach_the_engine(llamacpp: Chain) -> None:
    conversation = [{"role": "user", "content": "Hello!"}]
    parameters = {"max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["zzz"]}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5}
    answer = post(llamacpp.url, {"messages": conversation, **parameters, **penalties}).json()
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["finish_reason"] == "length"


def test_a_grpc_client_with_nothing_but_reflection(llamacpp: Chain) -> None:
    with grpc.insecure_channel(llamacpp.grpc_target) as channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("lambdalm.v1.LlmService")

        def call(name: str, **fields: object) -> object:
            method = service.methods_by_name[name]
            request = message_factory.GetMessageClass(method.input_type)(**fields)
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            answer_type = message_factory.GetMessageClass(method.output_type)
            rpc = kind(f"/{service.full_name}/{name}", type(request).SerializeToString, answer_type.FromString)
            return rpc(request, timeout=20)

        text = call("generateText", prompt="Hello!", max_tokens=20).text  # type: ignore[attr-defined]
        assert text
        assert call("Generate", prompt="Hello!", parameters={"temperature": 0}).text == text  # type: ignore[attr-defined]
        events = list(call("GenerateStream", prompt="Hello!"))  # type: ignore[call-overload]
        assert next(event.WhichOneof("event") for event in events) == "started"
        assert events[-1].WhichOneof("event") == "finished"
        assert "".join(event.text_delta.text for event in events) == text


def test_a_backend_killed_in_a_stream_is_told_and_comes_back(own_scripted: Chain) -> None:
    with post(own_scripted.url, {"prompt": "x", "model": "slow", "max_tokens": 1000, "stream": True}) as response:
        events = events_of(response)
        pass_first_delta(events)
        own_scripted.hops["backend"].kill()
        *_, end = events
    assert end["type"] == "error"
    assert end["error"]["code"] == "UNAVAILABLE"
    assert end["error"]["origin"] == "backend"

    down = post(own_scripted.url, {"prompt": "x"})
    assert down.status_code == 503
    assert down.json()["error"]["origin"] == "backend"
    assert "Retry-After" in down.headers
    until(lambda: requests.get(f"{own_scripted.url}/readyz", timeout=5).status_code == 503, "not ready")
    assert requests.get(f"{own_scripted.url}/healthz", timeout=5).status_code == 200
    told = bedrest(own_scripted, "ask", "x")
    assert told.returncode == 1
    assert "backend" in told.stderr

    own_scripted.start("backend")
    own_scripted.wait_ready()
    assert post(own_scripted.url, {"prompt": "x"}).json()["text"] == "x"


def test_a_proxy_killed_in_a_stream_is_told_and_comes_back(own_scripted: Chain) -> None:
    with post(own_scripted.url, {"prompt": "x", "model": "slow", "max_tokens": 1000, "stream": True}) as response:
        events = events_of(response)
        pass_first_delta(events)
        own_scripted.hops["proxy"].kill()
        *_, end = events
    assert (end["type"], end["error"]["code"], end["error"]["origin"]) == ("error", "UNAVAILABLE", "proxy")
    down = post(own_scripted.url, {"prompt": "x"})
    assert (down.status_code, down.json()["error"]["origin"]) == (503, "proxy")
    own_scripted.start("proxy")
    own_scripted.wait_ready()
    assert post(own_scripted.url, {"prompt": "x"}).json()["text"] == "x"


@pytest.mark.parametrize("hop", ["edge", "proxy", "backend"])
def test_a_stream_under_way_is_finished_on_sigterm(own_scripted: Chain, hop: str) -> None:
    with post(own_scripted.url, {"prompt": "x", "model": "slow", "max_tokens": 20, "stream": True}) as response:
        events = events_of(response)
        pass_first_delta(events)
        own_scripted.hops[hop].process.terminate()
        *_, end = events
    assert (end["type"], end["reason"]) == ("finished", "length")
    assert own_scripted.hops[hop].process.wait(60) == 0  # a second SIGTERM might meet a process that is nearly gone


def test_a_chain_that_does_not_get_ready_says_what_its_backend_says() -> None:
    environ = {"PROVIDER": "ollama", "OLLAMA_URL": "http://127.0.0.1:1"}
    with pytest.raises(ChainError, match="OLLAMA_URL"), Chain(free_ports(), environ, patience=0.1):
        pass


def test_with_a_token_the_backend_wants_it_and_the_proxy_brings_it() -> None:
    with Chain(free_ports(), {"PROVIDER": "scripted", "BACKEND_TOKEN": "t"}) as chain:
        assert post(chain.backend_url, {"prompt": "hi"}).status_code == 401
        assert post(chain.url, {"prompt": "hi"}).json()["text"] == "hi"
