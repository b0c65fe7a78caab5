"""HTTP to an engine: what goes out, what comes back, and that it can be stopped at any moment."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from backend_lambda.providers import engine_http
from backend_lambda.providers.engine_http import EngineHttp, Reply, Stream, host_header
from lambdalm.call import Call
from lambdalm.errors import Code, LlmError

from .conftest import WAIT, new_call

Serve = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@contextlib.contextmanager
def serving(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that takes one connection and does `serve` with it; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection if context is None else context.wrap_socket(connection, server_side=True) as connection:
                serve(connection)

        served: Future[None] = threads.submit(accept)
        yield f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}/api"
        served.result(WAIT)


def engine(url: str, silence: float = WAIT, connect: float = WAIT, **headers: str) -> EngineHttp:
    return EngineHttp("engine", url, headers, connect, silence)


def read_request(connection: socket.socket) -> bytes:
    """Headers and body, for a body whose length is told."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def until_hung_up(connection: socket.socket) -> None:
    connection.settimeout(WAIT)
    with contextlib.suppress(ConnectionResetError):
        assert connection.recv(1) == b""


def failure(act: Callable[[], object]) -> LlmError:
    with pytest.raises(LlmError) as failed:
        act()
    return failed.value


def asking(http: EngineHttp, call: Call) -> list[bytes]:
    with http.post("/chat", b"{}", call) as answer:
        assert isinstance(answer, Stream)
        return list(answer.chunks)


def test_a_request_has_its_path_its_body_and_the_headers_of_the_engine() -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK + b"Content-Length: 2\r\n\r\nhi")

    with serving(serve) as url:
        assert asking(engine(f"{url}/", Authorization="Bearer k"), new_call()) == [b"hi"]
    head, _, body = seen[0].partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    assert first == "POST /api/chat HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in rest)
    assert headers == {
        "Host": url.removeprefix("http://").removesuffix("/api"),
        "Accept-Encoding": "identity",
        "Authorization": "Bearer k",
        "Content-Type": "application/json",
        "Content-Length": "2",
    }
    assert body == b"{}"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://vpce.example:443/x", "vpce.example"),
        ("https://vpce.example:80/x", "vpce.example:80"),
        ("http://Example:80/", "example"),
        ("http://[::1]:8080/", "[::1]:8080"),
    ],
)
def test_the_host_is_named_without_the_port_of_the_scheme(url: str, host: str) -> None:
    assert host_header(urlsplit(url)) == host


def test_an_answer_that_is_an_error_is_read_whole_with_its_retry_after() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy")

    with serving(serve) as url, engine(url).post("/chat", b"{}", new_call()) as answer:
        assert answer == Reply(503, b"busy", 7.0)


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "1e9", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_retry_after_that_is_no_number_of_seconds_is_none(given: str) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 503 No\r\nRetry-After: {given}\r\nContent-Length: 0\r\n\r\n".encode())

    with serving(serve) as url:
        assert engine(url).get("/x", new_call()).retry_after is None


def test_of_a_huge_error_only_the_beginning_is_read() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 500 No\r\n\r\n" + b"x" * (8 << 20))

    with serving(serve) as url:
        assert len(engine(url).get("/x", new_call()).body) == 1 << 20


