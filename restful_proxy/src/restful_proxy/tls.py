"""TLS with the gRPC proxy: which files it takes, and what is made of them.

They are tried with OpenSSL before gRPC gets them: gRPC takes any bytes, and then fails every call.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec

from lambdalm.errors import Code, LlmError

Stamps = tuple[tuple[int, int, int] | None, ...]
"""When each file was written, its size and its inode; None where it is not there."""

_ALPN = ["h2"]


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `grpc.tls`; the paths are of PEM files.

    Without `ca_path` the system's authorities count. `cert_path` and `key_path` are what the edge shows of itself.
    `server_name` is the name that the proxy's certificate must have, where that is not the host of `grpc.target`.
    """

    enabled: bool = False
    ca_path: str | None = None
    cert_path: str | None = None
    key_path: str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_path is None) != (self.key_path is None):
            raise ValueError("cert_path and key_path go together: set both, or neither")
        for key in ("ca_path", "cert_path"):
            if getattr(self, key) is not None and not self.enabled:
                raise ValueError(f"{key} is set and enabled is not (GRPC_USE_TLS): without TLS it protects nothing")

    @property
    def authorities(self) -> str | None:
        """The file with the authorities that count; None for those that gRPC brings, where the system has no file."""
        return self.ca_path or ssl.get_default_verify_paths().cafile


def check(config: TlsConfig) -> None:
    """Raises `LlmError(FAILED_PRECONDITION)` that names the key of a file that cannot be used."""
    if config.enabled:
        context(config)


def context(config: TlsConfig) -> ssl.SSLContext:
    """For a handshake of our own; raises `LlmError(FAILED_PRECONDITION)` that names the file that cannot be used."""
    with _naming("ca_path", config.authorities):
        made = ssl.create_default_context(cafile=config.authorities)
    if config.cert_path is not None:
        with _naming("cert_path", config.cert_path):
            made.load_cert_chain(config.cert_path, config.key_path, password="")  # there is no one to ask for it
    made.set_alpn_protocols(_ALPN)
    return made


def credentials(config: TlsConfig) -> grpc.ChannelCredentials:
    """For gRPC, of the files as they are now; raises as `context` does."""
    context(config)
    return grpc.ssl_channel_credentials(
        _bytes("ca_path", config.authorities),
        _bytes("key_path", config.key_path),
        _bytes("cert_path", config.cert_path),
    )


def stamps(config: TlsConfig) -> Stamps:
    """Different from before when a file has changed."""
    return tuple(_stamp(path) for path in (config.authorities, config.cert_path, config.key_path) if path is not None)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        stat = Path(path).stat()
    except OSError:  # it is being replaced
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _bytes(key: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    with _naming(key, path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def _naming(key: str, path: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        why = error.reason.replace("_", " ").lower() if isinstance(error, ssl.SSLError) else error.strerror
        raise _unusable(key, f"{path} cannot be used: {why}") from None


def _unusable(key: str, why: str) -> LlmError:
    return LlmError(Code.FAILED_PRECONDITION, f"grpc.tls.{key}: {why}")
