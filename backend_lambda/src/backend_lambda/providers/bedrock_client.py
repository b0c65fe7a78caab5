"""boto3's client for Bedrock, with an HTTP of ours that can be stopped.

Theory of operation. boto3 finds credentials, signs, and reads answers; its HTTP (urllib3) cannot be woken while it
connects or waits, and its sockets are known only afterwards. But before botocore sends a signed request it emits the
event `before-send`, and a handler that returns an answer is taken at its word: nothing else is sent. Ours sends the
request by `engine_http`, as all providers do, on a connection of its own that `call.cancel` shuts in any state.
botocore runs a request in the thread that asks, so the handler finds the call that it works for in a thread-local.

The bytes of a stream do not pass through botocore's `EventStream`, which gives one event at a time and hides which of
them arrived together; they go to the same two parsers beneath it (`Events`), which do no I/O.

Not ours, and not to be woken: what fetches credentials (a role's, of this machine or of SSO) is botocore's own HTTP
with its own timeouts of a few seconds, before the first request and when they expire.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config as BotoConfig
from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import EventStreamJSONParser, ResponseParserError
from botocore.utils import get_token_from_environment

from backend_lambda.providers.bedrock_errors import answered, cannot_start, from_client_error, from_library, unfetched
from backend_lambda.providers.engine_http import EngineHttp, Exchange
from lambdalm.call import Call
from lambdalm.credentials import hidden
from lambdalm.errors import Code, LlmError

_MAX_ERROR = 64 * 1024  # bytes of an error's body
# What botocore's parsers raise at bytes that are no answer: its own errors, and what Python says of wrong types.
_NONSENSE = (
    ParserError,
    ResponseParserError,
    struct.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
)

Event = dict[str, Any]
"""One event as botocore reads it: its name → its members."""


class BedrockClient:
    """Bedrock in one region. Raises LlmError(FAILED_PRECONDITION) where there are no credentials."""

    def __init__(
        self,
        name: str,
        *,
        region: str,
        profile: str | None,
        endpoint_url: str | None,
        connect_seconds: float,
        silence_seconds: float,
    ) -> None:
        try:
            session = botocore.session.Session(profile=profile)
            self._client = _client(session, region, endpoint_url)
            bundle = session.get_config_variable("ca_bundle")
        except BotoCoreError as error:
            raise cannot_start(error).at(name) from None
        self._http = EngineHttp(name, self._client.meta.endpoint_url, {}, connect_seconds, silence_seconds)
        if bundle and self._http.tls:
            _trust(self._http, bundle)
        self._here = threading.local()
        self._client.meta.events.register("before-send.bedrock-runtime", self._send)

    @contextlib.contextmanager
    def ask(self, operation: str, parameters: Mapping[str, Any], call: Call) -> Iterator[Iterator[Iterator[Event]]]:
        """The events of an answer, those together that came together; raises LlmError, and so do they.

        `operation` is a method of boto3's client that answers with an event stream.
        """
        with contextlib.ExitStack() as stack:
            sending = self._here.sending = _Sending(call, stack)
            with sending.hiding_secrets():
                self._call(operation, parameters)
                del self._here.sending  # a thread lives longer than its calls
                yield map(Events(self._client, operation).feed, sending.chunks)

    def check(self) -> None:
        """Raises the LlmError of an endpoint that is not there or not well; AWS asks for no signature to say so."""
        reply = self._http.look("/ping")
        if reply.status >= 500:
            raise answered("", "", reply.status)

    def _call(self, operation: str, parameters: Mapping[str, Any]) -> None:
        try:
            getattr(self._client, operation)(**parameters)
        except ClientError as error:
            raise from_client_error(error) from None
        except BotoCoreError as error:
            raise from_library(error) from None
        except OSError as error:  # a token's file; what fails on the wire is an LlmError
            raise unfetched(f"{error.filename}: {error.strerror}") from None
        except _NONSENSE as error:
            raise _nonsense(error) from None

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """botocore's `before-send`: the answer to a signed request; its body stays outside if it is a stream."""
        sending: _Sending = self._here.sending
        url = urlsplit(request.url)
        headers = {key: _text(value) for key, value in request.headers.items()}
        sending.sends(headers)
        exchange = sending.stack.enter_context(Exchange(self._http, sending.call))
        target = f"{url.path}?{url.query}" if url.query else url.path
        head = exchange.ask(request.method, target, request.body, headers)
        if head.status == 200:
            sending.chunks = exchange.chunks()
            return AWSResponse(request.url, 200, head.headers, _Body(b""))
        return AWSResponse(request.url, head.status, head.headers, _Body(exchange.up_to(_MAX_ERROR)))


