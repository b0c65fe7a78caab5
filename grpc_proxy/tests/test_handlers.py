"""Requests that are no messages of llm.proto: refused like any other, after the key check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_proxy import handlers
from grpc_proxy.keys import change_keys, new_key
from grpc_proxy.ledger import Limits
from lambdalm_proto.v1 import llm_pb2 as pb

from .conftest import all_ended, new_config, proxy_here, proxy_process, whole_proxy_here
from .test_metrics import samples
from .test_service import details, fails, refused, trailing_of

NOWHERE = "http://127.0.0.1:1/query"
SERVICE = pb.DESCRIPTOR.services_by_name["LlmService"]
MALFORMED = [
    *((method, data) for method in SERVICE.methods_by_name for data in (b"\xff", b"\x0a\x05hi")),
    ("Generate", b"\x0a\x02\xff\xfe"),
    ("Generate", b"\x0b" * 200),
]
"""No field; a text that is cut off; one that is no UTF-8; groups in groups, deeper than a parser goes."""


def asked(channel: grpc.aio.Channel, method: str, data: bytes, **more: Any) -> Any:
    """This method called with these bytes, whatever they are."""
    streams = method in SERVICE.methods_by_name and SERVICE.methods_by_name[method].server_streaming
    kind: Any = channel.unary_stream if streams else channel.unary_unary
    return kind(f"/{SERVICE.full_name}/{method}")(data, **more)


async def refusal(channel: grpc.aio.Channel, method: str, data: bytes, **more: Any) -> grpc.aio.AioRpcError:
    call = asked(channel, method, data, **more)
    if method == "GenerateStream":
        events, error = await fails(call)
        assert events == []
        return error
    return await refused(call)


@pytest.mark.parametrize(("method", "data"), MALFORMED)
async def test_malformed_request_is_an_invalid_argument(method: str, data: bytes) -> None:
    async with whole_proxy_here(new_config(NOWHERE)) as here:
        error = await refusal(here.channel, method, data, metadata=[("x-request-id", "r7")])
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = SERVICE.methods_by_name[method].input_type.full_name
        assert error.details() == f"the request cannot be read as {request}: is the client made from our llm.proto?"
        assert details(error) == ("proxy", None)
        assert trailing_of(error)["x-request-id"] == "r7"
        assert "proxy" in trailing_of(error)["server-timing"]
        await all_ended(here.proxy)
        assert samples(here.proxy.metrics)["llm_service_requests_total", "INVALID_ARGUMENT", method] == 1


async def test_malformed_request_needs_a_good_key_first(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    key, entry = new_key("ada", [], Limits())
    change_keys(file, lambda _: {entry.id: entry})
    async with proxy_here(new_config(NOWHERE, keys={"file": str(file)})) as channel:
        for presented, code in ((None, "UNAUTHENTICATED"), ("lm-1-2", "UNAUTHENTICATED"), (key, "INVALID_ARGUMENT")):
            metadata = [] if presented is None else [("x-api-key", presented)]
            assert (await refusal(channel, "Generate", b"\xff", metadata=metadata)).code().name == code


def test_malformed_request_has_its_line_and_no_traceback() -> None:
    with proxy_process(NOWHERE, LOG_FORMAT="json") as chain:
        with grpc.insecure_channel(chain.grpc_target) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE.full_name}/GetStats", None, None)(b"\xff")
        hop = chain.hops["proxy"]
        hop.stop()
    (line,) = [json.loads(line) for line in hop.tail if '"failed"' in line]
    assert (line["code"], line["method"], line["level"]) == ("INVALID_ARGUMENT", "GetStats", "info")
    assert not any("Traceback" in line for line in hop.tail)


async def test_unknown_method_stays_unimplemented() -> None:
    async with proxy_here(new_config(NOWHERE)) as channel:
        assert (await refused(asked(channel, "NoSuch", b""))).code() is grpc.StatusCode.UNIMPLEMENTED


def test_what_is_serialized_already_passes_as_it_is() -> None:
    event = pb.LLMStreamEvent(text_delta=pb.TextDelta(text="hi"))
    assert handlers.serialize(event) == event.SerializeToString()
    assert handlers.serialize(b"\xff") == b"\xff"
