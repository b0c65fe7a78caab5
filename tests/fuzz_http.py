"""Mutated HTTP requests against an HTTP hop: `python -m tests.fuzz_http --requests 200000 --seed 1`.

Each request is a valid one, or several in a row, with something done to it; it is sent in random pieces. On a quarter
of the connections the client then closes its sending half; on the others one more request follows, a valid one, and a
reset. The hop must answer in its contract, never with a 5xx that means a fault, close every connection, keep its
memory, log no traceback, and still answer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import random
import re
import socket
import struct
import time
from collections.abc import Callable

from tests.fuzz_target import Found, Target, held, main, remaining_faults, settled

_AT_ONCE = 100  # connections
_WARM = 2000  # requests, or a tenth, before the memory is read for the first time
_CLOSES = 15.0  # seconds within which the hop closes after a client's end
_PATIENCE = 0.15  # seconds until a client resets a connection on which nothing comes
_RESET = struct.pack("ii", 1, 0)

_CONTRACT = {  # every 5xx that is no fault, and what shows it
    b"503": (b'"code":"RESOURCE_EXHAUSTED"', b'"code":"UNAVAILABLE"', b"\r\nretry-after: "),  # HEAD has headers only
    b"504": (b'"code":"DEADLINE_EXCEEDED"',),
}
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LAST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _post(path: str, body: object, **headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def _get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: fuzz\r\n\r\n".encode()


VALID = [
    _post("/query", {"prompt": "hello there"}, X_Request_Id="fuzz-1"),
    _post("/query", {"prompt": "hello", "stream": True}, Authorization="Bearer canary"),
    _post("/query", {"messages": [{"role": "user", "content": "λ"}], "max_tokens": 5, "temperature": 0.5}),
    _post("/query", {"prompt": "x" * 3000}, Expect="100-continue", Accept="text/event-stream"),
    _post("/query", {"prompt": "x", "stop": ["a"], "seed": 7}, X_Request_Timeout="5", Connection="keep-alive, x"),
    _post("/query", {"prompt": "x"}, Connection="Upgrade", Upgrade="h2c"),
    _post("/nothing", {"prompt": "x"}),
    _get("/healthz"),
    _get("/health"),
    _get("/models"),
    _get("/metrics", "HEAD"),
    _get("/sessions/abc", "DELETE"),
    _get("http://localhost:80/healthz?a=b&c=%41"),
]

Mutation = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        mutable[rng.randrange(len(mutable))] ^= 1 << rng.randrange(8)
    return bytes(mutable)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(1, len(data))]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    junk = rng.choice((b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b":", b" ", b"\x80\xff", b"%", rng.randbytes(20)))
    return data[:at] + junk * rng.choice((1, 1, 3, 1000)) + data[at:]


def _delete(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.randrange(1, 20) :] or b"x"


def _splice(rng: random.Random, data: bytes) -> bytes:
    other = rng.choice(VALID)
    return data[: rng.randint(1, len(data))] + other[rng.randrange(len(other)) :]


def _lines(rng: random.Random, data: bytes) -> bytes:
    """Header lines doubled, removed, in another order, folded, or without their colon."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    if not lines:
        return data
    at = rng.randrange(len(lines))
    change = rng.randrange(6)
    if change == 0:
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif change == 1:
        del lines[at]
    elif change == 2:
        rng.shuffle(lines)
    elif change == 3:
        lines[at] = lines[at].replace(b":", b"", 1)
    elif change == 4:
        lines.insert(
            at + 1, rng.choice((b" folded", b"\tfolded: x", b": no name", b"Name : x", b"X: " + b"y" * 40_000))
        )
    else:
        lines += [b"X-%d: y" % number for number in range(rng.choice((10, 1000, 3000)))]
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n" + body


def _length(rng: random.Random, data: bytes) -> bytes:
    lengths = (
        "-1",
        "0",
        "1",
        "5",
        "99999",
        str(2**31),
        str(2**63),
        str(2**64),
        "9" * 40,
        "0x10",
        "1_0",
        "+5",
        "",
        "5, 5",
    )
    said = f"Content-Length: {rng.choice(lengths)}".encode()
    return re.sub(rb"Content-Length: \d+", said, data, count=1)


_LAST_CHUNKS = (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nno colon\r\n\r\n", b"00000000\r\n", b"")


def _chunked(rng: random.Random, data: bytes) -> bytes:
    """The body in chunks, most of which are wrong in some way."""
    head, _, body = data.partition(b"\r\n\r\n")
    chunks = b""
    while body:
        size = rng.choice((1, 3, 20, 500))
        piece, body = body[:size], body[size:]
        said = len(piece) + rng.choice((0, 0, 0, 0, 0, 1, -1, 2**32, 2**64))
        extension = rng.choice((b"", b"", b";a=b", b";" + b"x" * 100, b" ", b";\n"))
        chunks += b"%x%b\r\n%b%b" % (
            max(0, said),
            extension,
            piece,
            rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n", b"")),
        )
    end = rng.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nHost: x\r\nno colon\r\n\r\n", b"00000000\r\n", b"")
    )
    with_both = b"\r\nTransfer-Encoding: chunked"
    without = re.sub(rb"\r\nContent-Length: \d+", b"", head)
    return rng.choice((without, without, without, head)) + with_both + b"\r\n\r\n" + chunks + end


