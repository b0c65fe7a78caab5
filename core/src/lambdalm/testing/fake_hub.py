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
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from lambdalm.testing.fake_http import Asked, Exchange, FakeServer, Reply

COMMIT = hashlib.sha1(b"the fake hub's only commit", usedforsecurity=False).hexdigest()
_PATH = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<file>[\w./-]+)")
_RANGE = re.compile(r"bytes=(\d+)-")


class Missing(NamedTuple):
    """Why there is no file; `code` is the hub's own word for it."""

    status: int
    code: str


class FakeHub(FakeServer):
    """A hub on a port of 127.0.0.1; 0 takes a free one."""

    def __init__(self, root: Path, port: int = 0, token: str | None = None, cut_after: int | None = None) -> None:
        super().__init__(port)
        self._root = root
        self._token = token
        self._cut_after = cut_after

    def answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        found = self.find(asked.path, asked.headers.get("authorization"))
        commit = ("X-Repo-Commit", COMMIT)
        if isinstance(found, Missing):
            why = (("X-Error-Code", found.code), ("X-Error-Message", found.code))
            return exchange.reply(Reply(found.status, b"", headers=(commit, *why)))
        headers = [commit, ("ETag", f'"{hashlib.sha256(found).hexdigest()}"'), ("Accept-Ranges", "bytes")]
        wanted = _RANGE.fullmatch(asked.headers.get("range", ""))
        first = first_byte(asked)
        if wanted:
            headers.append(("Content-Range", f"bytes {first}-{len(found) - 1}/{len(found)}"))
        reply = Reply(206 if wanted else 200, found[first:], "application/octet-stream", tuple(headers))
        return exchange.reply(reply, self._cut() if asked.method == "GET" else None)

    def find(self, path: str, token: str | None) -> bytes | Missing:
        """The file at this path."""
        match = _PATH.fullmatch(unquote(path))
        if match is None or not (self._root / match["repo"]).is_dir():
            return Missing(404, "RepoNotFound")
        if self._token is not None and token != f"Bearer {self._token}":
            return Missing(403, "GatedRepo")
        if match["revision"] not in ("main", COMMIT):
            return Missing(404, "RevisionNotFound")
        file = (self._root / match["repo"] / match["file"]).resolve()
        if not file.is_relative_to(self._root.resolve()) or not file.is_file():
            return Missing(404, "EntryNotFound")
        return file.read_bytes()

    def _cut(self) -> int | None:
        """After how many bytes this answer breaks off."""
        after, self._cut_after = self._cut_after, None
        return after


def first_byte(asked: Asked) -> int:
    """The first one that a request wants."""
    wanted = _RANGE.fullmatch(asked.headers.get("range", ""))
    return int(wanted[1]) if wanted else 0


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
