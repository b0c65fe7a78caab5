"""Who calls: the bearer of a key, or, where the proxy asks for none, whoever has a random cookie.

Both are secrets, so what a caller owns is kept under a name that does not give them away. The cookies are those of
seed 000 (`LlmServiceStickiness`, which an ALB and other clients know) and one for the owner beside it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from grpc_proxy.keys import KeyEntry, KeyRing, presented
from lambdalm.errors import Code, LlmError

CookieName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]

_OWNER = re.compile(r"[A-Za-z0-9_-]{22,64}")  # as we make them: 128 random bits and more
_OWNER_BYTES = 18
_MAX_COOKIE = 256


class StickyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `sticky`: the cookies of a caller's session and of what is the caller's."""

    enabled: bool = True
    cookie: CookieName = "LlmServiceStickiness"
    owner_cookie: CookieName = "LlmServiceOwner"

    def __post_init__(self) -> None:
        if self.cookie == self.owner_cookie:
            raise ValueError("owner_cookie: must have another name than cookie")


class Caller(NamedTuple):
    """Who calls. `owner` names them in the store, `secret` is what they proved it with."""

    owner: str
    secret: bytes
    key: KeyEntry | None = None
    cookie: str | None = None
    """The value of the owner's cookie, where that is how they are known."""
    session: str | None = None
    """The session that their cookie names."""
    is_new: bool = False
    """Whether they have just been given their cookie, so that they cannot own anything yet."""


class Callers:
    """Tells who calls. `ring` is None where no keys are wanted; cookies are set for `seconds`."""

    def __init__(self, config: StickyConfig, ring: KeyRing | None, seconds: float) -> None:
        self._config = config
        self._ring = ring
        self._seconds = seconds

    def identify(self, metadata: Mapping[str, str]) -> Caller:
        """The caller; raises `LlmError(UNAUTHENTICATED)` where a key is wanted and none that counts is given."""
        cookies = _cookies(metadata.get("cookie", "")) if self._config.enabled else {}
        session = cookies.get(self._config.cookie) or None
        if session is not None and len(session) > _MAX_COOKIE:
            session = None
        if self._ring is not None:
            return self._bearer(self._ring, metadata, session)
        given = cookies.get(self._config.owner_cookie, "")
        is_new = not _OWNER.fullmatch(given)
        cookie = secrets.token_urlsafe(_OWNER_BYTES) if is_new else given
        owner = f"cookie-{_digest(cookie)}"
        return Caller(owner, cookie.encode(), cookie=cookie, session=session, is_new=is_new)

    def set_cookies(self, caller: Caller, session_id: str) -> list[str]:
        """The values of the Set-Cookie headers with which the caller comes back to this session."""
        if not self._config.enabled:
            return []
        values = {self._config.cookie: session_id}
        if caller.cookie is not None:
            values[self._config.owner_cookie] = caller.cookie
        return [f"{name}={value}; Path=/; Max-Age={self._seconds:.0f}; HttpOnly" for name, value in values.items()]

    def remembers(self, caller: Caller) -> bool:
        """Whether the caller can come back: by a key, or by cookies where they are on."""
        return caller.key is not None or self._config.enabled

    def _bearer(self, ring: KeyRing, metadata: Mapping[str, str], session: str | None) -> Caller:
        key = presented(metadata)
        entry = None if key is None else ring.find(key)
        if key is None or entry is None:
            what = "no API key came with it" if key is None else "its API key is not known, or was revoked"
            why = f"{what}: send the header Authorization: Bearer <key>"
            raise LlmError(Code.UNAUTHENTICATED, why)
        return Caller(f"key-{entry.id}", key.encode(), entry, session=session)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


def _cookies(header: str) -> dict[str, str]:
    """Names and values of a Cookie header (RFC 6265, section 5.4); the first of two with one name counts."""
    found: dict[str, str] = {}
    for pair in header.split(";"):
        name, is_pair, value = pair.strip().partition("=")
        if is_pair:
            found.setdefault(name, value.strip('"'))
    return found
