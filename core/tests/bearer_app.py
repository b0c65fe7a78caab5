"""The hop of `hop_app.py` with a bearer token before it: `python bearer_app.py PORT TOKEN`. Its log goes to stderr."""

from __future__ import annotations

import sys

import flask
import hop_app  # type: ignore[import-not-found]  # it lies beside this program

from lambdalm import logs
from lambdalm.listen import Listen
from lambdalm.web.bearer import require
from lambdalm.web.limits import Limits
from lambdalm.web.server import serve
from lambdalm.web.worker import Lifecycle


def make_app(lifecycle: Lifecycle, limits: Limits, token: str) -> flask.Flask:
    app: flask.Flask = hop_app.make_app(lifecycle, limits)
    require(app, token)

    for path in ("/health", "/healthz", "/readyz"):
        app.add_url_rule(path, path, lambda: "fine")
    return app


if __name__ == "__main__":
    port, token = int(sys.argv[1]), sys.argv[2]
    logs.configure("hop", logs.LogConfig(level="DEBUG", format="json"))
    serve(lambda lifecycle: make_app(lifecycle, Limits(), token), Listen("127.0.0.1", port), Limits())
