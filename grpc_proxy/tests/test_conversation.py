"""What a session holds and what a model is told of it: as values, for any course of events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from grpc_proxy import conversation
from grpc_proxy.conversation import Ending, Session, State, Turn
from lambdalm.chat import Message
from lambdalm.errors import Code, LlmError
from lambdalm.events import FinishReason, Tokens

NEW = Session("s1", 1.0, 1.0)
ENDED = (State.COMPLETE, State.FAILED, State.CANCELLED)
texts = st.text(max_size=40)


def asked(session: Session, request_id: str, prompt: str = "λ?", **parts: Any) -> Session:
    turn = Turn(request_id, parts.get("attempt", f"of {request_id}"), prompt, parts.get("created", 2.0))
    return conversation.begin(session, turn, parts.get("system"))


def answered(session: Session, request_id: str, text: str = "λ!", **parts: Any) -> Session:
    """The session with this request's turn ended, complete where nothing else is said."""
    ending = Ending(text=text, **({"state": State.COMPLETE} | parts))
    ended = conversation.end(session, f"of {request_id}", ending, 3.0)
    assert ended is not None
    return ended


def talk(*pairs: tuple[str, str]) -> Session:
    """A session in which this was asked and answered."""
    session = NEW
    for number, (prompt, text) in enumerate(pairs):
        session = answered(asked(session, f"r{number}", prompt), f"r{number}", text)
    return session


def told(session: Session, request_id: str, window: int | None = None, max_tokens: int | None = None) -> list[str]:
    return [message.content for message in conversation.told(session, f"of {request_id}", window, max_tokens).messages]


def test_the_model_is_told_the_system_prompt_then_what_was_said_then_the_question() -> None:
    session = asked(talk(("Who?", "Ada."), ("When?", "1815.")), "new", "Where?", system="Be brief.")
    assert conversation.told(session, "of new", None, None).messages == (
        Message("system", "Be brief."),
        Message("user", "Who?"),
        Message("assistant", "Ada."),
        Message("user", "When?"),
        Message("assistant", "1815."),
        Message("user", "Where?"),
    )


def test_a_session_keeps_its_system_prompt_until_it_gets_another() -> None:
    session = answered(asked(NEW, "r1", "1?", system="Be brief."), "r1")
    session = answered(asked(session, "r2", "2?"), "r2")
    assert told(session, "r2")[0] == "Be brief."
    assert told(asked(session, "r3", "3?", system="Be kind."), "r3")[0] == "Be kind."


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_what_failed_or_was_cancelled_is_kept_and_the_model_is_not_told(state: State) -> None:
    session = answered(asked(talk(("Who?", "Ada.")), "bad", "Poison?"), "bad", "half an ans", state=state)
    assert (session.turns[-1].state, session.turns[-1].text) == (state, "half an ans")
    assert told(asked(session, "new", "When?"), "new") == ["Who?", "Ada.", "When?"]


def test_what_is_still_being_answered_is_not_told_to_the_next() -> None:
    session = asked(asked(NEW, "r1", "slow?"), "r2", "quick?")
    assert told(session, "r2") == ["quick?"]
    assert told(session, "r1") == ["slow?"]


def test_a_repeated_request_takes_its_turn_over_and_the_old_attempt_may_not_end_it() -> None:
    session = asked(NEW, "r1", attempt="old")
    session = asked(asked(session, "r2"), "r1", attempt="new", created=9.0)
    assert [turn.request_id for turn in session.turns].count("r1") == 1
    assert conversation.end(session, "old", Ending(State.COMPLETE, "late"), 10.0) is None
    ended = conversation.end(session, "new", Ending(State.COMPLETE, "first"), 10.0)
    assert ended is not None
    assert [turn.text for turn in ended.turns if turn.request_id == "r1"] == ["first"]
    assert ended.used == 10.0


def test_a_turn_ends_once() -> None:
    session = answered(asked(NEW, "r1"), "r1", "the answer")
    assert conversation.end(session, "of r1", Ending(State.FAILED), 9.0) is None


def test_an_id_that_came_with_another_prompt_is_refused() -> None:
    session = talk(("Who?", "Ada."))
    for refused in (lambda: conversation.find(session, "r0", "When?"), lambda: asked(session, "r0", "When?")):
        with pytest.raises(LlmError) as raised:
            refused()
        assert raised.value.code is Code.ALREADY_EXISTS


def test_a_turn_that_another_attempt_has_just_ended_well_is_not_begun_again() -> None:
    with pytest.raises(LlmError) as raised:
        asked(talk(("Who?", "Ada.")), "r0", "Who?")
    assert (raised.value.code, raised.value.retry_after) == (Code.ABORTED, 1)


def test_only_who_answered_is_the_sessions_upstream() -> None:
    session = answered(asked(NEW, "r1"), "r1", upstream="a")
    assert session.upstream == "a"
    session = answered(asked(session, "r2"), "r2", state=State.FAILED, upstream="b")
    assert session.upstream == "a"
    assert answered(asked(session, "r3"), "r3", upstream="b").upstream == "b"


def test_a_turns_tokens_are_what_the_engine_counted_less_what_went_before() -> None:
    usage = Tokens(prompt_tokens=120, completion_tokens=30)
    session = answered(asked(NEW, "r1"), "r1", usage=usage, told=100)
    assert session.turns[0].tokens == 50
    assert session.turns[0].usage == usage


