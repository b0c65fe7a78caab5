"""A bearer token for a Flask hop: one secret, which the hop shares with those who may use it."""

from __future__ import annotations

import flask

from lambdalm.credentials import bears, no_token

OPEN = frozenset({"/health", "/healthz", "/readyz"})
"""Paths that need no token: balancers and supervisors have none."""


def require(app: flask.Flask, token: str) -> None:
    """Refuse all requests to this hop's app that lack the token, but for `OPEN`: 401 UNAUTHENTICATED.

    Call it when the HttpHop has been made, so that a refusal has the shape of all its errors.
    """

    @app.before_request
    def check() -> None:
        if flask.request.path not in OPEN and not bears(flask.request.headers.get("Authorization", ""), token):
            raise no_token()
