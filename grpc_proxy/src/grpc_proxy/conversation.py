"""Conversations, as values: what a session holds, how a turn begins and ends in it, and what of it a model is told.

Theory of operation. A turn begins with the user's words, before anything is generated, and ends once: complete, failed
or cancelled. Who begins it draws a random `attempt`, and only the bearer of the turn's present attempt may end it. A
request that is repeated (the same X-Request-Id) takes its unfinished turn over with a new attempt, so that a turn is
never there twice, and a server that still works on the old attempt finds that it may not end it any more. A turn left
pending by a server that died is taken over in the same way, or simply stays.

Models are told of complete turns only: what failed is kept for people to see.

Pure: no clock, no I/O, no randomness. How often to try when two writers meet is `sessions.py`'s.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lambdalm.chat import Message
from lambdalm.errors import Code, LlmError
from lambdalm.events import FinishReason, Tokens

_BYTES_PER_TOKEN = 3  # on the safe side: tokens of English have 4 bytes, other languages fewer
_TOKENS_PER_TURN = 8  # what a chat template puts around a question and its answer
_ANSWER_SHARE = 4  # of a window a quarter is kept for the answer, where the request does not say how long it may be
_MOST_TURNS = 500  # of a session: it is read and written whole
_TITLE = 64  # characters
_AROUND = 256  # bytes that a session, or a turn, takes beside its texts and names, at most


class State(enum.StrEnum):
    """What has become of a turn."""

    PENDING = "pending"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question and what came of it. `tokens` is what both take in a model's context; `created` in seconds since 1970.

    The text of a turn that is not complete is what had come of it.
    """

    request_id: str
    attempt: str
    prompt: str
    created: float
    state: State = State.PENDING
    text: str = ""
    model: str = ""
    reason: FinishReason | None = None
    usage: Tokens | None = None
    tokens: int = 0


class Session(msgspec.Struct, frozen=True, omit_defaults=True):
    """One conversation, oldest turn first. `upstream` answered last: its prompt cache is warm. Times in seconds since
    1970."""

    id: str
    created: float
    used: float
    turns: tuple[Turn, ...] = ()
    system: str | None = None
    upstream: str | None = None


class Ending(NamedTuple):
    """How a turn ends. `told` is what the model was told before the question, in tokens."""

    state: State
    text: str = ""
    model: str = ""
    reason: FinishReason | None = None
    usage: Tokens | None = None
    told: int = 0
    upstream: str | None = None


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What a list shows of a session."""

    created: float
    used: float
    turns: int
    title: str


class Told(NamedTuple):
    """What a model is told, and how many tokens of it come before the question."""

    messages: tuple[Message, ...]
    before: int


def find(session: Session, request_id: str, prompt: str) -> Turn | None:
    """The turn that this request has made already; raises `LlmError(ALREADY_EXISTS)` if it was another prompt's."""
    turn = next((turn for turn in session.turns if turn.request_id == request_id), None)
    if turn is not None and turn.prompt != prompt:
        why = "X-Request-Id: this id came with another prompt in this session: give each request an id of its own"
        raise LlmError(Code.ALREADY_EXISTS, why)
    return turn


def begin(session: Session, turn: Turn, system: str | None) -> Session:
    """The session with this turn in it, as the last one or in the place where it was tried before.

    Raises `LlmError(ABORTED)` where the other attempt has ended well, and what `find` raises.
    """
    earlier = find(session, turn.request_id, turn.prompt)
    if earlier is not None and earlier.state is State.COMPLETE:
        why = "another attempt at this request has just been answered: send it once more to have that answer"
        raise LlmError(Code.ABORTED, why, retry_after=1)
    if earlier is None:
        turns = (*session.turns, turn)
    else:
        turns = tuple(turn if known is earlier else known for known in session.turns)
    system = session.system if system is None else system
    return msgspec.structs.replace(session, turns=turns, system=system, used=turn.created)


