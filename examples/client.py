"""A small gRPC client: one prompt, its answer, and a cookie jar that keeps the conversation.

    python examples/client.py --stream --cookie-jar cookies.txt --prompt "What is your name?"
    python examples/client.py --stream --cookie-jar cookies.txt --prompt "Do you remember my previous question?"

The server names the session in `set-cookie` metadata, as an HTTP server would in its headers. A client that sends it
back as `cookie` metadata goes on with the session.
"""

from __future__ import annotations

import argparse
import email.message
import http.cookiejar
import sys
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from lambdalm.credentials import read_secret
from lambdalm.errors import LlmError
from lambdalm_proto.v1 import llm_pb2 as pb
from lambdalm_proto.v1 import llm_pb2_grpc


class Jar:
    """Cookies in a file of Netscape's format, which curl reads and writes too (`-b FILE -c FILE`).

    What a cookie means (how long it lasts, where it may go) the standard library knows: it is shown the call as if it
    were an HTTP request.
    """

    def __init__(self, file: Path | None, url: str) -> None:
        self._file = file
        self._cookies = http.cookiejar.MozillaCookieJar(file)
        self._request = urllib.request.Request(url)  # noqa: S310  # it is never opened
        if file is not None and file.exists():
            self._cookies.load(ignore_discard=True)

    def metadata(self) -> list[tuple[str, str]]:
        """The cookies for the server."""
        self._cookies.add_cookie_header(self._request)
        cookie = self._request.get_header("Cookie")
        return [("cookie", cookie)] if cookie else []

    def keep(self, metadata: Iterable[Any]) -> None:
        """Keep what the server sets."""
        headers = email.message.Message()
        for name, value in metadata:
            if name == "set-cookie":
                headers[name] = str(value)
        self._cookies.extract_cookies(_Answer(headers), self._request)  # type: ignore[arg-type]  # all that it asks of one
        if self._file is not None:
            self._cookies.save(ignore_discard=True)  # readable by you alone


class _Answer:
    """What a cookie jar wants to see of an HTTP answer."""

    def __init__(self, headers: email.message.Message) -> None:
        self._headers = headers

    def info(self) -> email.message.Message:
        return self._headers


def open_channel(arguments: argparse.Namespace) -> grpc.Channel:
    """With TLS where that is asked for; `--ca` has the certificates of those who may have signed the server's."""
    if not arguments.tls:
        return grpc.insecure_channel(arguments.target)
    roots = arguments.ca.read_bytes() if arguments.ca else None
    return grpc.secure_channel(arguments.target, grpc.ssl_channel_credentials(roots))


def ask(stub: Any, arguments: argparse.Namespace, jar: Jar) -> None:
    """Ask the prompt and print its answer, piece by piece with `--stream`."""
    request = pb.LLMRequest(prompt=arguments.prompt)
    metadata = jar.metadata()
    key = read_secret("--api-key", None, arguments.api_key_file)
    if key is not None:
        metadata.append(("authorization", f"Bearer {key}"))
    if arguments.stream:
        call = stub.GenerateStream(request, metadata=metadata, timeout=arguments.timeout)
        jar.keep(call.initial_metadata())
        try:
            for event in call:
                print(event.text_delta.text, end="", flush=True)  # other events have no text
        finally:
            print()
    else:
        answer, call = stub.Generate.with_call(request, metadata=metadata, timeout=arguments.timeout)
        jar.keep(call.trailing_metadata())
        print(answer.text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask a λλM gRPC proxy one prompt.")
    parser.add_argument("--prompt", required=True, help="what to ask")
    parser.add_argument("--stream", action="store_true", help="print the answer while it is made")
    parser.add_argument("--target", default="127.0.0.1:50051", help="HOST:PORT of the gRPC proxy (%(default)s)")
    parser.add_argument("--cookie-jar", type=Path, metavar="FILE", help="keep cookies there, and so the conversation")
    parser.add_argument("--api-key-file", metavar="FILE", help="a file with your API key")
    parser.add_argument("--tls", action="store_true", help="use TLS")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="with --tls: whom to trust, as a PEM file")
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS", help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 when the answer is whole; else 1, and a line on stderr."""
    given = parse(arguments)
    try:
        jar = Jar(given.cookie_jar, f"{'https' if given.tls else 'http'}://{given.target}/")
        with open_channel(given) as channel:
            ask(llm_pb2_grpc.LlmServiceStub(channel), given, jar)  # type: ignore[no-untyped-call]  # generated
    except grpc.RpcError as error:  # it is the call, too
        jar.keep(error.trailing_metadata() or ())
        print(f"error: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except ValueError:  # gRPC's own words repeat the metadata
        print("error: the cookie jar holds what cannot be read, or sent", file=sys.stderr)
        return 1
    except (LlmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
