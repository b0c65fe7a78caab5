from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.chat import ChatRequest, Message, QueryBody, decode_query, encode_query, validate
from lambdalm.errors import Code, LlmError

from . import strategies


def refused(body: bytes) -> str:
    """The message with which the body of a query is refused."""
    with pytest.raises(LlmError) as caught:
        decode_query(body).request()
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def with_prompt(rest: str) -> bytes:
    return b'{"prompt":"x",%b}' % rest.encode()


@given(strategies.requests(), st.booleans())
def test_any_request_survives_query_json(request: ChatRequest, stream: bool) -> None:
    body = decode_query(encode_query(request, stream))
    assert body.stream is stream
    assert body.request() == request


@pytest.mark.parametrize(
    ("rest", "field"),
    [
        ('"max_tokens":"9"', "max_tokens"),
        ('"max_tokens":1.5', "max_tokens"),
        ('"max_tokens":true', "max_tokens"),
        ('"max_tokens":0', "max_tokens"),
        ('"max_tokens":-1', "max_tokens"),
        ('"max_tokens":2147483648', "max_tokens"),
        ('"max_tokens":1e400', "max_tokens"),
        ('"max_tokens":' + "9" * 400, "max_tokens"),
        ('"maxTokens":0', "maxTokens"),
        ('"temperature":"hot"', "temperature"),
        ('"temperature":-0.1', "temperature"),
        ('"temperature":2.1', "temperature"),
        ('"temperature":1e400', "temperature"),
        ('"temperature":[]', "temperature"),
        ('"top_p":1.1', "top_p"),
        ('"presence_penalty":-2.1', "presence_penalty"),
        ('"frequency_penalty":2.1', "frequency_penalty"),
        ('"seed":9223372036854775808', "seed"),
        ('"seed":-9223372036854775809', "seed"),
        ('"seed":0.5', "seed"),
        ('"stop":""', "stop"),
        ('"stop":7', "stop"),
        ('"stop":["a",""]', "stop[1]"),
        ('"stop":["a",7]', "stop[1]"),
        ('"stop":"' + "x" * 1025 + '"', "stop"),
        ('"stop":[' + ",".join(['"x"'] * 17) + "]", "stop"),
        ('"model":""', "model"),
        ('"model":"' + "x" * 257 + '"', "model"),
        ('"session_id":""', "session_id"),
        ('"session_id":7', "session_id"),
        ('"session_id":"s","memory":"off"', "session_id"),
        ('"memory":"no"', "memory"),
        ('"on_disconnect":"stay"', "on_disconnect"),
        ('"system":""', "system"),
        ('"stream":"yes"', "stream"),
        ('"stream":1', "stream"),
        ('"messages":{}', "messages"),
    ],
)
def test_a_bad_value_is_refused_by_its_fields_name(rest: str, field: str) -> None:
    assert refused(with_prompt(rest)).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('{"role":"boss","content":"x"}', "messages[1].role"),
        ('{"role":"user"}', "messages[1]"),
        ('{"role":"user","content":null}', "messages[1].content"),
        ('{"role":"user","content":[{"type":"text","text":"x"}]}', "messages[1].content"),
        ('{"role":"user","content":"x","name":"y"}', "messages[1]"),
        ('"x"', "messages[1]"),
    ],
)
def test_a_bad_turn_is_refused_by_its_place(message: str, field: str) -> None:
    body = b'{"messages":[{"role":"user","content":"x"},%b]}' % message.encode()
    assert refused(body).startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["promt", "max_token", "n", "tools", "Prompt", ""])
