"""One prompt, asked and shown: what the modes have in common."""

from __future__ import annotations

import contextlib

from bedrest_client import render
from bedrest_client.query import Edge, Exchange
from bedrest_client.screen import Screen
from lambdalm.chat import ChatRequest
from lambdalm.errors import LlmError
from lambdalm.events import Answer, Collector, Finished, ReasoningDelta, TextDelta


def stream(edge: Edge, request: ChatRequest, screen: Screen) -> bool:
    """Show the answer while it comes, then its statistics, or the error; says whether the answer is whole.

    Ctrl-C hangs up and comes out as KeyboardInterrupt, with the line ended.
    """
    exchange = edge.ask(request)
    collector = Collector()
    try:
        with contextlib.closing(exchange.events()) as events:
            for event in events:
                collector.add(event)
                match event:
                    case TextDelta(text):
                        screen.text(text)
                    case ReasoningDelta(text):
                        screen.reasoning(text)
                    case Finished():
                        _show_end(collector.answer(), request, exchange, screen)
    except LlmError as error:
        _show_failure(error, edge, exchange, screen)
        return False
    finally:
        screen.end_line()
    return True


def whole(edge: Edge, request: ChatRequest, screen: Screen) -> Answer | None:
    """The answer when it is whole; shows the error, and gives None, when it fails."""
    exchange = edge.ask(request)
    collector = Collector()
    try:
        with contextlib.closing(exchange.events()) as events:
            for event in events:
                collector.add(event)
        return collector.answer()
    except LlmError as error:
        _show_failure(error, edge, exchange, screen)
        return None


def _show_end(answer: Answer, request: ChatRequest, exchange: Exchange, screen: Screen) -> None:
    screen.note(render.statistics(answer, exchange.clock.timings()["client"]))
    reason = render.cut_off(answer, request.max_tokens)
    if reason:
        screen.note(reason)


def _show_failure(error: LlmError, edge: Edge, exchange: Exchange, screen: Screen) -> None:
    screen.error(render.failure(error, edge.address, edge.timeout, exchange.id, exchange.timings))