def test_what_the_engine_does_not_count_is_estimated() -> None:
    session = talk(("q" * 30, "a" * 60))
    assert session.turns[0].tokens == conversation.estimate("q" * 30) + conversation.estimate("a" * 60)
    assert conversation.estimate("q" * 30) >= 10


def test_a_summary_has_the_beginning_of_the_first_prompt() -> None:
    session = asked(talk(("x" * 100, "y")), "r9", "z")
    assert conversation.summary(session) == conversation.Summary(1.0, 2.0, 2, "x" * 64)
    assert conversation.summary(NEW).title == ""


turns = st.lists(
    st.builds(
        Turn,
        request_id=st.uuids().map(str),
        attempt=st.uuids().map(str),
        prompt=texts,
        created=st.just(2.0),
        state=st.sampled_from([*ENDED, State.PENDING]),
        text=texts,
        tokens=st.integers(1, 300),
    ),
    max_size=12,
)


@given(turns, texts, st.none() | texts, st.integers(1, 2000), st.none() | st.integers(1, 500))
def test_history_leaves_room_for_the_answer_and_is_the_newest_of_the_complete(
    before: list[Turn], question: str, system: str | None, window: int, max_tokens: int | None
) -> None:
    session = asked(msgspec.structs.replace(NEW, turns=tuple(before)), "new", question, system=system)
    found = conversation.told(session, "of new", window, max_tokens)
    assert found.messages[-1] == Message("user", question)
    assert (found.messages[0].role == "system") is (system is not None)
    history = found.messages[system is not None : -1]
    complete = [turn for turn in before if turn.state is State.COMPLETE]
    kept = complete[len(complete) - len(history) // 2 :]
    assert [message.content for message in history] == [text for turn in kept for text in (turn.prompt, turn.text)]
    always = conversation.estimate(question) + (0 if system is None else conversation.estimate(system))
    room = window - always - (max_tokens or window // 4)
    spent = sum(turn.tokens for turn in kept)
    assert spent <= max(room, 0)
    assert found.before == spent + (0 if system is None else conversation.estimate(system))
    left = complete[: len(complete) - len(kept)]
    assert not left or spent + left[-1].tokens > room, "there was room for one more"


@given(turns, texts)
def test_where_the_window_is_not_known_all_is_told(before: list[Turn], question: str) -> None:
    session = asked(msgspec.structs.replace(NEW, turns=tuple(before)), "new", question)
    complete = [turn for turn in before if turn.state is State.COMPLETE]
    assert len(told(session, "new")) == 2 * len(complete) + 1


@given(turns, texts, st.none() | texts, st.integers(0, 4000), st.data())
def test_a_session_that_is_shortened_keeps_its_newest_turns_and_always_the_attempts_own(
    before: list[Turn], question: str, system: str | None, max_bytes: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(before)))
    before.insert(place, Turn("new", "of new", question, 2.0))
    session = msgspec.structs.replace(NEW, turns=tuple(before), system=system)
    short = conversation.shortened(session, max_bytes, "of new")
    kept = len(short.turns)
    assert short.turns == tuple(before[len(before) - kept :])
    assert short.system == system
    assert kept >= len(before) - place
    assert kept == len(before) - place or len(msgspec.msgpack.encode(short)) <= max_bytes
    one_more = msgspec.structs.replace(session, turns=tuple(before[-kept - 1 :]))
    assert kept == len(before) or len(msgspec.msgpack.encode(one_more)) + 256 * (kept + 2) > max_bytes


class Course(RuleBasedStateMachine):
    """Attempts at requests of one session, in any order: begun, repeated, ended, late."""

    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.session = NEW
        self.now = 1.0
        self.present: dict[str, str] = {}
        """Each request's attempt that may end it."""
        self.acknowledged: dict[str, str] = {}
        """The answers whose end was told."""
        self.number = 0

    @rule(target=attempts, request=st.sampled_from("abc"))
    def begin(self, request: str) -> tuple[str, str]:
        self.number += 1
        self.now += 1
        attempt = f"attempt {self.number}"
        turn = Turn(request, attempt, request, self.now)
        if request in self.acknowledged:
            with pytest.raises(LlmError):
                conversation.begin(self.session, turn, None)
            return request, "refused"
        self.session = conversation.begin(self.session, turn, None)
        self.present[request] = attempt
        return request, attempt

    @rule(attempt=attempts, state=st.sampled_from(ENDED))
    def end(self, attempt: tuple[str, str], state: State) -> None:
        request, name = attempt
        self.now += 1
        ended = conversation.end(self.session, name, Ending(state, name, "tiny", FinishReason.STOP), self.now)
        assert (ended is not None) is (self.present.get(request) == name)
        if ended is None:
            return
        self.session = ended
        del self.present[request]
        if state is State.COMPLETE:
            self.acknowledged[request] = name

    @invariant()
    def no_turn_is_there_twice(self) -> None:
        found = [turn.request_id for turn in self.session.turns]
        assert len(found) == len(set(found))

    @invariant()
    def what_was_acknowledged_is_there_as_it_was(self) -> None:
        complete = {turn.request_id: turn.text for turn in self.session.turns if turn.state is State.COMPLETE}
        assert complete == self.acknowledged

    @invariant()
    def it_was_used_when_it_changed_last(self) -> None:
        assert self.session.used <= self.now


TestCourse = Course.TestCase
