"""The process's HTTP clients: which of them asks what."""

from __future__ import annotations

from typing import Self

from yarl import URL

from grpc_proxy.http1 import Http1
from grpc_proxy.http_aiohttp import Aiohttp
from grpc_proxy.http_client import Client


class Clients:
    """Both clients, as an async context manager."""

    async def __aenter__(self) -> Self:
        self._general = Aiohttp()
        self._light = Http1()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._light.close()
        await self._general.close()

    def asks(self, url: URL, *, ours: bool) -> Client:
        """The client for a server: the light one for ours over plain HTTP."""
        return self._light if ours and url.scheme == "http" else self._general
