from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from lambdalm.web.hangup import HangupWatcher

WAIT = 10  # seconds until a test that waits has failed


@pytest.fixture(scope="module", params=[True, False], ids=["epoll", "looking"])
def watcher(request: pytest.FixtureRequest) -> HangupWatcher:
    return HangupWatcher(use_epoll=request.param)


class Pair:
    """The two ends of a TCP connection."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.server, _ = listener.accept()
        self.hung_up = threading.Event()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def proves_itself(watcher: HangupWatcher) -> None:
    """The watcher has looked once more at all that it watches, and still works."""
    with contextlib.closing(Pair()) as canary, watcher.watch(canary.server, canary.hung_up.set):
        canary.client.close()
        assert canary.hung_up.wait(WAIT)


def test_a_client_that_closes_has_hung_up(watcher: HangupWatcher, pair: Pair) -> None:
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.close()
        assert pair.hung_up.wait(WAIT)


def test_a_client_that_closes_its_sending_half_has_hung_up(watcher: HangupWatcher, pair: Pair) -> None:
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.shutdown(socket.SHUT_WR)
        assert pair.hung_up.wait(WAIT)


def test_a_client_that_resets_the_connection_has_hung_up(watcher: HangupWatcher, pair: Pair) -> None:
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.close()
        assert pair.hung_up.wait(WAIT)


def test_a_client_that_had_left_before_has_hung_up(watcher: HangupWatcher, pair: Pair) -> None:
    pair.client.close()
    with watcher.watch(pair.server, pair.hung_up.set):
        assert pair.hung_up.wait(WAIT)


def test_a_client_that_sends_ahead_has_not_hung_up(watcher: HangupWatcher, pair: Pair) -> None:
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.sendall(b"GET /next HTTP/1.1\r\n\r\n")
        proves_itself(watcher)
        assert not pair.hung_up.is_set()
        pair.client.close()
        assert pair.hung_up.wait(WAIT)


def test_what_was_sent_ahead_can_still_be_read(watcher: HangupWatcher, pair: Pair) -> None:
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.sendall(b"next")
        pair.client.close()
        assert pair.hung_up.wait(WAIT)
    assert pair.server.recv(100) == b"next"


def test_a_hang_up_is_told_once(watcher: HangupWatcher, pair: Pair) -> None:
    calls: list[str] = []

    def on_hangup() -> None:
        calls.append(threading.current_thread().name)
        pair.hung_up.set()

    with watcher.watch(pair.server, on_hangup):
        pair.client.shutdown(socket.SHUT_WR)
        assert pair.hung_up.wait(WAIT)
        pair.client.close()
        proves_itself(watcher)
        proves_itself(watcher)
    assert calls == ["hangup-watcher"]


def test_nobody_is_told_after_the_watch(watcher: HangupWatcher, pair: Pair) -> None:
    with watcher.watch(pair.server, pair.hung_up.set):
        pass
    pair.client.close()
    proves_itself(watcher)
    assert not pair.hung_up.is_set()


def test_a_socket_may_be_watched_again(watcher: HangupWatcher, pair: Pair) -> None:
    for _ in range(3):
        with watcher.watch(pair.server, pair.hung_up.set):
            pass
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.client.close()
        assert pair.hung_up.wait(WAIT)


def test_a_socket_with_the_number_of_one_that_left_is_another(watcher: HangupWatcher, pair: Pair) -> None:
    first = pair.hung_up
    number = pair.server.fileno()
    with watcher.watch(pair.server, first.set):
        pass
    pair.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    second = threading.Event()
    taken = {end.fileno(): end for end in (client, server)}
    watched = taken[number]
    with watcher.watch(watched, second.set):
        proves_itself(watcher)
        assert not second.is_set()
        (server if watched is client else client).close()
        assert second.wait(WAIT)
    assert not first.is_set()
    watched.close()


def test_many_sockets_are_watched_at_once(watcher: HangupWatcher) -> None:
    pairs = [Pair() for _ in range(20)]
    threads = []
    go = threading.Event()

    def watch(pair: Pair) -> None:
        with watcher.watch(pair.server, pair.hung_up.set):
            go.wait(WAIT)

    for pair in pairs:
        threads.append(threading.Thread(target=watch, args=[pair]))
        threads[-1].start()
    for pair in pairs[::2]:
        pair.client.close()
    assert all(pair.hung_up.wait(WAIT) for pair in pairs[::2])
    proves_itself(watcher)
    assert not any(pair.hung_up.is_set() for pair in pairs[1::2])
    go.set()
    for thread in threads:
        thread.join(WAIT)
    for pair in pairs:
        pair.close()


@pytest.mark.parametrize("use_epoll", [True, False], ids=["epoll", "looking"])
def test_a_socket_that_this_side_closes_does_not_end_the_watching(use_epoll: bool, pair: Pair) -> None:
    watcher = HangupWatcher(use_epoll)
    with watcher.watch(pair.server, pair.hung_up.set):
        pair.server.close()
        proves_itself(watcher)
    proves_itself(watcher)