_METHODS = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"PUT", b"TRACE", b"PRI", b"get", b"X" * 100)
_TARGETS = (
    b"/",
    b"*",
    b"//",
    b"/%",
    b"/%00%ff",
    b"/../..",
    b"http://evil.example/",
    b"localhost:80",
    b"/" + b"a" * 20_000,
)
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"", b"ICY")


def _first_line(rng: random.Random, data: bytes) -> bytes:
    first, _, rest = data.partition(b"\r\n")
    own = first.split(b" ")[1:2] or [b"/"]
    target = rng.choice((*_TARGETS, *own * 3))
    return b"%b %b %b\r\n%b" % (rng.choice(_METHODS), target, rng.choice(_VERSIONS), rest)


def _pipeline(rng: random.Random, data: bytes) -> bytes:
    row = [data, *rng.choices(VALID, k=rng.choice((1, 2, 5, 30)))]
    rng.shuffle(row)
    return b"".join(row)


def _line_ends(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\n")), rng.choice((1, 2, -1)))


def _nothing(rng: random.Random, data: bytes) -> bytes:
    return data


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _flip, _truncate, _insert, _delete, _splice, _lines, _lines, _length, _chunked, _chunked, _first_line,
    _pipeline, _line_ends, _nothing,
)  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """The bytes of one try."""
    data = rng.choice(VALID)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(rng, data)
    return data


class _Run:
    """Tries against one hop. `left` counts down; `answers` counts statuses; `faults` has at most twenty."""

    def __init__(self, target: Target, requests: int, rng: random.Random) -> None:
        self.target = target
        self.left = requests
        self.rng = rng
        self.answers: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            data = mutated(self.rng)
            try:
                received = await self._try(data)
            except TimeoutError:
                self._fault("the connection is left open", data, b"")
            else:
                self._check(data, received)

    async def _try(self, data: bytes) -> bytes:
        # One address has too few ports for all these connections.
        here = (f"127.0.0.{self.rng.randrange(2, 250)}", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target.port, local_addr=here)
        received = bytearray()
        half_close = self.rng.random() < 0.25
        sending = asyncio.ensure_future(self._send(writer, data if half_close else data + _LAST, half_close))
        try:
            with contextlib.suppress(ConnectionError):
                if half_close:
                    async with asyncio.timeout(_CLOSES):
                        received += await reader.read(-1)
                else:
                    with contextlib.suppress(TimeoutError):
                        while piece := await asyncio.wait_for(reader.read(2**16), _PATIENCE):
                            received += piece
        finally:
            sending.cancel()
            if not half_close and not writer.is_closing():
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.close()
        return bytes(received)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, half_close: bool) -> None:
        with contextlib.suppress(OSError):
            for _ in range(self.rng.choice((0, 0, 1, 3))):
                at = self.rng.randrange(len(data) + 1)
                writer.write(data[:at])
                data = data[at:]
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(data)
            await writer.drain()
            if half_close:
                writer.write_eof()

    def _check(self, data: bytes, received: bytes) -> None:
        statuses = _ANSWER.findall(received)
        self.answers.update(status.decode() for status in statuses or [b"none"])
        for status in statuses:
            if status >= b"500" and not any(sign in received for sign in _CONTRACT.get(status, ())):
                self._fault(f"an unexpected {status.decode()}", data, received)

    def _fault(self, what: str, data: bytes, received: bytes) -> None:
        if len(self.faults) < 20:
            self.faults.append(f"{what}: {data[:600]!r} … {received[:300]!r}")


def fuzz(target: Target, requests: int, seed: int) -> Found:
    """Send `requests` mutated requests to one hop."""
    start, idle = time.monotonic(), held(target).connections
    warm = _Run(target, min(max(_WARM, requests // 10), requests), random.Random(seed))
    asyncio.run(_all(warm))
    before = settled(target, idle)
    run = _Run(target, requests, random.Random(seed + 1))
    asyncio.run(_all(run))
    after = settled(target, idle)
    faults = [*warm.faults, *run.faults, *remaining_faults(before, after, _answers(target))]
    return Found(target, requests, time.monotonic() - start, run.answers, before, after, faults)


async def _all(run: _Run) -> None:
    await asyncio.gather(*(run.client() for _ in range(_AT_ONCE)))


def _answers(target: Target) -> bool:
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as sock:
        sock.sendall(VALID[0])
        return sock.recv(100).startswith(b"HTTP/1.1 200 ")


if __name__ == "__main__":
    main(__doc__, 200_000, ("edge", "backend"), fuzz)
