"""The command `restful-proxy`: wires config, gRPC channel and server together."""

from __future__ import annotations

import atexit
from pathlib import Path

import flask

from lambdalm import logs, tracing
from lambdalm.commands import LOG_LEVEL, PORT, Flag, Service, service_cli
from lambdalm.errors import Code, LlmError
from lambdalm.web.app import HttpHop
from lambdalm.web.server import serve as serve_web
from lambdalm.web.worker import Lifecycle
from restful_proxy import tls
from restful_proxy.app import add_routes
from restful_proxy.config import Config
from restful_proxy.upstream import PROXY, GrpcProxy

HOP = "edge"


def make_app(config: Config, lifecycle: Lifecycle) -> flask.Flask:
    """The app, in the process that serves: gRPC channels do not survive a fork."""
    tracing.start(HOP)
    proxy = GrpcProxy(config.grpc)
    atexit.register(proxy.close)
    hop = HttpHop(HOP, config.limits, lifecycle)
    add_routes(hop, proxy)
    logs.get(__name__).info("ready", grpc=config.grpc.target)
    return hop.app


def serve(config: Config) -> None:
    logs.configure(HOP, config.log)
    tls.check(config.grpc.tls)
    serve_web(lambda lifecycle: make_app(config, lifecycle), config.listen, config.limits)


def test(config: Config) -> str:
    """Look at the gRPC proxy's health."""
    proxy = GrpcProxy(config.grpc)
    try:
        why = proxy.healthy(5)
    finally:
        proxy.close()
    if why is not None:
        raise LlmError(Code.UNAVAILABLE, why, origin=PROXY)
    return f"the gRPC proxy at {config.grpc.target} is serving, and so is the backend behind it"


main = service_cli(
    Service(
        "restful-proxy",
        "The RESTful proxy of λλM: HTTP with clients, gRPC with the proxy behind it.",
        Config,
        Path(__file__).with_name("config.yaml"),
        serve,
        test,
        [PORT, Flag("grpc", "grpc.target", "host:port of the gRPC proxy"), LOG_LEVEL],
    )
)

if __name__ == "__main__":
    main()
