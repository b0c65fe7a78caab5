"""How the proxy tells its upstream who it is: not at all, by a token, or by signing each request as AWS wants it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from lambdalm.credentials import hidden, read_secret
from lambdalm.errors import Code, LlmError

_LOOK_SECONDS = 10.0  # between looks for credentials where there were none: a look may take seconds

Headers = dict[str, str]
Word = Annotated[str, Meta(pattern=r"^[a-z0-9-]+$")]


class AuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `auth` of an upstream. `token` is for bearer and x-api-key, `region` and `service` for aws_sigv4.

    Where `kind` is not said, a token goes as a bearer: what a backend is given it wants, its proxy is given to bring.
    """

    kind: Literal["none", "bearer", "x-api-key", "aws_sigv4"] | None = None
    token: str | None = None
    token_file: str | None = None
    region: Word | None = None
    service: Word = "execute-api"

    def __post_init__(self) -> None:
        if self.kind in ("bearer", "x-api-key") and self.token is None and self.token_file is None:
            raise ValueError(f"kind {self.kind} needs token_file or token")
        if self.kind == "aws_sigv4" and self.region is None:
            raise ValueError("kind aws_sigv4 needs region, as us-east-1")


class Auth(Protocol):
    """One way to do it."""

    async def headers(self, method: str, url: str, headers: Headers, body: bytes) -> Headers:
        """These headers and those that prove who asks; the request must go out exactly so. Raises LlmError."""
        ...

    def hidden(self, error: LlmError) -> LlmError:
        """The same error without any secret in its message."""
        ...


def make_auth(config: AuthConfig) -> Auth:
    """Raises `LlmError(FAILED_PRECONDITION)` for a token that cannot be read."""
    has_token = config.token is not None or config.token_file is not None
    return _KINDS[config.kind or ("bearer" if has_token else "none")](config)


class _Fixed:
    """The same headers for every request."""

    def __init__(self, headers: Headers, secret: str | None) -> None:
        self._headers = headers
        self._secret = secret

    async def headers(self, method: str, url: str, headers: Headers, body: bytes) -> Headers:
        return {**headers, **self._headers}

    def hidden(self, error: LlmError) -> LlmError:
        return hidden(error, self._secret)


class _SigV4:
    """AWS Signature Version 4 over the whole request, with credentials from wherever botocore finds them.

    Credentials of a role run out. botocore then fetches new ones, over HTTP and blocking, whenever it is asked for them
    and they are close to their end; so it is asked in a thread, for each request, and the event loop never waits.
    """

    def __init__(self, config: AuthConfig) -> None:
        self._region = config.region
        self._service = config.service
        self._lock = threading.Lock()
        self._found: Any = None
        self._look_again = -math.inf
        self._secrets: tuple[str | None, ...] = ()
        # At DEBUG botocore logs what it signs, which has the session's token in it.
        logging.getLogger("botocore").setLevel(logging.INFO)

    async def headers(self, method: str, url: str, headers: Headers, body: bytes) -> Headers:
        return await asyncio.to_thread(self._sign, method, url, headers, body)

    def hidden(self, error: LlmError) -> LlmError:
        for secret in self._secrets:
            error = hidden(error, secret)
        return error

    def _sign(self, method: str, url: str, headers: Headers, body: bytes) -> Headers:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            credentials = self._credentials().get_frozen_credentials()
            self._secrets = (credentials.secret_key, credentials.token)
            request = AWSRequest(method=method, url=url, data=body, headers=headers)
            SigV4Auth(credentials, self._service, self._region).add_auth(request)
        except (BotoCoreError, ClientError, RuntimeError, ValueError) as error:  # all that fetching them may raise
            why = error.response["Error"].get("Code") if isinstance(error, ClientError) else type(error).__name__
            raise _unsigned(f"AWS credentials cannot be had: {why}") from None
        return dict(request.headers.items())

    def _credentials(self) -> Any:
        """Looked for once, when they are first needed; raises LlmError where there are none."""
        from botocore.session import Session

        with self._lock:
            if self._found is None and time.monotonic() >= self._look_again:
                self._found = Session().get_credentials()
                self._look_again = time.monotonic() + _LOOK_SECONDS
        if self._found is None:
            raise _unsigned(
                "there are no AWS credentials: give the proxy a role, or set AWS_ACCESS_KEY_ID or AWS_PROFILE"
            )
        return self._found


def _unsigned(why: str) -> LlmError:
    return LlmError(Code.UNAVAILABLE, f"the upstream's auth: {why}", origin="proxy")


def _none(config: AuthConfig) -> Auth:
    return _Fixed({}, None)


def _bearer(config: AuthConfig) -> Auth:
    token = read_secret("auth.token", config.token, config.token_file)
    return _Fixed({"Authorization": f"Bearer {token}"}, token)


def _api_key(config: AuthConfig) -> Auth:
    token = read_secret("auth.token", config.token, config.token_file)
    return _Fixed({"x-api-key": str(token)}, token)


_KINDS: dict[str, Callable[[AuthConfig], Auth]] = {
    "none": _none,
    "bearer": _bearer,
    "x-api-key": _api_key,
    "aws_sigv4": _SigV4,
}
