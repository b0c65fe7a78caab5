"""The chain from this hop on, as it was seen last: for whoever wants to know which hop is broken. It asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grpc_proxy.pool import Pool

BACKEND = "backend"


class Hop(NamedTuple):
    """One hop's state; `detail` says why it is broken, or what runs there."""

    hop: str
    name: str
    ok: bool
    detail: str


def hops(pool: Pool, store: str, store_why: str | None, stopping: str | None) -> list[Hop]:
    """This hop, its store, and each upstream."""
    here = Hop("proxy", "", stopping is None, stopping or "serving")
    kept = Hop("store", store, store_why is None, store_why or "keeps sessions and quotas")
    upstreams = [
        Hop(BACKEND, name, member.target.down is None, member.target.down or member.look.detail)
        for name, member in pool.members.items()
    ]
    return [here, kept, *upstreams]


def first_broken(found: Sequence[Hop]) -> str:
    """The first hop that stops requests; empty where none does. Of several backends one is enough."""
    some_backend = any(hop.ok for hop in found if hop.hop == BACKEND)
    return next((hop.hop for hop in found if not hop.ok and not (hop.hop == BACKEND and some_backend)), "")
