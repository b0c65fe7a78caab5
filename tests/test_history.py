"""The history checker: it finds what it is there to find, its plan is its seed's, and a run of it finds nothing."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.history_check import Attempt, Kept, Sessions, check, script
from tests.history_plan import HOPS, Question, questions, rounds

FIRST, SECOND, SLOW = (
    Question("r1", "one λ", "echo", 3, True, False),
    Question("r2", "two", "echo", 3, True, False),
    Question("r3", "three", "slow", 3, True, False),
)
OTHERS = Question("x1", "another's", "echo", 3, True, False)

TOLD = [
    Attempt("ann", FIRST, "s", "one λ", None),
    Attempt("bob", OTHERS, "t", "another's", None),
    Attempt("ann", SLOW, None, "once ", "cut off"),
    Attempt("ann", SECOND, "s", "two", None),
    Attempt("ann", SECOND, "s", "two", None),  # asked for again: the same answer
]
KEPT: dict[tuple[str, str], list[Kept]] = {
    ("ann", "s"): [
        Kept("r1", "one λ", "complete", "one λ"),
        Kept("r3", "three", "cancelled", "once upon "),
        Kept("r2", "two", "complete", "two"),
    ],
    ("bob", "t"): [Kept("x1", "another's", "complete", "another's")],
}


def kept(change: Callable[[list[Kept]], object]) -> Sessions:
    """The sessions with a change to that of ann."""
    own = list(KEPT["ann", "s"])
    change(own)
    return KEPT | {("ann", "s"): own}


def replaced(index: int, **fields: str) -> Sessions:
    """The sessions with one of ann's turns changed."""
    return kept(lambda turns: turns.__setitem__(index, turns[index]._replace(**fields)))


def told(index: int, text: str) -> list[Attempt]:
    return [attempt._replace(text=text) if at == index else attempt for at, attempt in enumerate(TOLD)]


def test_a_true_history_is_not_blamed() -> None:
    assert check(TOLD, KEPT) == []
    assert check([], {}) == []


def test_a_turn_that_was_not_acknowledged_may_be_missing_and_may_be_whole() -> None:
    assert check(TOLD, kept(lambda turns: turns.pop(1))) == []
    assert check(TOLD, replaced(1, state="complete", text="once upon a ")) == []


DOCTORED = {
    "a lost turn": (TOLD, kept(lambda turns: turns.pop(0)), "r1 was acknowledged and is not in session s"),
    "a lost session": (TOLD, {("bob", "t"): KEPT["bob", "t"]}, "r1 was acknowledged and is not in session s"),
    "a doubled turn": (TOLD, kept(lambda turns: turns.append(turns[0])), "r1 is there 2 times"),
    "a turn doubled into another session": (
        TOLD,
        KEPT | {("ann", "u"): [Kept("r3", "three", "failed", "")]},
        "r3 is there 2 times",
    ),
    "turns in another order": (TOLD, kept(lambda turns: turns.reverse()), "session s has ['r2', 'r1']"),
    "an acknowledged turn left open": (
        TOLD,
        replaced(0, state="pending"),
        "r1 was acknowledged and is pending",
    ),
    "an acknowledged turn cut short": (TOLD, replaced(0, text="one "), "r1 was acknowledged as 'one λ' and kept as"),
    "a whole turn that says something else": (
        TOLD,
        replaced(1, state="complete", text="once upon "),
        "r3 is complete as 'once upon '",
    ),
    "text that is no beginning": (TOLD, replaced(1, text="once a "), "r3 is cancelled as 'once a '"),
    "text that came twice": (TOLD, replaced(1, text="once once upon "), "r3 is cancelled as"),
    "another prompt": (TOLD, replaced(1, prompt="four"), "r3 has the prompt 'four'"),
    "a turn of another client": (
        TOLD,
        kept(lambda turns: turns.append(KEPT["bob", "t"][0])),
        "ann: x1 is there, and is not this client's",
    ),
    "a client told of less than all": (told(0, text="one "), KEPT, "r1 was told as 'one '"),
    "a client told of text in pieces": (told(2, text="once a "), KEPT, "r3 was told as 'once a '"),
    "a turn acknowledged without a session": (
        [Attempt("ann", FIRST, None, "one λ", None)],
        {},
        "r1 was acknowledged and is not in session None",
    ),
}


@pytest.mark.parametrize("what", DOCTORED)
def test_a_doctored_history_is_caught(what: str) -> None:
    attempts, sessions, expected = DOCTORED[what]
    assert any(expected in violation for violation in check(attempts, sessions)), check(attempts, sessions)


def test_the_script_is_what_the_scripted_engine_says() -> None:
    assert script(FIRST) == "one λ"
    assert script(SLOW) == "once upon a "


def test_the_same_seed_is_the_same_plan_and_another_is_not() -> None:
    assert rounds(7, 20, 6) == rounds(7, 20, 6) != rounds(8, 20, 6)
    asked = [list(itertools.islice(questions(seed, 3, 1), 20)) for seed in (7, 7, 8)]
    assert asked[0] == asked[1] != asked[2]


def test_a_plan_kills_each_hop_as_often_and_asks_nothing_twice() -> None:
    assert Counter(one.victim for one in rounds(7, 30, 6)) == dict.fromkeys(HOPS, 10)
    asked = [q for number in range(5) for client in range(4) for q in itertools.islice(questions(7, number, client), 9)]
    assert len({question.request_id for question in asked}) == len({question.prompt for question in asked}) == 180


def run(folder: Path, *arguments: str) -> None:
    """The program; what it has printed shows when it fails, and what the hops have logged is in the folder."""
    command = [sys.executable, "-m", "tests.history", "--log", str(folder / "hops.log"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0
    assert re.search(r"^violations 0$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_each_hop_killed_once_loses_no_acknowledged_turn(tmp_path: Path, store: str) -> None:
    run(tmp_path, "--rounds", "3", "--clients", "4", "--store", store)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_kills_lose_no_acknowledged_turn(tmp_path: Path) -> None:
    run(tmp_path, "--rounds", "50")
