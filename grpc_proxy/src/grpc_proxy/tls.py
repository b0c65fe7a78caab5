"""The server's certificate: read, checked, served, and taken anew when its files change.

Theory of operation. The files are read whole every `reload_seconds`, in a thread. When their bytes are others than
before, they are checked together: the key must be that of the certificate, and every block must be whole. Files that
fail (half written, one of the two not replaced yet) leave what is served as it is, and the log says why. Files that
pass are served to whoever connects from then on: gRPC asks for news at each connection, and an SSL context hands each
handshake to the newest context by its `sni_callback`, which OpenSSL calls also where no name was sent. (A new pair
loaded into the same context would leave the old one in it if its key is of another kind.)
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import grpc
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from grpc_proxy.following import followed
from lambdalm import logs
from lambdalm.errors import Code, LlmError

_SOON = datetime.timedelta(days=14)
_LIFE = datetime.timedelta(days=3650)
_BEGIN = b"-----BEGIN CERTIFICATE-----"

_log = logs.get(__name__)


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `tls`. The HTTPS bridge has this certificate, too, if there is one, whether or not gRPC is `enabled`
    to use it; `client_ca_path` makes gRPC refuse clients without a certificate that it has signed."""

    enabled: bool = False
    cert_path: str | None = None
    key_path: str | None = None
    client_ca_path: str | None = None
    reload_seconds: Annotated[float, Meta(gt=0, le=86400)] = 1

    def __post_init__(self) -> None:
        wanted = self.enabled or self.cert_path is not None or self.key_path is not None
        for key in ("cert_path", "key_path"):
            if wanted and getattr(self, key) is None:
                raise ValueError(f"{key} is missing (TLS_{key.upper()}): TLS needs a certificate and its key")
        if self.client_ca_path is not None and not self.enabled:
            raise ValueError("client_ca_path is given, but enabled is false (USE_TLS): nobody would be asked for one")


class Pem(NamedTuple):
    """A certificate with its chain, its key, and the authorities that sign clients' certificates, as in PEM files."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


class Certificate:
    """What the files of the config held when they last were good together."""

    def __init__(self, config: TlsConfig) -> None:
        """Raises `LlmError(FAILED_PRECONDITION)` that names the file which cannot be used."""
        self._config = config
        self._trouble: str | None = None
        self._seen = _read(config)
        self._take(self._seen)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: clients must have a certificate, too, if the config has `client_ca_path`."""
        given = self._for_grpc

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self._for_grpc is given:
                return None  # no change
            given = self._for_grpc
            return given

        asks_clients = self._config.client_ca_path is not None
        return grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type]  # the stubs lack the None
            require_client_authentication=asks_clients,
        )

    def https_context(self) -> ssl.SSLContext:
        """For an HTTPS server; clients are not asked for a certificate."""
        front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def newest(connection: ssl.SSLObject, _name: str | None, _front: ssl.SSLContext) -> None:
            connection.context = self._for_https

        front.sni_callback = newest
        return front

    def followed(self) -> contextlib.AbstractAsyncContextManager[None]:
        """As long as this lasts, files that change are taken anew."""
        return followed(self.look, self._config.reload_seconds)

    def look(self) -> None:
        """Take the files anew if they have changed and are good; the log says what happened."""
        try:
            found = _read(self._config)
            if found == self._seen:
                self._trouble = None
                return
            self._seen = found
            self._take(found)
            _log.info("a new certificate is in use", file=self._config.cert_path)
        except LlmError as error:
            if error.message != self._trouble:
                _log.warning("the new certificate cannot be used, the old one stays", why=error.message)
            self._trouble = error.message

    def _take(self, pem: Pem) -> None:
        leaf = _check(pem, self._config)
        try:
            self._for_https = server_context(pem)
        except OSError as error:  # OpenSSL wants more of a certificate than that it is one
            raise _unusable("cert_path", self._config.cert_path, f"cannot be served: {error.strerror}") from None
        self._for_grpc = grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.client_ca)
        _warn_of_end(leaf, str(self._config.cert_path))


def self_signed() -> Pem:
    """A certificate that nobody can trust, for who only wants a TLS connection, as an ALB's health checks do."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lambdalm grpc-proxy")])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    with contextlib.suppress(ValueError):  # what the machine is called need not be a name of DNS
        hosts.append(x509.DNSName(socket.gethostname()))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return Pem(certificate.public_bytes(pem), key.private_bytes(pem, pkcs8, plain))


def server_context(pem: Pem) -> ssl.SSLContext:
    """An SSL context that serves this pair. Python loads them from files only: from one that is ours alone and short-
    lived, so that what was checked is what is served."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem.key + b"\n" + pem.certificate)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _read(config: TlsConfig) -> Pem:
    ca = None if config.client_ca_path is None else _bytes("client_ca_path", config.client_ca_path)
    return Pem(_bytes("cert_path", config.cert_path), _bytes("key_path", config.key_path), ca)


def _bytes(key: str, file: str | None) -> bytes:
    try:
        return Path(str(file)).read_bytes()
    except OSError as error:
        raise _unusable(key, file, f"cannot be read: {error.strerror}") from None


def _check(pem: Pem, config: TlsConfig) -> x509.Certificate:
    """The server's own certificate; raises LlmError for what cannot be served."""
    leaf = _certificates(pem.certificate, "cert_path", config.cert_path)[0]
    if pem.client_ca is not None:
        _certificates(pem.client_ca, "client_ca_path", config.client_ca_path)
    try:
        belongs = serialization.load_pem_private_key(pem.key, None).public_key() == leaf.public_key()
    except TypeError:
        raise _unusable("key_path", config.key_path, "has a password: give a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("key_path", config.key_path, "holds no whole private key in PEM") from None
    if not belongs:
        raise _unusable("key_path", config.key_path, f"is not the key of the certificate in {config.cert_path}")
    return leaf


def _certificates(pem: bytes, key: str, file: str | None) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    if not found or len(found) < pem.count(_BEGIN):  # blocks that have no end are not found
        raise _unusable(key, file, "holds no whole certificates in PEM")
    return found


def _unusable(key: str, file: str | None, why: str) -> LlmError:
    return LlmError(Code.FAILED_PRECONDITION, f"tls.{key}: {file} {why}")


def _warn_of_end(leaf: x509.Certificate, file: str) -> None:
    end = leaf.not_valid_after_utc
    now = datetime.datetime.now(datetime.UTC)
    if end <= now:
        _log.warning("the certificate has expired: clients refuse it", file=file, expired=f"{end:%Y-%m-%d}")
    elif end - now < _SOON:
        _log.warning("the certificate expires soon", file=file, expires=f"{end:%Y-%m-%d}")