def end(session: Session, attempt: str, ending: Ending, now: float) -> Session | None:
    """The session with the attempt's turn ended; None where the attempt has no turn to end any more."""
    if not any(_is_open(turn, attempt) for turn in session.turns):
        return None
    turns = tuple(_ended(turn, ending) if _is_open(turn, attempt) else turn for turn in session.turns)
    upstream = ending.upstream if ending.state is State.COMPLETE else session.upstream
    return msgspec.structs.replace(session, turns=turns, upstream=upstream, used=now)


def has_ended(session: Session, attempt: str) -> bool:
    """Whether the attempt's turn has its end."""
    return any(turn.attempt == attempt and turn.state is not State.PENDING for turn in session.turns)


def shortened(session: Session, max_bytes: int, attempt: str) -> Session:
    """The session without its oldest turns: of `max_bytes` and some hundreds of turns; the attempt's always stays."""
    left = max_bytes - _AROUND - len((session.system or "").encode())
    kept, own = 0, False
    for turn in reversed(session.turns):
        left -= _size(turn)
        if (left < 0 or kept >= _MOST_TURNS) and own:
            break
        own = own or turn.attempt == attempt
        kept += 1
    return msgspec.structs.replace(session, turns=session.turns[len(session.turns) - kept :])


def told(session: Session, attempt: str, window: int | None, max_tokens: int | None) -> Told:
    """What a model with a context of `window` tokens (None: unknown, all of it) is told for the attempt's turn.

    The system prompt and the question always are; of the turns before, as many of the newest as leave room for the
    answer.
    """
    index = next(index for index, turn in enumerate(session.turns) if turn.attempt == attempt)
    question = session.turns[index]
    system = () if session.system is None else (Message("system", session.system),)
    before = sum(map(estimate, (message.content for message in system)))
    room = math.inf
    if window is not None:
        room = window - (max_tokens or window // _ANSWER_SHARE) - before - estimate(question.prompt)
    history = _newest([turn for turn in session.turns[:index] if turn.state is State.COMPLETE], room)
    messages = [message for turn in history for message in _messages(turn)]
    before += sum(turn.tokens for turn in history)
    return Told((*system, *messages, Message("user", question.prompt)), before)


def remembered_tokens(session: Session) -> int:
    """What the session's complete turns take in a model's context, all of them."""
    return sum(turn.tokens for turn in session.turns if turn.state is State.COMPLETE)


def estimate(text: str) -> int:
    """Tokens that a text takes in a model's context, on the safe side; only the model's tokenizer knows."""
    return _TOKENS_PER_TURN + math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)


def summary(session: Session) -> Summary:
    title = session.turns[0].prompt[:_TITLE] if session.turns else ""
    return Summary(session.created, session.used, len(session.turns), title)


def _is_open(turn: Turn, attempt: str) -> bool:
    return turn.attempt == attempt and turn.state is State.PENDING


def _ended(turn: Turn, ending: Ending) -> Turn:
    return msgspec.structs.replace(
        turn,
        state=ending.state,
        text=ending.text,
        model=ending.model,
        reason=ending.reason,
        usage=ending.usage,
        tokens=_tokens(turn.prompt, ending),
    )


def _tokens(prompt: str, ending: Ending) -> int:
    """Of question and answer: the engine counts the whole prompt, so what went before is taken off."""
    usage = ending.usage or Tokens()
    asked = estimate(prompt) if usage.prompt_tokens is None else max(1, usage.prompt_tokens - ending.told)
    answered = estimate(ending.text) if usage.completion_tokens is None else usage.completion_tokens
    return asked + answered


def _newest(turns: Sequence[Turn], room: float) -> Sequence[Turn]:
    kept = 0
    for turn in reversed(turns):
        room -= turn.tokens
        if room < 0:
            break
        kept += 1
    return turns[len(turns) - kept :]


def _messages(turn: Turn) -> tuple[Message, Message]:
    return Message("user", turn.prompt), Message("assistant", turn.text)


def _size(turn: Turn) -> int:
    return _AROUND + sum(len(text.encode()) for text in (turn.prompt, turn.text, turn.request_id, turn.model))
