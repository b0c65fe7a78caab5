"""lambdalm.http uses internals of Flask and uvicorn: a new minor version wants its modules read again."""

from __future__ import annotations

from importlib.metadata import version

from lambdalm.http import app, connection


def test_flask_is_the_version_that_app_was_written_for() -> None:
    assert version("flask").startswith("3.1.")
    assert "Flask 3.1" in (app.__doc__ or "")


def test_uvicorn_is_the_version_that_connection_was_written_for() -> None:
    assert version("uvicorn").startswith("0.54.")
    assert "uvicorn 0.54" in (connection.__doc__ or "")
