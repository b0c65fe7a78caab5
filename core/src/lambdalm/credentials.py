"""Keys and tokens: read from a file or from the config (there from the environment), and never shown."""

from __future__ import annotations

import hmac
from pathlib import Path

from lambdalm.errors import Code, LlmError

_MASK = "********"
_CUT = "…"  # how LlmError ends a message that is too long
_FEW = 3  # characters that give nothing away


def read_secret(key: str, value: str | None, file: str | None) -> str | None:
    """The secret: the first line of `file`, or `value`; None where there is neither. `key` names the config's key.

    Raises `LlmError(FAILED_PRECONDITION)` for a file that cannot be read and for what no HTTP header can carry.
    """
    if value is not None and file is not None:
        raise LlmError(Code.FAILED_PRECONDITION, f"{key} and {key}_file are both set: give one of the two")
    if file is not None:
        try:
            value = Path(file).read_text(encoding="utf-8").partition("\n")[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise LlmError(Code.FAILED_PRECONDITION, f"{key}_file: {file} cannot be read: {why}") from None
    if value is not None and not (value and value.isascii() and value.isprintable()):
        raise LlmError(Code.FAILED_PRECONDITION, f"{key}: a secret must be printable ASCII on one line, and not empty")
    return value


def bears(header: str, token: str) -> bool:
    """Whether this value of `Authorization` is the bearer token, found in a time that does not tell how much of it."""
    scheme, _, given = header.partition(" ")
    right = hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), token.encode())
    return right and scheme.lower() == "bearer"


def no_token() -> LlmError:
    """The refusal of whoever does not bear it."""
    why = "this server wants its bearer token: send the header Authorization: Bearer <token>"
    return LlmError(Code.UNAUTHENTICATED, why)


def hidden(error: LlmError, secret: str | None) -> LlmError:
    """The same error without the secret in its message, nor its beginning where a long message was cut within it.

    Servers do repeat the key that they refuse.
    """
    if not secret:
        return error
    message = error.message.replace(secret, _MASK)
    if message.endswith(_CUT):
        said = message[: -len(_CUT)]
        shown = next((size for size in range(len(secret), _FEW, -1) if said.endswith(secret[:size])), 0)
        message = said[: len(said) - shown] + _CUT
    return LlmError(error.code, message, retry_after=error.retry_after, origin=error.origin)
