"""Sessions in the store: a turn is stored before anything is generated, and its answer before its end is sent.

The first turn of a session that no client knows yet may be stored once, with its answer.

What a session is and how it changes, `conversation.py` says; here it is read, changed and put back, again where another
writer came first.

A session's id cannot be guessed, and is found only together with its owner. The id of a new one is drawn from the
caller's own secret (a key, or the random owner cookie) and the request's id: so a request that is repeated because its
answer was lost finds the session that it made the first time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from grpc_proxy import conversation
from grpc_proxy.callers import Caller
from grpc_proxy.conversation import Ending, Session, State, Summary, Turn
from grpc_proxy.minute_warning import MinuteWarning
from grpc_proxy.store.base import Key, Listed, Record, Store
from lambdalm import logs
from lambdalm.errors import STORE, Code, LlmError

_TRIES = 16
_ID_BYTES = 16
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_log = logs.get(__name__)
_decoder = msgspec.msgpack.Decoder(Session)
_encoder = msgspec.msgpack.Encoder()
_summaries = msgspec.msgpack.Decoder(Summary)


class SessionsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `sessions`: how long conversations are remembered, and what happens while they cannot be."""

    seconds: Annotated[float, Meta(gt=0, le=31_536_000)] = 900
    max_bytes: Annotated[int, Meta(ge=1024, le=16 * 1024 * 1024)] = 2 * 1024 * 1024
    list_limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    when_store_fails: Literal["refuse", "forget"] = "refuse"


class Opened(NamedTuple):
    """A session as it was read: new where `record` is None."""

    key: Key
    session: Session
    record: Record | None
    answered: Turn | None
    """The turn of this very request, if it has its answer already."""


class Begun(NamedTuple):
    """A session with the turn of `attempt` in it, which is to be answered. `version` is the record's, None where there
    is none; `stored` is whether the record has the turn. `system` is the request's own."""

    key: Key
    session: Session
    attempt: str
    version: str | None
    stored: bool
    system: str | None

    @property
    def turn(self) -> Turn:
        return next(turn for turn in self.session.turns if turn.attempt == self.attempt)


class _Ended(Exception):  # noqa: N818  # no failure
    """The turn has its end already, or is a repetition's to end."""


class Listing(NamedTuple):
    """One session of a list."""

    id: str
    summary: Summary


