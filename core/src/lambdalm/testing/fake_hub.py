"""A fake Hugging Face hub: the files of a folder, as the hub serves those of its models.

    python -m lambdalm.testing.fake_hub models --port 8600      # models/owner/repo/file.gguf
    HF_ENDPOINT=http://127.0.0.1:8600 …

It speaks what huggingface_hub asks for: HEAD and GET of `/{owner}/{repo}/resolve/{revision}/{file}` with ETag,
X-Repo-Commit, Content-Length and ranges; what is not there is told by X-Error-Code. A repository has two revisions:
`main` and the commit that `main` is. With `token` it wants that bearer token; with `cut_after` the first GET of a file
breaks off after so many bytes.
Wire format: huggingface_hub 2.4 (`file_download.py`, `utils/_http.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

COMMIT = hashlib.sha1(b"the fake hub's only commit", usedforsecurity=False).hexdigest()
_PATH = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>[\w./-]+)")
_RANGE = re.compile(r"bytes=(\d+)-")


class Asked(NamedTuple):
    """A request as it came: `first` is the first byte that it wanted."""

    method: str
    path: str
    first: int


class Refusal(NamedTuple):
    """An answer without a file."""

    status: int
    code: str
    """The hub's own word for it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nothing to report."""


class FakeHub:
    """A hub on a port of 127.0.0.1; 0 takes a free one."""

    def __init__(self, root: Path, port: int = 0, token: str | None = None, cut_after: int | None = None) -> None:
        self.asked: list[Asked] = []
        """All requests so far."""
        self._root = root
        self._token = token
        self._cut_after = cut_after
        self._server = _Server(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeHub]:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever()

    def find(self, path: str, token: str | None) -> bytes | Refusal:
        """The file at this path."""
        match = _PATH.fullmatch(unquote(path))
        if match is None or not (self._root / match["repo"]).is_dir():
            return Refusal(404, "RepoNotFound")
        if self._token is not None and token != f"Bearer {self._token}":
            return Refusal(403, "GatedRepo")
        if match["revision"] not in ("main", COMMIT):
            return Refusal(404, "RevisionNotFound")
        file = (self._root / match["repo"] / match["file"]).resolve()
        if not file.is_relative_to(self._root.resolve()) or not file.is_file():
            return Refusal(404, "EntryNotFound")
        return file.read_bytes()

    def cut(self) -> int | None:
        """After how many bytes the next answer breaks off."""
        after, self._cut_after = self._cut_after, None
        return after


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted else 0
            hub.asked.append(Asked(self.command, self.path, first))
            found = hub.find(self.path, self.headers.get("Authorization"))
            if isinstance(found, Refusal):
                self.head(found.status, 0, {"X-Error-Code": found.code, "X-Error-Message": found.code})
                return
            headers = {"ETag": f'"{hashlib.sha256(found).hexdigest()}"', "Accept-Ranges": "bytes"}
            if wanted:
                headers["Content-Range"] = f"bytes {first}-{len(found) - 1}/{len(found)}"
            self.head(206 if wanted else 200, len(found) - first, headers)
            if self.command == "GET":
                self.body(found[first:])

        def head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def body(self, data: bytes) -> None:
            after = hub.cut()
            self.wfile.write(data[:after])
            self.close_connection = after is not None

        do_GET = do_HEAD = answer  # noqa: N815  # the names of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=FakeHub.__doc__)
    parser.add_argument("root", type=Path, help="the folder: owner/repo/file")
    parser.add_argument("--port", type=int, default=8600, help="default %(default)s; 0 takes a free one")
    arguments = parser.parse_args()
    hub = FakeHub(arguments.root, arguments.port)
    print(f"a fake hub listens on {hub.url}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        hub.serve_forever()


if __name__ == "__main__":
    main()
