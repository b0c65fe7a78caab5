"""One prompt over HTTP: `POST /query` to the RESTful proxy, and its answer as StreamEvents while it comes.

Everything that goes wrong is an `LlmError`. What a hop of ours reports keeps the origin that it names. What this
client sees for itself has one of three others:

    "client"      no connection could be made, or there was nothing to send
    "connection"  it was made and then broke, fell silent, or carried nonsense
    None          somebody answered who is not λλM (a load balancer, another web server)
"""

from __future__ import annotations

import contextlib
import math
import re
import time
import uuid
from collections.abc import Generator, Iterator

import msgspec
import requests
import urllib3
from requests.cookies import RequestsCookieJar

from lambdalm import sse
from lambdalm.call import REQUEST_ID, REQUEST_TIMEOUT
from lambdalm.chat import ChatRequest, encode_query, validate
from lambdalm.credentials import hidden
from lambdalm.errors import Code, LlmError, code_of_http_status
from lambdalm.events import Delta, StreamEvent
from lambdalm.stream import ErrorAnswer, EventReader
from lambdalm.timings import HopClock, Timings

CONNECT_SECONDS = 5.0
GRACE_SECONDS = 5.0
"""How long above the time budget the client waits: the server's own word on a deadline says more than ours."""

_READ_BYTES = 65536
_ERROR_BYTES = 65536
_EXCERPT = 200

_error_decoder = msgspec.json.Decoder(ErrorAnswer)


class Edge:
    """The RESTful proxy at `address` (host:port), asked with a time budget of `timeout` seconds.

    Its cookies, which name the conversation, are kept from one question to the next. `key` is the caller's API key.
    """

    def __init__(self, address: str, timeout: float, grace: float = GRACE_SECONDS, key: str | None = None) -> None:
        self.address = address
        self.timeout = timeout
        self.grace = grace
        self.key = key
        self.cookies = RequestsCookieJar()

    def ask(self, request: ChatRequest) -> Exchange:
        """A question, ready to be sent; nothing is sent before its events are read."""
        return Exchange(self, request)

    def forget(self) -> None:
        """The next question begins a new conversation."""
        self.cookies.clear()