def test_an_answer_in_one_piece_has_a_limit() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        with contextlib.suppress(OSError):
            connection.sendall(OK + b"\r\n" + b"x" * (17 << 20))

    with serving(serve) as url, engine(url).post("/chat", b"{}", new_call()) as answer:
        assert isinstance(answer, Stream)
        assert failure(answer.whole).code is Code.INTERNAL


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
def test_an_answer_is_whole_whatever_becomes_of_its_connection(more: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 4\r\n%b\r\nnope" % more)

    with serving(serve) as url:
        assert engine(url).get("/x", new_call()) == Reply(401, b"nope")


def test_a_redirect_is_not_followed() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    with serving(serve) as url:
        assert engine(url).get("/x", new_call()).status == 302


def test_nothing_that_listens_is_unavailable_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    error = failure(lambda: engine(url).get("/x", new_call()))
    assert (error.code, error.origin) == (Code.UNAVAILABLE, "engine")
    assert error.message == f"engine at {url} cannot be reached: Connection refused"


@pytest.mark.parametrize("url", ["http://no.such.name.invalid", "http://" + "x" * 64 + ".example"])
def test_a_name_without_an_address_is_unavailable(url: str) -> None:
    assert failure(lambda: engine(url).get("/x", new_call())).code is Code.UNAVAILABLE


@pytest.mark.parametrize("url", ["http://x:99999", "http://[::1"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    assert failure(lambda: engine(url)).code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0\r\n\r\n", id="another protocol"),
        pytest.param(OK + b"Content-Length: 9\r\n\r\nhalf", id="less than it says"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", id="no last chunk"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n", id="a chunk without a size"),
    ],
)
def test_an_answer_that_breaks_off_is_unavailable(answer: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    with serving(serve) as url:
        assert failure(lambda: asking(engine(url), new_call())).code is Code.UNAVAILABLE


@pytest.mark.parametrize("encrypted", [False, True])
def test_what_came_while_nobody_read_comes_in_one_piece(encrypted: bool, certificate: Path) -> None:
    """Engines send a chunk, and TLS a record, for each word."""
    sent, words = threading.Event(), [b"%d " % number for number in range(50)]

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        for word in words:
            connection.sendall(b"%x\r\n%b\r\n" % (len(word), word))
        sent.set()
        until_hung_up(connection)

    with serving(serve, tls(certificate) if encrypted else None) as url:
        http = engine(url)
        if http.tls is not None:
            http.tls.load_verify_locations(certificate)
        with http.post("/chat", b"{}", new_call()) as answer:
            assert isinstance(answer, Stream)
            assert sent.wait(WAIT)
            got = next(answer.chunks)  # what came with the headers
            while got != b"".join(words):
                got += (more := next(answer.chunks))
                assert len(more) > len(words[0])


def test_a_deadline_ends_a_trickle(certificate: Path) -> None:
    """Each byte is in time, and there are too many."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK + b"X-Slow: ")
        with contextlib.suppress(OSError):
            while not over.wait(0.01):
                connection.sendall(b"x")

    with serving(serve) as url:
        assert failure(lambda: asking(engine(url), new_call(0.2))).code is Code.DEADLINE_EXCEEDED
        over.set()


def test_a_process_with_very_many_open_files_can_ask() -> None:
    with contextlib.ExitStack() as stack:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (limit, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))
        null = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, null)
        while stack.enter_context(_copy_of(null)) < 1100:
            pass

        def serve(connection: socket.socket) -> None:
            read_request(connection)
            connection.sendall(OK + b"Content-Length: 2\r\n\r\nhi")

        assert stack.enter_context(_copy_of(null)) > 1023
        with serving(serve) as url:
            assert asking(engine(url), new_call()) == [b"hi"]


@contextlib.contextmanager
def _copy_of(descriptor: int) -> Iterator[int]:
    copy = os.dup(descriptor)
    try:
        yield copy
    finally:
        os.close(copy)


def test_an_engine_that_hangs_is_looked_at_for_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_http, "_CHECK_SECONDS", 0.1)
    with serving(until_hung_up_after_request) as url:
        error = failure(lambda: engine(url).look("/health"))
    assert error.code is Code.UNAVAILABLE
    assert error.message == f"engine at {url} gave no answer in 0.1 s"


def test_what_came_before_a_break_comes_before_the_failure() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n")

    got: list[bytes] = []
    with serving(serve) as url, engine(url).post("/chat", b"{}", new_call()) as answer:
        assert isinstance(answer, Stream)
        chunks = answer.chunks
        assert failure(lambda: got.extend(chunks)).code is Code.UNAVAILABLE
    assert got == [b"half"]


def test_silence_is_given_up_after_its_seconds_and_says_so() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK + b"\r\nword")
        until_hung_up(connection)

    got: list[bytes] = []

    def ask(http: EngineHttp) -> None:
        with http.post("/chat", b"{}", new_call()) as answer:
            assert isinstance(answer, Stream)
            got.extend(answer.chunks)

    with serving(serve) as url:
        error = failure(lambda: ask(engine(url, silence=0.5)))
    assert got == [b"word"]
    assert (error.code, error.retry_after) == (Code.UNAVAILABLE, 1)
    assert "silent for 0.5 s, which is the request_timeout" in error.message


def test_the_time_of_the_call_bounds_the_wait_too() -> None:
    with serving(until_hung_up_after_request) as url:
        assert failure(lambda: asking(engine(url), new_call(0.1))).code is Code.DEADLINE_EXCEEDED


def until_hung_up_after_request(connection: socket.socket) -> None:
    read_request(connection)
    until_hung_up(connection)


class _Stalling:
    """A server that tells when it has been reached, and then says nothing; `sends` goes first."""

    def __init__(self, sends: bytes = b"") -> None:
        self.reached = threading.Event()
        self._sends = sends

    def __call__(self, connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(self._sends)
        self.reached.set()
        until_hung_up(connection)


@pytest.mark.parametrize("sends", [b"", b"HTTP/1.1 200 OK\r\n", OK + b"\r\n", OK + b"\r\nword"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_cancelling_ends_the_wait_and_the_connection(sends: bytes, encrypted: bool, certificate: Path) -> None:
    server = _Stalling(sends)
    call = new_call()
    with ThreadPoolExecutor(1) as threads, serving(server, tls(certificate) if encrypted else None) as url:
        http = engine(url)
        if http.tls is not None:
            http.tls.load_verify_locations(certificate)
        asked = threads.submit(asking, http, call)
        assert server.reached.wait(WAIT)
        call.cancel("enough")
        assert failure(lambda: asked.result(WAIT)).code is Code.CANCELLED


def test_cancelling_ends_a_handshake() -> None:
    greeted = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert connection.recv(1) == b"\x16"  # the client's hello
        greeted.set()
        while connection.recv(65536):
            pass

    call = new_call()
    with ThreadPoolExecutor(1) as threads, serving(serve) as url:
        asked = threads.submit(asking, engine(url.replace("http:", "https:")), call)
        assert greeted.wait(WAIT)
        call.cancel("enough")
        assert failure(lambda: asked.result(WAIT)).code is Code.CANCELLED


def test_cancelling_ends_the_sending_of_a_body_that_nobody_reads() -> None:
    reached, stopped = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        assert connection.recv(1)
        reached.set()
        assert stopped.wait(WAIT)

    call = new_call()
    with ThreadPoolExecutor(1) as threads, serving(serve) as url:
        asked = threads.submit(lambda: engine(url).post("/x", b"x" * (64 << 20), call).__enter__())
        assert reached.wait(WAIT)
        call.cancel("enough")
        assert failure(lambda: asked.result(WAIT)).code is Code.CANCELLED
        stopped.set()


def test_cancelling_ends_a_connection_that_does_not_come_about(full_listener: str) -> None:
    call = new_call()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(asking, engine(full_listener), call)
        call.cancel("enough")
        assert failure(lambda: asked.result(WAIT)).code is Code.CANCELLED


def test_a_connection_that_does_not_come_about_is_given_up(full_listener: str) -> None:
    error = failure(lambda: asking(engine(full_listener, connect=0.1), new_call()))
    assert error.code is Code.UNAVAILABLE
    assert "cannot be reached: it did not connect in 0.1 s" in error.message


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    def serve(connection: socket.socket) -> None:
        pytest.fail("the handshake should have failed")

    with contextlib.suppress(ssl.SSLError), serving(serve, tls(certificate)) as url:  # the server's side of it
        error = failure(lambda: asking(engine(url), new_call()))
    assert error.code is Code.UNAVAILABLE
    assert "TLS: self-signed certificate" in error.message


@pytest.fixture
def full_listener() -> Iterator[str]:
    """An address whose backlog is full: connections to it stay half open."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path) + ".key", "-out", str(path) + ".crt"]
    try:
        subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the command openssl is missing")
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
