"""LlmError as a gRPC status, and back.

The code is the status, the message its message; where it happened goes as google.rpc.ErrorInfo (domain "lambdalm",
metadata "origin"), when to come back as google.rpc.RetryInfo, both in `grpc-status-details-bin` (the rich error model).
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lambdalm.errors import Code, LlmError

DETAILS = "grpc-status-details-bin"
DOMAIN = "lambdalm"

STATUS: dict[Code, grpc.StatusCode] = {code: grpc.StatusCode[code.value] for code in Code}
_CODES = {status: code for code, status in STATUS.items()}

Metadata = tuple[tuple[str, str | bytes], ...]


def details(error: LlmError) -> Metadata:
    """The trailing metadata that goes with the status of `error`."""
    packed = []
    if error.origin is not None:
        info = error_details_pb2.ErrorInfo(reason=error.code.value, domain=DOMAIN, metadata={"origin": error.origin})
        packed.append(_pack(info))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.value), message=error.message, details=packed)
    return ((DETAILS, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError, trailing: Metadata, silent_origin: str) -> LlmError:
    """The LlmError in a failed call. `silent_origin` is where it happened when the status does not say."""
    status = error.code()
    if status is None:
        return LlmError(Code.UNKNOWN, "the call failed without a status", origin=silent_origin)
    found = LlmError(_CODES[status], error.details() or status.name, origin=silent_origin)
    for key, value in trailing:
        if key == DETAILS and isinstance(value, bytes):
            _read_details(value, found)
    return found


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _read_details(raw: bytes, error: LlmError) -> None:
    try:
        found = status_pb2.Status.FromString(raw).details
    except DecodeError:  # somebody else's: the status itself has been read already
        return
    for packed in found:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if packed.Unpack(info) and info.domain == DOMAIN:
            error.origin = info.metadata.get("origin", error.origin)
        elif packed.Unpack(retry):
            error.retry_after = retry.retry_delay.ToNanoseconds() / 1e9