class Exchange:
    """One question and its answer. `timings` are the hops' shares, once the end (or an error) has told them."""

    def __init__(self, edge: Edge, request: ChatRequest) -> None:
        self.id = uuid.uuid4().hex
        self.timings: Timings = {}
        self.clock = HopClock("client")
        self._edge = edge
        self._request = request
        self._limit = edge.timeout + edge.grace
        self._deadline = math.inf

    def events(self) -> Generator[StreamEvent, None, None]:
        """Send the question and read the answer; close the generator to hang up, which stops the generation.

        Raises `LlmError`, also when the answer breaks off: only a stream that ended with `Finished` is whole.
        """
        try:
            yield from self._answer()
        except LlmError as error:
            raise hidden(error, self._edge.key) from None

    def _answer(self) -> Iterator[StreamEvent]:
        # One connection per question: one kept from an earlier question may be dying, and a POST is not sent twice.
        with self._http_errors(), requests.Session() as http:
            # No proxy and no .netrc from the environment: prompts go where the config says.
            http.trust_env = False
            http.cookies = self._edge.cookies
            body = _body(self._request)
            self._deadline = time.monotonic() + self._limit
            with http.post(
                f"http://{self._edge.address}/query",
                data=body,
                headers=self._headers(),
                timeout=(CONNECT_SECONDS, self._limit),
                stream=True,
                allow_redirects=False,
            ) as response:
                if not _is_stream(response):
                    raise self._refusal(response)
                yield from self._events_of(response)

    def _headers(self) -> dict[str, str]:
        key = {} if self._edge.key is None else {"Authorization": f"Bearer {self._edge.key}"}
        return {
            **key,
            "Content-Type": "application/json",
            "Accept": sse.CONTENT_TYPE,
            # Whoever compresses a stream holds it back.
            "Accept-Encoding": "identity",
            "User-Agent": "bedrest/0.1",
            REQUEST_ID: self.id,
            REQUEST_TIMEOUT: f"{self._edge.timeout:g}",
        }

    def _events_of(self, response: requests.Response) -> Iterator[StreamEvent]:
        reader = EventReader()
        try:
            for chunk in self._chunks(response):
                for event in reader.feed(chunk):
                    if isinstance(event, Delta):
                        self.clock.first_delta()
                    self.timings = reader.timings
                    yield event
            if time.monotonic() >= self._deadline and not reader.finished:
                raise self._out_of_time()
            reader.close()
        except LlmError as error:
            self.timings = reader.timings
            raise error.at("connection") from None
        except urllib3.exceptions.HTTPError:
            # The answer was whole already; only the farewell is missing.
            if not reader.finished:
                raise

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """What comes, as it comes, until it ends or time is up."""
        # Not iter_content: on an answer without chunks or length it waits for the end.
        while time.monotonic() < self._deadline:
            chunk = response.raw.read1(_READ_BYTES, decode_content=True)
            if not chunk:
                return
            yield chunk

    def _refusal(self, response: requests.Response) -> LlmError:
        body = b""
        # The status tells more than that its explanation broke off.
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            for chunk in self._chunks(response):
                body += chunk
                if len(body) > _ERROR_BYTES:
                    break
        if response.status_code >= 400:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                answer = _error_decoder.decode(body)
                self.timings = answer.timings
                return answer.error.to_error().at("edge")
        return _foreign(response, body)

    @contextlib.contextmanager
    def _http_errors(self) -> Iterator[None]:
        try:
            yield
        except (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError):
            raise self._no_connection(f"no connection within {CONNECT_SECONDS:g} s") from None
        except (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError):
            raise self._out_of_time() from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._connection_error(error) from None

    def _connection_error(self, error: Exception) -> LlmError:
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(reason, urllib3.exceptions.NameResolutionError):
            return self._no_connection("the host's name is not known")
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            return self._no_connection(getattr(reason.__cause__, "strerror", None) or str(reason))
        if isinstance(error, requests.exceptions.InvalidURL | urllib3.exceptions.LocationParseError):
            return self._no_connection("that is not a host and a port")
        return LlmError(
            Code.UNAVAILABLE,
            f"the connection to {self._edge.address} broke off before the answer's end",
            origin="connection",
        )

    def _no_connection(self, why: str) -> LlmError:
        return LlmError(Code.UNAVAILABLE, f"cannot connect to {self._edge.address}: {why}", origin="client")

    def _out_of_time(self) -> LlmError:
        return LlmError(
            Code.DEADLINE_EXCEEDED,
            f"no end of the answer from {self._edge.address} within {self._limit:g} s; the client has hung up",
            origin="connection",
        )


def _body(request: ChatRequest) -> bytes:
    try:
        return encode_query(validate(request), stream=True)
    except UnicodeEncodeError:
        raise LlmError(Code.INVALID_ARGUMENT, "the prompt holds bytes that are not UTF-8", origin="client") from None
    except LlmError as error:
        raise error.at("client") from None


def _is_stream(response: requests.Response) -> bool:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == sse.CONTENT_TYPE


def _foreign(response: requests.Response, body: bytes) -> LlmError:
    status = f"HTTP {response.status_code} {response.reason or ''}".strip()
    said = _excerpt(body.decode(errors="replace"))
    return LlmError(
        Code.UNIMPLEMENTED if response.status_code < 400 else code_of_http_status(response.status_code),
        f"{status}, and not from λλM" + (f": “{said}”" if said else ""),
        retry_after=_seconds(response.headers.get("Retry-After")),
    )


def _excerpt(text: str) -> str:
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    words = " ".join((title[1] if title else text).split())
    return words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}…"


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after is not None and re.fullmatch(r"[0-9]{1,9}", retry_after) else None
