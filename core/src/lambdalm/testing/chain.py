"""The whole chain as child processes on this machine: for tests, for `make run` and for `make up`.

Each hop is its own command (`python -m backend_lambda serve`, …) with its own environment, as it would be on a machine
of its own. `PORT` and `HOST` are taken out of the environment: some runners and shells set them, and only the gRPC
proxy would listen to them. When the process that runs the chain is killed, its hops end, too (see `lambdalm.parent`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lambdalm import parent

Line = Callable[[str, str], None]
"""Takes a hop's name and one line of its log."""

_START_SECONDS = 30.0
_STOP_SECONDS = 40.0
_LOOK_SECONDS = 0.02


class Ports(NamedTuple):
    """A port for each hop, and for the proxy's health over HTTP and HTTPS."""

    backend: int
    proxy: int
    edge: int
    health: int
    health_tls: int


class PortNames(NamedTuple):
    """The environment variable that sets each."""

    backend: str = "BACKEND_PORT"
    proxy: str = "GRPC_PORT"
    edge: str = "LLM_PORT"
    health: str = "HEALTH_HTTP_PORT"
    health_tls: str = "HEALTH_HTTPS_PORT"


DEFAULT_PORTS = Ports(8500, 50051, 8080, 8081, 8443)
MODULES = {"backend": "backend_lambda", "proxy": "grpc_proxy", "edge": "restful_proxy"}
"""Kind of hop → the module that runs it, in the order in which they start; they stop in the opposite order."""


class Kind(NamedTuple):
    """How the hops of one kind are run: how many, by which `python`, after the words `under`, and with `options`.

    Of several backends the first is called `backend`, the second `backend-2`, and so on. With none of them BACKEND_URL
    says where there is one.
    """

    number: int = 1
    under: Sequence[str] = ()
    options: Sequence[str] = ()
    python: str = sys.executable


class ChainError(Exception):
    """The chain did not start; the message has the last lines of the hop's log."""


