"""The hop of `hop_app.py` with a bearer token before it: `python bearer_app.py PORT TOKEN`. Its log goes to stderr."""

from __future__ import annotations

import sys

import hop_app  # type: ignore[import-not-found]  # it lies beside this program

from lambdalm import logs
from lambdalm.http.app import HttpHop
from lambdalm.http.bearer import require
from lambdalm.http.limits import Limits
from lambdalm.http.server import serve
from lambdalm.listen import Listen


def guarded(hop: HttpHop) -> None:
    require(hop.app, sys.argv[2])
    for path in ("/health", "/healthz", "/readyz"):
        hop.app.add_url_rule(path, path, lambda: "fine")


if __name__ == "__main__":
    logs.configure("hop", logs.LogConfig(level="DEBUG", format="json"))
    serve(hop_app.opener(Limits(), guarded), Listen("127.0.0.1", int(sys.argv[1])), Limits())
