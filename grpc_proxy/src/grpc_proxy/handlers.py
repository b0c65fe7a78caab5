"""LlmService's gRPC handlers: how its messages are read and written.

A request that cannot be read fails like any other: let in, counted, logged, and refused with INVALID_ARGUMENT, but only
to a caller whose key is good. gRPC's own handlers would answer UNKNOWN, before our code sees the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from grpc_proxy.door import Context, Door
from lambdalm.errors import Code, LlmError
from lambdalm_proto.v1 import llm_pb2, llm_pb2_grpc

_SERVICE = llm_pb2.DESCRIPTOR.services_by_name["LlmService"]

Behavior = Callable[[Any, Context], Awaitable[Any]]


def handler(service: llm_pb2_grpc.LlmServiceServicer, door: Door) -> grpc.GenericRpcHandler[Any, Any]:
    """Handles every method of LlmService; a call that cannot be read goes through `door` and no further."""
    methods = {method.name: _handler(method, getattr(service, method.name), door) for method in _SERVICE.methods}
    return grpc.method_handlers_generic_handler(_SERVICE.full_name, methods)


def serialize(message: Message | bytes) -> bytes:
    """A message for the wire; `bytes` are one that is serialized already."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _handler(method: MethodDescriptor, behavior: Behavior, door: Door) -> grpc.RpcMethodHandler[Any, Any]:
    read = GetMessageClass(method.input_type).FromString

    def deserialize(data: bytes) -> Message | None:
        try:
            return read(data)
        except DecodeError:
            return None

    async def handle(request: Message | None, context: Context) -> Any:
        if request is not None:
            return await behavior(request, context)
        async with door.call(method.name, context):
            raise LlmError(
                Code.INVALID_ARGUMENT,
                f"the request cannot be read as {method.input_type.full_name}: is the client made from our llm.proto?",
            )

    make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return make(handle, deserialize, serialize)
