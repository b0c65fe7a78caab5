"""Noticing that a client has left, while a thread works for it and reads nothing from its socket.

One thread waits on all sockets in flight for the hang-up (EPOLLRDHUP) and calls back within milliseconds. A client
that closes only its sending half has left, too: nobody who still wants an answer does that.
Where there is no epoll (macOS), the same thread looks at each socket 20 times a second instead.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator

Callback = Callable[[], None]


class HangupWatcher:
    """Watches sockets from one daemon thread. Make it after the fork: threads do not survive one."""

    def __init__(self, use_epoll: bool = hasattr(select, "epoll")) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, tuple[socket.socket, Callback]] = {}
        self._epoll = select.epoll() if use_epoll else None
        self._some = threading.Event()  # without epoll: there is something to look at
        target = self._wait if use_epoll else self._look
        threading.Thread(target=target, name="hangup-watcher", daemon=True).start()

    @contextlib.contextmanager
    def watch(self, sock: socket.socket, on_hangup: Callback) -> Iterator[None]:
        """While inside, `on_hangup` is called (once, from the watcher's thread) when the peer hangs up."""
        fd = sock.fileno()
        with self._lock:
            self._watched[fd] = (sock, on_hangup)
            if self._epoll is not None:
                self._epoll.register(fd, select.EPOLLRDHUP)
            self._some.set()
        try:
            yield
        finally:
            with self._lock:
                if self._watched.pop(fd, None) is not None:
                    self._unregister(fd)

    def _unregister(self, fd: int) -> None:
        if self._epoll is not None:
            with contextlib.suppress(OSError):  # closed on this side, epoll has forgotten it
                self._epoll.unregister(fd)

    def _wait(self) -> None:
        assert self._epoll is not None
        while True:
            for fd, _ in self._epoll.poll():
                self._fire(fd)

    def _look(self) -> None:
        pause = threading.Event()
        while True:
            self._some.wait()
            with self._lock:
                watched = list(self._watched)
                if not watched:
                    self._some.clear()
            for fd in watched:
                self._fire(fd)
            pause.wait(0.05)

    def _fire(self, fd: int) -> None:
        """Call back if the socket now watched as `fd` has hung up (the event may be of one that had the number)."""
        with self._lock:
            sock, callback = self._watched.get(fd, (None, None))
            if sock is None or callback is None or not _has_hung_up(sock):
                return
            del self._watched[fd]
            self._unregister(fd)
        callback()


def _has_hung_up(sock: socket.socket) -> bool:
    if sock.fileno() < 0:
        return True
    if hasattr(select, "POLLRDHUP"):
        poller = select.poll()
        poller.register(sock, select.POLLRDHUP)
        return bool(poller.poll(0))
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
