"""Bedrock's errors and botocore's as LlmErrors: one table, whose first row that fits counts.

An error has the same name before a stream and in it, but for its first letter: `ThrottlingException` in the header
`x-amzn-errortype`, `throttlingException` in an event. Words are those that AWS writes today; a row with words is
followed by one without, so that other words cost the advice and not the code. Names and statuses: botocore's model
of bedrock-runtime, and AWS's list of common errors.

What AWS says about a signature repeats what was signed, so that these errors are not quoted.
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    InvalidEndpointConfigurationError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from lambdalm.errors import Code, LlmError, code_of_http_status

_MAX_QUOTE = 200  # characters, so that the advice after it is not cut off; whole words, so that no secret is cut
_NAME = re.compile(r"[A-Za-z]{1,64}")
_BEDROCKS = ("ConverseStream", "InvokeModelWithResponseStream")  # other operations are those that fetch credentials

GIVE_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_BEARER_TOKEN_BEDROCK, or AWS_PROFILE "
    "(provider.bedrock.profile), or give the machine a role"
)
_RENEW = "renew the credentials (for example `aws sso login`), then try again"
_CHECK_KEY = f"AWS does not take these credentials: {GIVE_CREDENTIALS}; and see that the clock is right"
_SUCCESSOR = "ask for its successor; that of Titan Text is us.amazon.nova-2-lite-v1:0, with `api: converse`"


class Row(NamedTuple):
    """What an error of this name, with these words in its message, is for us; `retry_after` in seconds."""

    name: str
    words: str
    code: Code
    advice: str = ""
    retry_after: float | None = None
    quoted: bool = True


TABLE = (
    Row(
        "ValidationException",
        "on-demand throughput",
        Code.INVALID_ARGUMENT,
        "ask for an inference profile that holds this model, by its id (us.… or global.…) or its ARN",
    ),
    Row("ValidationException", "model identifier is invalid", Code.NOT_FOUND, "see `model` and `region`"),
    Row("ValidationException", "", Code.INVALID_ARGUMENT),
    Row("ServiceQuotaExceededException", "", Code.RESOURCE_EXHAUSTED, "AWS raises quotas on request"),
    Row(
        "AccessDeniedException",
        "API Key",
        Code.UNAUTHENTICATED,
        "AWS_BEARER_TOKEN_BEDROCK needs a key that is valid",
        quoted=False,
    ),
    Row(
        "AccessDeniedException",
        "",
        Code.PERMISSION_DENIED,
        "enable access to the model in the Bedrock console, and allow bedrock:InvokeModelWithResponseStream",
    ),
    Row("ResourceNotFoundException", "end of its life", Code.NOT_FOUND, _SUCCESSOR),
    Row("ResourceNotFoundException", "", Code.NOT_FOUND, "see `model` and `region`"),
    Row("ModelTimeoutException", "", Code.DEADLINE_EXCEEDED),
    Row("ModelErrorException", "", Code.INTERNAL),
    Row("ModelStreamErrorException", "", Code.INTERNAL),
    Row("ThrottlingException", "", Code.RESOURCE_EXHAUSTED, retry_after=1),
    Row("ModelNotReadyException", "", Code.UNAVAILABLE, retry_after=5),
    Row("InternalServerException", "", Code.INTERNAL),
    Row("ServiceUnavailableException", "", Code.UNAVAILABLE, retry_after=1),
    Row("ConflictException", "", Code.ABORTED),
    Row("ExpiredTokenException", "", Code.UNAUTHENTICATED, _RENEW, quoted=False),
    Row("ExpiredToken", "", Code.UNAUTHENTICATED, _RENEW, quoted=False),
    Row("RequestExpired", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("UnrecognizedClientException", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("InvalidClientTokenId", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("InvalidSignatureException", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("SignatureDoesNotMatch", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("IncompleteSignature", "", Code.UNAUTHENTICATED, _CHECK_KEY, quoted=False),
    Row("MissingAuthenticationTokenException", "", Code.UNAUTHENTICATED, GIVE_CREDENTIALS, quoted=False),
    Row("NoCredentialsError", "", Code.FAILED_PRECONDITION, GIVE_CREDENTIALS, quoted=False),
    Row("PartialCredentialsError", "", Code.FAILED_PRECONDITION, GIVE_CREDENTIALS, quoted=False),
    Row("NoAuthTokenError", "", Code.FAILED_PRECONDITION, GIVE_CREDENTIALS, quoted=False),
    Row("CredentialRetrievalError", "", Code.FAILED_PRECONDITION, _RENEW, quoted=False),
    Row("TokenRetrievalError", "", Code.FAILED_PRECONDITION, _RENEW, quoted=False),
    Row("SSOError", "", Code.FAILED_PRECONDITION, _RENEW, quoted=False),
    Row("ParamValidationError", "", Code.INVALID_ARGUMENT),
    Row("InvalidEndpointConfigurationError", "", Code.FAILED_PRECONDITION, "see provider.bedrock.endpoint_url"),
    Row("HTTPClientError", "", Code.UNAVAILABLE, "the credentials could not be fetched", 1, quoted=False),
    Row("ConnectionError", "", Code.UNAVAILABLE, "the credentials could not be fetched", 1, quoted=False),
)

# What a library's error is called in the table: its own name, or that of the family that it is of.
_FAMILIES: tuple[type[BotoCoreError], ...] = (
    NoCredentialsError,
    PartialCredentialsError,
    NoAuthTokenError,
    CredentialRetrievalError,
    TokenRetrievalError,
    SSOError,
    ParamValidationError,
    InvalidEndpointConfigurationError,
    HTTPClientError,
    BotoConnectionError,
)


def answered(name: str, message: str, status: int = 500, retry_after: float | None = None) -> LlmError:
    """The error of this name that AWS answered with, before a stream or in it."""
    name = name[:1].upper() + name[1:] if _NAME.fullmatch(name) else ""
    row = _row(name, message) or Row(name, "", code_of_http_status(status))
    return _error(row, name or f"HTTP {status}", message, retry_after)


def from_client_error(error: ClientError) -> LlmError:
    """What AWS answered in place of a stream, as botocore has read it."""
    metadata = error.response.get("ResponseMetadata", {})
    said = error.response.get("Error", {})
    if error.operation_name not in _BEDROCKS:
        return unfetched(f"{error.operation_name}: {said.get('Code')}")
    return answered(
        str(said.get("Code") or ""),
        str(said.get("Message") or ""),
        metadata.get("HTTPStatusCode", 500),
        _seconds(metadata.get("HTTPHeaders", {}).get("retry-after")),
    )


def unfetched(why: str) -> LlmError:
    """The error of a role or a login whose credentials could not be had; `why` holds none of them."""
    return LlmError(Code.FAILED_PRECONDITION, f"Bedrock: the credentials could not be fetched ({why}); {_RENEW}")


def from_library(error: BotoCoreError) -> LlmError:
    """What botocore says before a request goes out: credentials, parameters."""
    name = next((family.__name__ for family in _FAMILIES if isinstance(error, family)), type(error).__name__)
    row = _row(name, "") or Row(name, "", Code.INTERNAL, quoted=False)
    return _error(row, type(error).__name__, str(error), None)


def cannot_start(error: BotoCoreError) -> LlmError:
    """The same where a client is made: a profile, region or file that there is not."""
    found = from_library(error)
    why = str(error) if found.code is Code.INTERNAL else found.message
    return LlmError(Code.FAILED_PRECONDITION, why)


def _row(name: str, message: str) -> Row | None:
    return next((row for row in TABLE if row.name == name and row.words in message), None)


def _error(row: Row, name: str, message: str, retry_after: float | None) -> LlmError:
    quote = textwrap.shorten(message, _MAX_QUOTE, placeholder=" …") if row.quoted else ""
    why = "; ".join(part for part in (quote, row.advice) if part)
    return LlmError(row.code, f"Bedrock: {name}{': ' if why else ''}{why}", retry_after=retry_after or row.retry_after)


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None
