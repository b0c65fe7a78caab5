"""Who asks: the headers that the edge passes on with each call, and the cookies that it brings back.

The gRPC proxy decides what they mean; the edge neither reads nor logs them.
"""

from __future__ import annotations

from collections.abc import Iterable

import flask
from werkzeug.datastructures import Headers

from lambdalm.errors import Code, LlmError

Metadata = tuple[tuple[str, str], ...]

_PASSED_ON = ("Cookie", "Authorization", "X-Api-Key")
_SET_COOKIE = "set-cookie"
# Of all of them together. gRPC refuses a call with more than 8 KiB of metadata, which holds some of its own.
_MAX_BYTES = 6144


class Caller:
    """One request's caller. `metadata` goes with the call; `cookies` are the Set-Cookie values for the answer."""

    def __init__(self, metadata: Metadata = ()) -> None:
        self.metadata = metadata
        self.cookies: tuple[str, ...] = ()

    def answered(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Take the cookies in a call's initial or trailing metadata: it has the same in both, so the first count."""
        if not self.cookies:
            found = (value for name, value in metadata or () if name == _SET_COOKIE)
            self.cookies = tuple(value for value in found if isinstance(value, str))


def read(headers: Headers) -> Caller:
    """The caller with these headers; raises `LlmError(INVALID_ARGUMENT)` that names one that gRPC cannot carry."""
    given = {name: headers[name] for name in _PASSED_ON if headers.get(name)}
    for name, value in given.items():
        if not (value.isascii() and value.isprintable()):
            raise LlmError(Code.INVALID_ARGUMENT, f"{name}: this header may hold printable ASCII only")
    if sum(map(len, given.values())) > _MAX_BYTES:
        longest = max(given, key=lambda name: len(given[name]))
        names = ", ".join(_PASSED_ON)
        raise LlmError(Code.INVALID_ARGUMENT, f"{longest}: too long; {names} may have {_MAX_BYTES} characters in all")
    return Caller(tuple((name.lower(), value) for name, value in given.items()))


def current() -> Caller:
    """The caller of the current request, whose answer (an error, too) will set the cookies; raises as `read` does."""
    caller = read(flask.request.headers)

    @flask.after_this_request
    def set_cookies(response: flask.Response) -> flask.Response:
        for cookie in caller.cookies:
            response.headers.add("Set-Cookie", cookie)
        return response

    return caller
