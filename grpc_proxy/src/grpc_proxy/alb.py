"""`/AWS.ALB/healthcheck`: the call by which an Application Load Balancer asks a gRPC target how it is.

The balancer looks at the status only, and grpc.health.v1 answers OK also when it says NOT_SERVING. Set the target
group's matcher to 0: by default it is 12 (UNIMPLEMENTED), which any gRPC server answers to what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc


def handler(why_not: Callable[[], str | None]) -> grpc.GenericRpcHandler[bytes, bytes]:
    """Answers OK, or UNAVAILABLE with what `why_not` says; request and answer are empty."""

    async def healthcheck(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        why = why_not()
        if why is not None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, why)
        return b""

    return grpc.method_handlers_generic_handler(
        "AWS.ALB", {"healthcheck": grpc.unary_unary_rpc_method_handler(healthcheck)}
    )
