"""`GET /chain`: every hop from this one on, and the first that is broken. It spends no model time."""

from __future__ import annotations

from collections.abc import Sequence

import flask
import msgspec

from lambdalm.call import Call
from lambdalm.errors import Code, LlmError
from lambdalm.http.app import HttpHop
from lambdalm_proto.v1 import llm_pb2 as pb
from restful_proxy import caller
from restful_proxy.link import PROXY
from restful_proxy.upstream import GrpcProxy

_SECONDS = 2.0


class HopStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One hop. `name` says which of several, `detail` why it is not ok, or what runs there."""

    hop: str
    ok: bool
    name: str = ""
    detail: str = ""


class Chain(msgspec.Struct, frozen=True):
    """The body of `GET /chain`, this hop first; `first_broken` is null when none is."""

    hops: Sequence[HopStatus]
    first_broken: str | None


def add_chain(hop: HttpHop, proxy: GrpcProxy) -> None:
    """Serve it on this hop, also when that takes no more requests: 200 when no hop is broken, else 503."""

    @hop.app.get("/chain")
    async def chain() -> flask.Response:
        call = Call(flask.g.request_id, _SECONDS, flask.g.clock)
        found = joined(_edge(hop), await _behind(proxy, call))
        return hop.answer(found, call.clock, status=200 if found.first_broken is None else 503)


def joined(edge: HopStatus, behind: Chain) -> Chain:
    """The whole chain: this hop, then what the proxy tells."""
    return Chain([edge, *behind.hops], behind.first_broken if edge.ok else edge.hop)


def _edge(hop: HttpHop) -> HopStatus:
    stopping = hop.lifecycle.draining.is_set()
    return HopStatus(hop.name, not stopping, detail="shutting down" if stopping else "")


async def _behind(proxy: GrpcProxy, call: Call) -> Chain:
    try:
        found: pb.GetChainResponse = await proxy.ask("GetChain", pb.GetChainRequest(), call, caller.current())
    except LlmError as error:
        if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
            raise
        return Chain([HopStatus(PROXY, ok=False, detail=error.message)], PROXY)
    hops = [HopStatus(each.hop, each.ok, each.name, each.detail) for each in found.hops]
    return Chain(hops, found.first_broken or None)
