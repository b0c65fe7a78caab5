"""A backend that counts what it is asked, and fails when it is told to: it is healthy, whatever it answers."""

from __future__ import annotations

import json

from lambdalm.testing.fake_http import Exchange, FakeServer, Reply

_ANSWER = {"id": "x", "model": "fake", "text": "fine", "finish_reason": "stop"}
_REFUSAL = {"error": {"code": "UNAVAILABLE", "message": "out of order", "origin": "backend"}}


class FakeBackend(FakeServer):
    """Speaks `/query`, in one piece; while it is `broken`, each answer is a 503 before the first delta."""

    broken = False

    @property
    def query_url(self) -> str:
        return f"{self.url}/query"

    @property
    def questions(self) -> int:
        """How many it was asked so far."""
        return sum(asked.method == "POST" for asked in list(self.asked))

    def answer(self, exchange: Exchange) -> None:
        if exchange.asked.method == "GET":
            exchange.reply(_json(200, {"status": "ok", "models": []}))
        elif self.broken:
            exchange.reply(_json(503, _REFUSAL))
        else:
            exchange.reply(_json(200, _ANSWER))


def _json(status: int, body: object) -> Reply:
    return Reply(status, json.dumps(body).encode())
