"""The channel to the gRPC proxy, and a new one when a file of its TLS has changed.

gRPC for Python reads certificates once per channel. So the files are examined when a call begins, once a second at
most and in a thread; when one has changed, new calls get a new channel, and the old one is closed when its calls have
ended. Files that cannot be used, as when one of a pair is not written yet, leave the old channel in place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2_grpc

from lambdalm import logs
from lambdalm.errors import Code, LlmError
from lambdalm_proto.v1 import llm_pb2_grpc
from restful_proxy import tls
from restful_proxy.config import GrpcConfig

PROXY = "proxy"

_EXAMINE_SECONDS = 1.0  # between two examinations of the files
_RETIRED_SECONDS = 3600.0  # calls have deadlines: by then all have ended
_PING_TIMEOUT_MS = 5000  # a connection that answers no ping for this long is closed

# A name with several addresses is used in turn; every call fails or goes through at once, and only once.
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_log = logs.get(__name__)

Parse = Callable[[bytes], Message | None]


def unreadable() -> LlmError:
    """The INTERNAL for an answer of the proxy that is no message of llm.proto."""
    return LlmError(Code.INTERNAL, "the gRPC proxy sent a message that cannot be read", origin=PROXY)


class Stubs(NamedTuple):
    """A channel and the services on it. LlmService answers None where the proxy sent what cannot be read."""

    channel: grpc.aio.Channel
    llm: Any
    health: Any


class Link:
    """Make it, and call it, in one event loop. Raises LlmError when its TLS files cannot be used at the start."""

    def __init__(self, config: GrpcConfig) -> None:
        self._config = config
        self._examined = time.monotonic()
        self._examination: asyncio.Task[None] | None = None
        self._stamps = tls.stamps(config.tls)
        self._stubs = _open(config, _credentials(config))
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def stubs(self) -> Stubs:
        """For a call that begins now."""
        if self._config.tls.enabled and time.monotonic() >= self._examined + _EXAMINE_SECONDS:
            self._examined = time.monotonic()
            if self._examination is None or self._examination.done():
                self._examination = asyncio.create_task(self._follow())
        return self._stubs

    async def close(self) -> None:
        """Calls still open fail."""
        channels = [*self._retired.values(), self._stubs.channel]
        for task in [*self._retired, *([self._examination] if self._examination is not None else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for channel in channels:
            await channel.close(None)

    async def _follow(self) -> None:
        """Open a new channel, if the files have changed and can be used."""
        try:
            credentials = await asyncio.to_thread(self._changed)
        except LlmError as error:
            _log.warning("changed TLS files cannot be used; those before go on", why=error.message)
            return
        if credentials is not None:
            self._retire(self._stubs.channel)
            self._stubs = _open(self._config, credentials)
            _log.info("changed TLS files are in use")

    def _changed(self) -> grpc.ChannelCredentials | None:
        """The credentials in files that have changed since they were last examined; None when they have not."""
        stamps = tls.stamps(self._config.tls)
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        return _credentials(self._config)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.create_task(channel.close(_RETIRED_SECONDS))
        self._retired[task] = channel
        task.add_done_callback(self._retired.pop)


def _credentials(config: GrpcConfig) -> grpc.ChannelCredentials | None:
    return tls.credentials(config.tls) if config.tls.enabled else None


def _open(config: GrpcConfig, credentials: grpc.ChannelCredentials | None) -> Stubs:
    target, options = f"dns:///{config.target}", _options(config)
    if credentials is not None:
        channel = grpc.aio.secure_channel(target, credentials, options)
    else:
        channel = grpc.aio.insecure_channel(target, options)
    llm = llm_pb2_grpc.LlmServiceStub(_LenientChannel(channel))  # type: ignore[no-untyped-call]  # generated
    return Stubs(channel, llm, health_pb2_grpc.HealthStub(channel))


class _LenientChannel:
    """A channel whose answers are None where they cannot be read: so they are with gRPC too, which logs a traceback."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, response_deserializer: Parse, **more: Any) -> Any:
        return self._channel.unary_unary(method, response_deserializer=_lenient(response_deserializer), **more)

    def unary_stream(self, method: str, response_deserializer: Parse, **more: Any) -> Any:
        return self._channel.unary_stream(method, response_deserializer=_lenient(response_deserializer), **more)


def _lenient(parse: Parse) -> Parse:
    def parse_or_none(raw: bytes) -> Message | None:
        try:
            return parse(raw)
        except DecodeError:
            return None

    return parse_or_none


def _options(config: GrpcConfig) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.enable_retries", 0),
        ("grpc.http2.bdp_probe", 0),  # measures bandwidth with pings among the messages; tokens need little
        ("grpc.keepalive_time_ms", int(config.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # 60 s by default, and gRPC 1.85 keeps to this one
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5000),  # the time that a connection may take
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel makes new connections, whatever others are open
    ]
    if config.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", config.tls.server_name))
    return options