class _Sending:
    """What the handler of `before-send` must know, and what it leaves behind."""

    def __init__(self, call: Call, stack: contextlib.ExitStack) -> None:
        self.call = call
        self.stack = stack
        """Closes the connection."""
        self.chunks: Iterator[bytes] = iter(())
        self._secrets: list[str] = []

    def sends(self, headers: Mapping[str, str]) -> None:
        """Remember what an answer must not repeat: the bearer or the signature, and a session's token."""
        found = {key.lower(): value for key, value in headers.items()}
        self._secrets = [found.get("authorization", "").rpartition(" ")[2], found.get("x-amz-security-token", "")]

    @contextlib.contextmanager
    def hiding_secrets(self) -> Iterator[None]:
        try:
            yield
        except LlmError as error:
            for secret in self._secrets:
                error = hidden(error, secret or None)
            raise error from None


class _Body:
    """A body that has been read, in the shape in which botocore takes one."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body

    def close(self) -> None:
        pass


class Events:
    """botocore's parsers of the event stream of `operation`: bytes in, events out."""

    def __init__(self, client: Any, operation: str) -> None:
        model = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[operation])
        self._shape = model.get_event_stream_output()
        self._frames = EventStreamBuffer()
        self._parser = EventStreamJSONParser()

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete; iterate it to its end before the next `feed`.

        Raises the LlmError that an event may be, and `LlmError(INTERNAL)` for what is no event stream.
        """
        self._frames.add_data(data)
        while (frame := _sensible(next, self._frames, None)) is not None:
            parsed = _sensible(self._parser.parse, frame.to_response_dict(), self._shape)
            if frame.headers.get(":message-type") in ("exception", "error"):
                raise _failure(frame, parsed)
            if parsed:
                yield parsed


def _failure(frame: EventStreamMessage, parsed: Event) -> LlmError:
    said = parsed.get("Error", {})
    name = said.get("Code") or frame.headers.get(":exception-type") or "an error without a name"
    return answered(str(name), str(said.get("Message") or ""))


def _sensible(read: Callable[..., Any], *given: Any) -> Any:
    try:
        return read(*given)
    except _NONSENSE as error:
        raise _nonsense(error) from None


def _nonsense(error: Exception) -> LlmError:
    return LlmError(Code.INTERNAL, f"Bedrock's answer makes no sense ({type(error).__name__}): is it Bedrock?")


def _client(session: botocore.session.Session, region: str, endpoint_url: str | None) -> Any:
    """The client, which never tries a second time: whoever retries is the gRPC proxy."""
    logging.getLogger("botocore").setLevel(logging.INFO)  # below, it logs tokens and prompts
    if session.get_credentials() is None and get_token_from_environment("bedrock") is None:
        raise NoCredentialsError
    return boto3.Session(botocore_session=session).client(
        "bedrock-runtime",
        region_name=region,
        endpoint_url=endpoint_url,
        config=BotoConfig(retries={"total_max_attempts": 1, "mode": "standard"}),
    )


def _trust(http: EngineHttp, bundle: str) -> None:
    """Trust what AWS_CA_BUNDLE names, too."""
    assert http.tls is not None
    try:
        http.tls.load_verify_locations(bundle)
    except OSError as error:
        why = f"the certificates in {bundle} (AWS_CA_BUNDLE) cannot be read: {error.strerror or error}"
        raise LlmError(Code.FAILED_PRECONDITION, why, origin=http.name) from None


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
