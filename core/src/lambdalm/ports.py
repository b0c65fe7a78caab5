"""Ports: how one is refused, and how one is held for several processes that share it.

Linux lets sockets of one user share a port if all of them have SO_REUSEPORT; it spreads connections over those that
listen. So a second server of that user could share it as well, without a word. `hold` therefore first binds the port
without the option, which fails if anybody has it, and then keeps a socket bound that has the option. It does not
listen, so that no connection ever comes to it, and as long as it lives nobody without SO_REUSEPORT gets the port.
"""

from __future__ import annotations

import errno
import socket

from lambdalm.listen import Listen


def refused(listen: Listen, error: OSError) -> OSError:
    """The same error as one line for people."""
    taken = error.errno == errno.EADDRINUSE
    why = "is another server running there?" if taken else error.strerror or str(error)
    return OSError(f"cannot listen on {listen.address}: {why}")


def hold(listen: Listen) -> list[socket.socket]:
    """Sockets that keep this port for this process and its children, until they are closed.

    Raises OSError where the port is not to be had, or is 0: each process would take another.
    """
    if listen.port == 0:
        raise OSError(f"cannot listen on {listen.address}: several workers share one port, so give it a number")
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise refused(listen, error) from None
    held: list[socket.socket] = []
    try:
        for family, _, _, _, address in found:
            _bound(family, address, shared=False).close()
            held.append(_bound(family, address, shared=True))
    except OSError as error:
        for sock in held:
            sock.close()
        raise refused(listen, error) from None
    return held


def _bound(family: int, address: tuple[str | int, ...] | tuple[int, bytes], shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A server that stopped leaves connections behind in TIME_WAIT; they are no reason to refuse.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        sock.bind(address)
        # Two sockets that both have it may be bound at once as long as none listens: from here on not with this one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)
    except OSError:
        sock.close()
        raise
    return sock
