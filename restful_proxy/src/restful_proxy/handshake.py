"""Why TLS with the gRPC proxy fails: gRPC says it badly, so it is found out by a handshake of our own.

Theory of operation. OpenSSL says what it refuses a certificate for, and then does not show it. So where a date or a
name is what is wrong, a second handshake passes over just these two, and reads them. With TLS 1.3 the client is done
before the server has looked at the client's certificate: that it refuses it shows only in what can be read then. A
gRPC server speaks first, so that a byte means that all is well.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

from lambdalm.errors import LlmError
from restful_proxy import tls
from restful_proxy.tls import TlsConfig

_SECONDS = 1.0  # for one look, and between two

# X509_V_ERR_… of OpenSSL's x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME, _OTHER_ADDRESS = 62, 64
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME

_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}


class Inspector:
    """Examines the TLS of the proxy at `target` (host:port), at most once a second for all that ask.

    The handshake blocks, so it runs in a thread; those that ask wait for it together.
    """

    def __init__(self, target: str, config: TlsConfig) -> None:
        self._target = target
        self._config = config
        self._examination: asyncio.Task[str | None] | None = None
        self._stale = -math.inf

    async def fault(self) -> str | None:
        """What is wrong; None when nothing is, when the proxy does not answer, or when that takes over a second."""
        examination = self._examination
        if examination is None or (examination.done() and time.monotonic() >= self._stale):
            examination = self._examination = asyncio.create_task(self._examine())
        await asyncio.wait([examination], timeout=_SECONDS)
        return examination.result() if examination.done() else None

    async def _examine(self) -> str | None:
        found = await asyncio.to_thread(self._look)
        self._stale = time.monotonic() + _SECONDS
        return found

    def _look(self) -> str | None:
        deadline = time.monotonic() + _SECONDS
        host, name = self._host_and_name()
        try:
            context = tls.context(self._config)
            try:
                spoke = _handshake(context, self._address(host), name, deadline)[1]
            except ssl.SSLCertVerificationError as error:
                return f"the certificate of the gRPC proxy at {self._target} {self._refused(error, deadline)}"
        except LlmError as error:
            return error.message
        except ssl.SSLError as error:
            return f"{self._proxy} {_broken(error)}"
        except (OSError, ValueError):  # no server there, or no such name: gRPC says so well enough
            return None
        return None if spoke else f"{self._proxy} closed the connection after the TLS handshake: {self._stranger()}"

    @property
    def _proxy(self) -> str:
        return f"the gRPC proxy at {self._target}"

    def _host_and_name(self) -> tuple[str, str]:
        host = self._target.rpartition(":")[0].strip("[]")
        return host, self._config.server_name or host

    def _address(self, host: str) -> tuple[str, int]:
        return host, int(self._target.rpartition(":")[2])

    def _refused(self, error: ssl.SSLCertVerificationError, deadline: float) -> str:
        host, name = self._host_and_name()
        code = error.verify_code
        if code in _UNKNOWN_AUTHORITY:
            return f"is not signed by an authority in {self._config.authorities} (grpc.tls.ca_path)"
        if code not in (_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS):
            return f"is refused: {error.verify_message}"
        lenient = tls.context(self._config)
        lenient.check_hostname = False
        lenient.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
        shown = _handshake(lenient, self._address(host), name, deadline)[0]
        if code == _EXPIRED:
            return f"expired on {_day(shown['notAfter'])}"
        if code == _NOT_YET_VALID:
            return f"is not valid before {_day(shown['notBefore'])}: are the clocks right?"
        return f"is for another name ({_names(shown)}) than {name}: grpc.tls.server_name says which to expect"

    def _stranger(self) -> str:
        if self._config.cert_path is None:
            return "it wants a client certificate, it seems: set grpc.tls.cert_path and key_path"
        return f"it does not accept the client certificate in {self._config.cert_path}, it seems"


def _handshake(
    context: ssl.SSLContext, address: tuple[str, int], name: str, deadline: float
) -> tuple[Mapping[str, Any], bool]:
    """The certificate, and whether the server spoke afterwards, rather than hanging up."""
    with socket.create_connection(address, _left(deadline)) as plain:
        plain.settimeout(_left(deadline))
        with context.wrap_socket(plain, server_hostname=name) as secure:
            certificate = secure.getpeercert() or {}
            try:
                return certificate, secure.recv(1) != b""
            except TimeoutError:
                return certificate, True  # silent, and not gone
            except (ssl.SSLError, ConnectionError):
                return certificate, False


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def _broken(error: ssl.SSLError) -> str:
    if error.reason in _NO_TLS:
        return "does not speak TLS, which grpc.tls.enabled asks for: set USE_TLS there"
    return f"and this edge find no common TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"


def _day(date: str) -> str:
    """OpenSSL's "Feb  1 00:00:00 2020 GMT" as "2020-02-01 00:00 UTC"."""
    at = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(date), datetime.UTC)
    return at.strftime("%Y-%m-%d %H:%M UTC")


def _names(certificate: Mapping[str, Any]) -> str:
    return ", ".join(str(value) for _, value in certificate.get("subjectAltName", ())) or "none at all"