class Sessions:
    """All sessions, through one store. `clock` gives seconds since 1970, `trouble` why the store does not do well."""

    def __init__(
        self,
        store: Store,
        config: SessionsConfig,
        clock: Callable[[], float] = time.time,
        trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._trouble = trouble
        self._without_memory = MinuteWarning("answering without memory")
        self._max_bytes = min(config.max_bytes, store.max_value_bytes or config.max_bytes)

    async def open(self, caller: Caller, session_id: str | None, request_id: str, prompt: str) -> Opened | None:
        """The caller's session with this id (None where there is none); without an id, the one that this request made
        or is to make."""
        if session_id is not None and not _ID.fullmatch(session_id):
            return None
        key = Key(caller.owner, session_id or _new_id(caller, request_id))
        record = None if caller.is_new else await self._store.get(key)
        session = _decoded(key, record)
        if session is None:
            now = self._clock()
            return Opened(key, Session(key.name, now, now), record, None) if session_id is None else None
        turn = conversation.find(session, request_id, prompt)
        answered = turn if turn is not None and turn.state is State.COMPLETE else None
        return Opened(key, session, record, answered)

    def may_store_once(self, opened: Opened) -> bool:
        """Whether the turn may be stored with its answer only: no client knows the session, and the store does well."""
        return opened.record is None and self._trouble() is None

    def begin(self, opened: Opened, request_id: str, prompt: str, system: str | None) -> Begun:
        """The user's words in their session, for `store` or for `end` to store them."""
        turn = Turn(request_id, secrets.token_hex(8), prompt, self._clock())
        session = conversation.begin(opened.session, turn, system)
        version = None if opened.record is None else opened.record.version
        return Begun(opened.key, session, turn.attempt, version, stored=False, system=system)

    async def store(self, begun: Begun, budget: float) -> Begun:
        """Store the user's words; `budget` is how many seconds the answer may take. Raises LlmError.

        They take over the turn of an earlier attempt at the request. When `store` is cancelled, they may be stored or
        not: `end` knows.
        """

        def change(found: Session | None) -> Session:
            return _with_turn(found, begun)

        session, version = await self._change(begun, change, self._config.seconds + budget)
        return begun._replace(session=session, version=version, stored=True)

    async def end(self, begun: Begun, ending: Ending) -> None:
        """Store how the turn has ended; raises LlmError where it cannot be stored, or is not this attempt's to end.

        An answer whose turn is not stored takes over what a repetition of its request has stored meanwhile, unless that
        has been answered (ABORTED); an end without an answer leaves it alone. When `end` is cancelled, the end may be
        stored or not; it may be called again.
        """

        def change(found: Session | None) -> Session:
            if found is not None and conversation.has_ended(found, begun.attempt):
                raise _Ended
            if not begun.stored:
                if ending.state is not State.COMPLETE and _is_repeated(found, begun):
                    raise _Ended
                found = _with_turn(found, begun)
            if found is None:
                raise _gone()
            ended = conversation.end(found, begun.attempt, ending, self._clock())
            if ended is None:
                raise LlmError(Code.ABORTED, "the request was repeated meanwhile, and the repetition has its turn")
            return ended

        with contextlib.suppress(_Ended):
            await self._change(begun, change, self._config.seconds)

    async def list(self, caller: Caller, limit: int) -> list[Listing]:
        """The caller's sessions, the one used last first."""
        limit = min(limit or self._config.list_limit, self._config.list_limit)
        found = await self._store.list(caller.owner, limit)
        return list(_readable(found))

    async def get(self, caller: Caller, session_id: str) -> Session:
        """The caller's session; raises `LlmError(NOT_FOUND)`."""
        key = Key(caller.owner, session_id)
        session = _decoded(key, await self._store.get(key)) if _ID.fullmatch(session_id) else None
        if session is None:
            raise no_such_session()
        return session

    async def delete(self, caller: Caller, session_id: str) -> None:
        """Forget the caller's session; raises `LlmError(NOT_FOUND)`."""
        if not (_ID.fullmatch(session_id) and await self._store.delete(Key(caller.owner, session_id))):
            raise no_such_session()

    def goes_on_without(self, error: LlmError) -> bool:
        """Whether a request that cannot be remembered for this reason is answered all the same."""
        if error.origin != STORE or self._config.when_store_fails == "refuse":
            return False
        self._without_memory.log(why=error.message)
        return True

    async def _change(
        self, begun: Begun, change: Callable[[Session | None], Session], seconds: float
    ) -> tuple[Session, str]:
        """Put what `change` makes of the session, as it was read last. Returns it as it is then, and its version."""
        session: Session | None = begun.session
        version = begun.version
        for _ in range(_TRIES):
            changed = conversation.shortened(change(session), self._max_bytes, begun.attempt)
            new = self._record(changed, self._clock() + seconds)
            if await self._store.put(begun.key, new, version):
                return changed, new.version
            record = await self._store.get(begun.key)
            session = _decoded(begun.key, record)
            version = None if record is None else record.version
        raise LlmError(Code.ABORTED, "too many requests change this session at once: come back later", retry_after=1)

    def _record(self, session: Session, expires: float) -> Record:
        summary = _encoder.encode(conversation.summary(session))
        return Record(_encoder.encode(session), secrets.token_hex(8), summary, expires)


def _decoded(key: Key, record: Record | None) -> Session | None:
    """The session in a record; one that cannot be read (a newer version's, or damaged) counts as none."""
    if record is None:
        return None
    try:
        return _decoder.decode(record.value)
    except msgspec.MsgspecError as error:
        _log.warning("a session cannot be read", session=key.name, why=str(error))
        return None


def _with_turn(found: Session | None, begun: Begun) -> Session:
    """What is in the store now, with the turn in it; raises `LlmError(ABORTED)` where a repetition of the request has
    been answered, NOT_FOUND where the session was deleted."""
    if found is None and begun.version is not None:
        raise _gone()
    if found is None or found is begun.session:
        return begun.session
    return conversation.begin(found, begun.turn, begun.system)


def _is_repeated(found: Session | None, begun: Begun) -> bool:
    """Whether another attempt at the request has its turn in the store."""
    if found is None or found is begun.session:
        return False
    turn = conversation.find(found, begun.turn.request_id, begun.turn.prompt)
    return turn is not None and turn.attempt != begun.attempt


def _readable(found: Iterable[Listed]) -> Iterator[Listing]:
    for listed in found:
        with contextlib.suppress(msgspec.MsgspecError):
            yield Listing(listed.name, _summaries.decode(listed.summary))


def no_such_session() -> LlmError:
    """The same for one that never was, one that was forgotten and one that is somebody else's."""
    why = "session_id: there is no such session; it may have been forgotten, and it is found only by who made it"
    return LlmError(Code.NOT_FOUND, why)


def _gone() -> LlmError:
    return LlmError(Code.NOT_FOUND, "the session was deleted or forgotten meanwhile: the turn is not kept")


def _new_id(caller: Caller, request_id: str) -> str:
    digest = hmac.new(caller.secret, request_id.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest[:_ID_BYTES]).rstrip(b"=").decode()