def free_ports() -> Ports:
    """Ports that nothing listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in Ports._fields]
    ports = Ports(*(sock.getsockname()[1] for sock in sockets))
    for sock in sockets:
        sock.close()
    return ports


def wanted_ports(environ: Mapping[str, str]) -> Ports:
    """The default ports, but for those that the environment sets; raises ValueError for what is no number."""
    return Ports(*(int(environ.get(name) or port) for name, port in zip(PortNames(), DEFAULT_PORTS, strict=True)))


def taken(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Hop:
    """One hop's process."""

    def __init__(self, name: str, environ: Mapping[str, str], on_line: Line, how: Kind = Kind()) -> None:  # noqa: B008  # frozen
        self.name = name
        self.tail: list[str] = []
        self._on_line = on_line
        # A session of its own: Ctrl-C is for whoever runs the chain, who then stops the hops in order.
        self.process = subprocess.Popen(
            [*how.under, how.python, "-m", MODULES[_kind(name)], "serve", *how.options],
            env={**environ, **parent.HELD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"{name}-log", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that is not enough; returns the exit status."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL to the hop and all of its processes: what a machine does that goes away."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While inside, the hop and its processes hang: they hold their sockets and do nothing."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def _read(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process.stdin, self.process.stdout as lines:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip()
                self.tail = [*self.tail[-19:], line]
                self._on_line(self.name, line)


class Chain:
    """The three servers, or more where `kinds` says so. Use it as a context manager: what it has started it stops.

    `environ` is added to each hop's environment (PROVIDER=scripted, …), `on_line` gets the lines of their logs. It must
    be ready within `patience` seconds from when its backend has its model; `stop_waiting` ends the wait before.

    Every proxy asks all backends; `edge-2` asks `proxy-2`, if there is one.
    """

    def __init__(
        self,
        ports: Ports,
        environ: Mapping[str, str] = {},
        on_line: Line = lambda hop, line: None,
        patience: float = _START_SECONDS,
        stop_waiting: threading.Event | None = None,
        kinds: Mapping[str, Kind] = {},
    ) -> None:
        self.ports = ports
        self._kinds = {kind: kinds.get(kind, Kind()) for kind in MODULES}
        self._ports = [ports, *(free_ports() for _ in range(max(how.number for how in self._kinds.values()) - 1))]
        self._on_line = on_line
        self._patience = patience
        self._stop_waiting = stop_waiting or threading.Event()
        self._inherited = {name: value for name, value in os.environ.items() if name not in ("PORT", "HOST")}
        self._environ = dict(environ)
        if self._kinds["backend"].number > 1:
            backends = [f"http://127.0.0.1:{self.port(name)}/query" for name in self._names("backend")]
            self._environ.setdefault("BACKEND_URL", ",".join(backends))
        self.hops: dict[str, Hop] = {}

    @property
    def url(self) -> str:
        """Of the edge."""
        return f"http://127.0.0.1:{self.ports.edge}"

    @property
    def backend_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.backend}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.ports.proxy}"

    def port(self, name: str) -> int:
        """Of a hop."""
        return int(getattr(self._ports_of(name), _kind(name)))

    def health_url(self, name: str) -> str:
        """Where a proxy tells over HTTP whether it is ready."""
        return f"http://127.0.0.1:{self._ports_of(name).health}/readyz"

    def __enter__(self) -> Chain:
        try:
            for name in self._names(*MODULES):
                self.start(name)
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str) -> None:
        """Start one hop (again)."""
        self.hops[name] = Hop(name, self._environ_of(name), self._on_line, self._kinds[_kind(name)])

    def wait_ready(self) -> None:
        """Returns when the whole chain says that it is ready; raises ChainError when that does not come."""
        deadline = None
        while not all(map(_answers, self._readiness())):
            for hop in self.hops.values():
                if not hop.alive:
                    raise ChainError(_obituary(hop))
            if deadline is None and (self._backend_says() is not None or "backend" not in self.hops):
                deadline = time.monotonic() + self._patience  # before, it loads its model or gets it
            if deadline is not None and time.monotonic() > deadline:
                raise ChainError(f"the chain is not ready after {self._patience:g} s: {self._backend_says()}")
            if self._stop_waiting.wait(_LOOK_SECONDS):
                raise ChainError("stopped before the chain was ready")

    def _backend_says(self) -> str | None:
        """What the backend says of itself; None while it says nothing, as long as its model is loaded."""
        try:
            with urllib.request.urlopen(f"{self.backend_url}/health", timeout=2) as answer:  # noqa: S310  # our own
                return str(answer.status)
        except urllib.error.HTTPError as refusal:
            return json.loads(refusal.read()).get("detail") or f"its backend answers HTTP {refusal.code}"
        except (urllib.error.URLError, OSError):
            return None

    def stop(self) -> None:
        """Stop every hop that runs, the edge first."""
        for name in reversed(self._names(*MODULES)):
            if name in self.hops:
                self.hops[name].stop()

    def _names(self, *kinds: str) -> list[str]:
        return [kind if index == 1 else f"{kind}-{index}" for kind in kinds for index in self._indexes(kind)]

    def _indexes(self, kind: str) -> range:
        return range(1, self._kinds[kind].number + 1)

    def _ports_of(self, name: str) -> Ports:
        """The hop's own, and those of the hops of other kinds that go with it."""
        own = self._ports[int(name.partition("-")[2] or 1) - 1]
        alone = {kind: getattr(self.ports, kind) for kind, how in self._kinds.items() if how.number == 1}
        return own._replace(**alone)

    def _environ_of(self, name: str) -> dict[str, str]:
        ports = self._ports_of(name)
        return {
            **self._inherited,
            "PYTHONUNBUFFERED": "1",
            **dict(zip(PortNames(), map(str, ports), strict=True)),
            **self._environ,
        }

    def _readiness(self) -> Iterator[str]:
        """URLs that answer when all are ready: the edges know of the hops behind them, but not of each one."""
        yield from (f"http://127.0.0.1:{self.port(name)}/readyz" for name in self._names("edge"))
        yield from map(self.health_url, self._names("proxy")[1:])
        yield from (f"http://127.0.0.1:{self.port(name)}/health" for name in self._names("backend")[1:])


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # our own http URL
            return True
    except (urllib.error.URLError, OSError):
        return False


def _obituary(hop: Hop) -> str:
    lines = "\n".join(f"    {line}" for line in hop.tail)
    return f"the {hop.name} ended with status {hop.process.poll()}; the last it said:\n{lines}"