def test_an_unknown_field_is_refused_by_its_name(field: str) -> None:
    assert f"unknown field `{field}`" in refused(with_prompt(f'"{field}":1'))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "prompt"),
        (b'{"prompt":null}', "prompt"),
        (b'{"prompt":""}', "prompt"),
        (b'{"prompt":" \\n\\t "}', "prompt"),
        (b'{"prompt":7}', "prompt"),
        (b'{"messages":[]}', "messages"),
        (b'{"prompt":"x","messages":[{"role":"user","content":"x"}]}', "messages"),
        (b'{"messages":[{"role":"user","content":"x"}],"session_id":"s"}', "messages"),
        (b'{"messages":[{"role":"user","content":"x"}],"system":"s"}', "system"),
    ],
)
def test_either_a_prompt_or_a_conversation_must_be_given(body: bytes, field: str) -> None:
    assert refused(body).startswith(f"{field}: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b'{"prompt":"x"',
        b"{'prompt':'x'}",
        b'{"prompt":"x"} {}',
        b'{"prompt":"x","temperature":NaN}',
        b'{"prompt":"x","temperature":Infinity}',
        b'{"prompt":"x","temperature":-Infinity}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":"\\udc00"}',
        b'{"prompt":"a\\ud83dz"}',
        b'{"prompt":"\xff"}',
        b'{"prompt":"\xed\xa0\x80"}',
        b'{"prompt":"\xc0\xaf"}',
        b'\xff\xfe{"prompt":"x"}',
        b'{"prompt":"line\nend"}',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert refused(body).startswith("the body is not JSON")


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"x"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert "Expected `object`" in refused(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"prompt":' + b"[" * 100_000,
        b'{"prompt":"x","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' * 100_000,
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"prompt":"x"}',
    ],
)
def test_deep_nesting_is_refused(body: bytes) -> None:
    refused(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_query_or_an_invalid_argument(body: bytes) -> None:
    codes = []
    try:
        decode_query(body)
    except LlmError as error:
        codes.append(error.code)
    assert codes in ([], [Code.INVALID_ARGUMENT])


def test_escaped_pairs_of_surrogates_are_one_character() -> None:
    assert decode_query(b'{"prompt":"\\ud83d\\ude00"}').prompt == "\U0001f600"


def test_max_tokens_has_an_alias() -> None:
    assert decode_query(with_prompt('"maxTokens":7')).request().max_tokens == 7
    assert decode_query(with_prompt('"maxTokens":7,"max_tokens":7')).request().max_tokens == 7


def test_an_alias_that_says_something_else_is_refused() -> None:
    assert refused(with_prompt('"maxTokens":7,"max_tokens":8')).startswith("maxTokens: ")


@pytest.mark.parametrize(("stop", "texts"), [('"a"', ("a",)), ('["a","b"]', ("a", "b")), ("[]", ()), ("null", ())])
def test_stop_is_a_text_or_a_list(stop: str, texts: tuple[str, ...]) -> None:
    assert decode_query(with_prompt(f'"stop":{stop}')).request().stop == texts


def test_the_bounds_are_allowed() -> None:
    rest = '"temperature":2,"top_p":0,"presence_penalty":-2,"frequency_penalty":2,"max_tokens":2147483647'
    request = decode_query(with_prompt(rest)).request()
    assert (request.temperature, request.top_p, request.presence_penalty) == (2, 0, -2)
    assert request.max_tokens == 2147483647


def test_a_temperature_of_zero_is_not_none() -> None:
    request = decode_query(with_prompt('"temperature":0')).request()
    assert request.temperature == 0
    assert request.temperature is not None
    assert b'"temperature":0' in encode_query(request, False)


def test_what_is_not_given_is_none() -> None:
    assert decode_query(b'{"prompt":"x"}').request() == ChatRequest(prompt="x")


def test_a_prompt_is_a_conversation_of_one_message() -> None:
    assert ChatRequest(prompt="x").conversation() == (Message("user", "x"),)
    assert ChatRequest(prompt="x", system="s").conversation() == (Message("system", "s"), Message("user", "x"))
    turns = (Message("system", "s"), Message("user", "u"))
    assert ChatRequest(messages=turns).conversation() == turns


def test_a_request_that_is_not_from_json_is_validated_too() -> None:
    with pytest.raises(LlmError, match=r"^prompt: "):
        validate(ChatRequest(prompt=" "))


def test_a_query_can_ask_for_all_that_a_request_has() -> None:
    assert set(ChatRequest.__struct_fields__) == set(QueryBody.__struct_fields__) - {"maxTokens", "stream"}
    assert msgspec.json.decode(encode_query(ChatRequest(prompt="x"), True)) == {"prompt": "x", "stream": True}
