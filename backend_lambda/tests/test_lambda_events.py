"""Events of AWS to requests and answers back to what Lambda returns, without Lambda."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from backend_lambda.lambda_events import Request, is_http, last_segment, read, size, write
from lambdalm.errors import Code, LlmError
from lambdalm.http.contract import Reply

BODY = '{"prompt": "Grüße"}'


def rest_api(**changes: Any) -> dict[str, Any]:
    """As a REST API sends it (version 1.0)."""
    return {
        "resource": "/query",
        "path": "/query",
        "httpMethod": "POST",
        "headers": {"Content-Type": "application/json", "X-Request-Id": "r1"},
        "multiValueHeaders": {"Content-Type": ["application/json"], "X-Request-Id": ["r1"]},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {"stage": "prod", "path": "/prod/query", "httpMethod": "POST"},
        "body": BODY,
        "isBase64Encoded": False,
        **changes,
    }


def http_api(method: str = "POST", **changes: Any) -> dict[str, Any]:
    """As an HTTP API or a function URL sends it (version 2.0)."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/query",
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "x-request-id": "r1"},
        "requestContext": {"stage": "$default", "http": {"method": method, "path": "/query", "protocol": "HTTP/1.1"}},
        "body": BODY,
        "isBase64Encoded": False,
        **changes,
    }


@pytest.mark.parametrize("make", [rest_api, http_api])
def test_both_versions_give_the_same_request(make: Any) -> None:
    event = make()
    assert is_http(event)
    headers = {"content-type": "application/json", "x-request-id": "r1"}
    assert read(event) == Request("POST", "/query", headers, BODY.encode())


@pytest.mark.parametrize("make", [rest_api, http_api])
def test_a_body_in_base64_is_decoded(make: Any) -> None:
    given = base64.b64encode(BODY.encode()).decode()
    assert read(make(body=given, isBase64Encoded=True)).body == BODY.encode()


@pytest.mark.parametrize("make", [rest_api, http_api])
@pytest.mark.parametrize("given", ["not base64!", "aGk=!", "abc", "é"])
def test_a_body_that_is_not_base64_is_refused(make: Any, given: str) -> None:
    with pytest.raises(LlmError, match="the body cannot be read") as refused:
        read(make(body=given, isBase64Encoded=True))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_body_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(LlmError, match="the body cannot be read"):
        read(http_api(body="\ud800"))


@pytest.mark.parametrize("make", [rest_api, http_api])
def test_an_event_without_headers_and_body_is_a_request_without_them(make: Any) -> None:
    event = make(headers=None, body=None, **({"multiValueHeaders": None} if make is rest_api else {}))
    assert read(event)[2:] == ({}, b"")


def test_a_header_sent_twice_is_joined_as_servers_do() -> None:
    event = rest_api(headers={"Accept": "b"}, multiValueHeaders={"Accept": ["a", "b"]})
    assert read(event).headers == {"accept": "a,b"}


def test_an_event_with_only_the_simple_headers_has_them() -> None:
    assert read(rest_api(headers={"Accept": "b"}, multiValueHeaders=None)).headers == {"accept": "b"}


@pytest.mark.parametrize(
    "event", [rest_api(body=7), http_api(rawPath=7), http_api(requestContext={}), rest_api(path=None)]
)
def test_an_event_that_is_not_like_api_gateways_is_refused(event: Any) -> None:
    with pytest.raises(LlmError, match="the event is not one of API Gateway's") as refused:
        read(event)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_any_other_event_is_the_body_of_a_query_that_does_not_stream() -> None:
    event = {"prompt": "hi", "stream": True}
    assert not is_http(event)
    asked = read(event)
    assert asked[:3] == ("POST", "/query", {"content-type": "application/json"})
    assert json.loads(asked.body) == {"prompt": "hi", "stream": False}


@pytest.mark.parametrize("event", ["hi", 7, None, ["hi"]])
def test_an_event_may_be_any_json(event: Any) -> None:
    assert json.loads(read(event).body) == event


@pytest.mark.parametrize("make", [rest_api, http_api])
def test_an_answer_is_what_api_gateway_takes(make: Any) -> None:
    reply = Reply(404, {"Content-Type": "application/json"}, '{"text": "Grüße"}'.encode())
    assert write(reply, make()) == {
        "statusCode": 404,
        "headers": {"Content-Type": "application/json"},
        "body": '{"text": "Grüße"}',
        "isBase64Encoded": False,
    }


def test_the_answer_to_a_direct_invocation_is_the_body_itself() -> None:
    assert write(Reply(200, {}, b'{"text": "hi"}\n'), {"prompt": "hi"}) == {"text": "hi"}


def test_the_size_is_that_of_the_whole_result_with_its_escapes() -> None:
    assert size({"body": '"λ"'}) == len('{"body": "\\"\\u03bb\\""}')


@pytest.mark.parametrize(
    ("path", "found"),
    [("/query", "query"), ("/prod/query", "query"), ("/api/v1/query", "query"), ("/query/more", "more"), ("/", "")],
)
def test_what_is_asked_for_is_the_last_segment_of_the_path(path: str, found: str) -> None:
    assert last_segment(path) == found


def test_a_direct_invocation_that_is_no_text_is_an_invalid_argument() -> None:
    with pytest.raises(LlmError) as failed:
        read({"prompt": "\ud800"})
    assert failed.value.code is Code.INVALID_ARGUMENT
