"""Mutated protobuf messages against the gRPC proxy: `python -m tests.fuzz_grpc --requests 50000 --seed 1`.

Each message is a valid one of its method, or of another, with its bytes changed. The proxy must answer each with OK or
with a status that its contract has for what a client does wrong: never with UNKNOWN or INTERNAL, which mean a fault.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Callable

import grpc
import grpc.aio

from lambdalm_proto.v1 import llm_pb2
from tests.fuzz_target import Found, Target, held, main, remaining_faults, settled

_AT_ONCE = 16
_CHANNELS = 4
_WARM = 1000  # messages before the memory is read for the first time
_SECONDS = 20.0  # for each call
_SERVICE = llm_pb2.DESCRIPTOR.services_by_name["LlmService"]

_CONTRACT = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_TURN = llm_pb2.LLMRequest(
    prompt="hello there",
    parameters=llm_pb2.LLMRequest.Parameters(temperature=0.5, max_tokens=5, stop=["x", "y"], seed=7),
    model="echo",
    memory=llm_pb2.MEMORY_OFF,
    system="be brief",
)
VALID: dict[str, list[bytes]] = {
    "generateText": [llm_pb2.LlmQueryRequest(prompt="hello", max_tokens=5).SerializeToString()],
    "Generate": [
        _TURN.SerializeToString(),
        llm_pb2.LLMRequest(messages=[llm_pb2.ChatMessage(role="user", content="λ")] * 3).SerializeToString(),
        llm_pb2.LLMRequest(prompt="hello", session_id="0123456789abcdef").SerializeToString(),
    ],
    "GetSession": [llm_pb2.GetSessionRequest(session_id="0123456789abcdef").SerializeToString()],
    "DeleteSession": [llm_pb2.DeleteSessionRequest(session_id="0123456789abcdef").SerializeToString()],
    "ListSessions": [llm_pb2.ListSessionsRequest().SerializeToString()],
}
_ALL = [message for messages in VALID.values() for message in messages]

Mutation = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        mutable[rng.randrange(len(mutable))] ^= 1 << rng.randrange(8)
    return bytes(mutable)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _splice(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(_ALL)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(rng: random.Random, data: bytes) -> bytes:
    """One more field: any number and wire type, its length true or not."""
    number, wire = rng.choice((1, 2, 3, 5, 6, 7, 8, 15, 16, 1000, 2**29 - 1)), rng.randrange(8)
    value = rng.choice((rng.randbytes(8), b"", b"\xff" * 10, rng.randbytes(100), b"\xed\xa0\x80", b"\0"))
    length = rng.choice((len(value), len(value), 0, 2**31, 2**63, 1))
    said = _varint(length) if wire == 2 else _varint(rng.choice((0, 1, 2**31, 2**64 - 1))) if wire == 0 else b""
    at = rng.choice((0, len(data)))
    return data[:at] + _varint(number << 3 | wire) + said + value * (wire != 0) + data[at:]


def _nest(rng: random.Random, data: bytes) -> bytes:
    """The message inside itself, up to a thousand times."""
    number = rng.choice((2, 3, 4))
    for _ in range(rng.choice((1, 10, 90, 150, 1000))):
        data = _varint(number << 3 | 2) + _varint(len(data)) + data
    return data


def _group(rng: random.Random, data: bytes) -> bytes:
    return data + b"\x1b" * rng.choice((1, 50, 5000)) + b"\x1c" * rng.choice((0, 1, 50))


def _random(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 10, 100, 10_000)))


def _nothing(rng: random.Random, data: bytes) -> bytes:
    return data


MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _truncate, _splice, _field, _field, _nest, _group, _random, _nothing)


def mutated(rng: random.Random) -> tuple[str, bytes]:
    """A method's name, and the bytes of one try."""
    method = rng.choice([method.name for method in _SERVICE.methods])
    data = rng.choice(VALID.get("Generate" if method == "GenerateStream" else method, _ALL))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(rng, data)
    return method, data


class _Run:
    """Tries against one proxy. `left` counts down; `answers` counts statuses; `faults` has at most twenty."""

    def __init__(self, requests: int, rng: random.Random) -> None:
        self.left = requests
        self.rng = rng
        self.answers: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    async def client(self, channel: grpc.aio.Channel) -> None:
        while self.left > 0:
            self.left -= 1
            method, data = mutated(self.rng)
            code, details = await _ask(channel, method, data)
            self.answers[code.name] += 1
            if code not in _CONTRACT and len(self.faults) < 20:
                self.faults.append(f"{method} is {code.name} ({details}): {data[:300]!r}")


async def _ask(channel: grpc.aio.Channel, method: str, data: bytes) -> tuple[grpc.StatusCode, str]:
    """The status of one call, its answers left as bytes."""
    path = f"/{_SERVICE.full_name}/{method}"
    try:
        if method == "GenerateStream":
            async for _ in channel.unary_stream(path, None, None)(data, timeout=_SECONDS):
                pass
        else:
            await channel.unary_unary(path, None, None)(data, timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def _all(target: Target, run: _Run) -> None:
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{target.port}", [("fuzz", n)]) for n in range(_CHANNELS)]
    await asyncio.gather(*(run.client(channels[n % _CHANNELS]) for n in range(_AT_ONCE)))
    for channel in channels:
        await channel.close(None)


def fuzz(target: Target, requests: int, seed: int) -> Found:
    """Send `requests` mutated messages to one proxy."""
    start, idle = time.monotonic(), held(target).connections
    warm = _Run(min(_WARM, requests), random.Random(seed))
    asyncio.run(_all(target, warm))
    before = settled(target, idle)
    run = _Run(requests, random.Random(seed + 1))
    asyncio.run(_all(target, run))
    after = settled(target, idle)
    faults = [*warm.faults, *run.faults, *remaining_faults(before, after, asyncio.run(_answers(target)))]
    return Found(target, requests, time.monotonic() - start, run.answers, before, after, faults)


async def _answers(target: Target) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        code, _ = await _ask(channel, "Generate", VALID["Generate"][0])
        return code is grpc.StatusCode.OK


if __name__ == "__main__":
    main(__doc__, 50_000, ("proxy",), fuzz)
