"""What must hold between what clients were told and what their sessions hold afterwards, whatever has died meanwhile.

An acknowledged turn, one whose `finished` event came, is there once, whole, as it was told and in the order in which it
was; nothing is there twice; all text is what the script says, or how that begins; and nobody's is in another's session.

Pure: it judges records.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lambdalm.call import Call
from lambdalm.chat import ChatRequest
from lambdalm.events import TextDelta
from lambdalm.testing.scripted import play
from lambdalm.timings import HopClock
from tests.history_plan import Question


class Attempt(NamedTuple):
    """A question as its client saw it answered, by the monotonic clock; `failure` is None where it was acknowledged.

    `owner` is whose it is: a client with one cookie jar.
    """

    owner: str
    question: Question
    session_id: str | None
    text: str
    failure: str | None
    began: float = 0.0
    ended: float = 0.0

    @property
    def acknowledged(self) -> bool:
        return self.failure is None


class Kept(NamedTuple):
    """A turn as its session has it."""

    request_id: str
    prompt: str
    state: str
    text: str


Sessions = Mapping[tuple[str, str], Sequence[Kept]]
"""Owner and session id → its turns."""


@functools.cache
def script(question: Question) -> str:
    """The answer that the scripted engine has for it; `slow` says the words of `flood`, only slower."""
    model = "flood" if question.model == "slow" else question.model
    request = ChatRequest(prompt=question.prompt, model=model, max_tokens=question.max_tokens)
    events = play(request, Call(question.request_id, 60, HopClock("script")))
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def check(attempts: Sequence[Attempt], sessions: Sessions) -> list[str]:
    """What is wrong, a line for each; `attempts` in the order in which they ended."""
    told: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        told[attempt.owner].append(attempt)
    held: dict[str, dict[str, Sequence[Kept]]] = defaultdict(dict)
    for (owner, session_id), turns in sessions.items():
        held[owner][session_id] = turns
    owners = sorted(told.keys() | held.keys())
    return [f"{owner}: {wrong}" for owner in owners for wrong in _check_owner(told[owner], held[owner])]


def _check_owner(own: Sequence[Attempt], held: Mapping[str, Sequence[Kept]]) -> Iterator[str]:
    asked = {attempt.question.request_id: attempt.question for attempt in own}
    yield from _told_wrongly(own)
    for attempt in own:
        if attempt.acknowledged:
            yield from _not_as_acknowledged(attempt, held.get(attempt.session_id or "", ()))
    for session_id, turns in held.items():
        yield from _out_of_order(session_id, own, turns)
    for turn in (turn for turns in held.values() for turn in turns):
        yield from _kept_wrongly(turn, asked)
    counted = Counter(turn.request_id for turns in held.values() for turn in turns)
    yield from (f"{request_id} is there {number} times" for request_id, number in counted.items() if number > 1)


def _told_wrongly(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Where the text that a client got is not the script's, or its beginning where the answer was not whole."""
    for attempt in attempts:
        said = script(attempt.question)
        if not (said == attempt.text if attempt.acknowledged else said.startswith(attempt.text)):
            yield f"{attempt.question.request_id} was told as {attempt.text!r}, and the script is {said!r}"


def _not_as_acknowledged(attempt: Attempt, turns: Sequence[Kept]) -> Iterator[str]:
    name = attempt.question.request_id
    found = [turn for turn in turns if turn.request_id == name]
    if not found:
        yield f"{name} was acknowledged and is not in session {attempt.session_id}"
    for turn in found:
        if turn.state != "complete":
            yield f"{name} was acknowledged and is {turn.state}"
        if turn.text != attempt.text:
            yield f"{name} was acknowledged as {attempt.text!r} and kept as {turn.text!r}"


def _out_of_order(session_id: str, attempts: Sequence[Attempt], turns: Sequence[Kept]) -> Iterator[str]:
    acknowledged = [a.question.request_id for a in attempts if a.acknowledged and a.session_id == session_id]
    told = list(dict.fromkeys(acknowledged))
    kept = list(dict.fromkeys(turn.request_id for turn in turns if turn.request_id in told))
    expected = [request_id for request_id in told if request_id in kept]
    if kept != expected:
        yield f"session {session_id} has {kept} in this order, and they were acknowledged as {expected}"


def _kept_wrongly(turn: Kept, asked: Mapping[str, Question]) -> Iterator[str]:
    question = asked.get(turn.request_id)
    if question is None:
        yield f"{turn.request_id} is there, and is not this client's: {turn.prompt!r}"
        return
    if turn.prompt != question.prompt:
        yield f"{turn.request_id} has the prompt {turn.prompt!r} in place of {question.prompt!r}"
    said = script(question)
    if not (said == turn.text if turn.state == "complete" else said.startswith(turn.text)):
        yield f"{turn.request_id} is {turn.state} as {turn.text!r}, and the script is {said!r}"
