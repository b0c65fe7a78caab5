"""Who calls: by key or by cookie, and which cookies bring them back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from grpc_proxy.callers import Caller, Callers, StickyConfig
from grpc_proxy.keys import KeyRing, change_keys, new_key
from grpc_proxy.ledger import Limits
from lambdalm import logs
from lambdalm.errors import Code, LlmError

OPEN = Callers(StickyConfig(), None, 900)
OFF = Callers(StickyConfig(enabled=False), None, 900)
SESSION, OWNER = "LlmServiceStickiness", "LlmServiceOwner"


@pytest.fixture(autouse=True)
def _logging() -> None:
    """As a server's: other tests may or may not have set it up."""
    logs.configure("proxy", logs.LogConfig())


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[Callers, str, str]:
    """Callers who need a key, and the keys of two."""
    file = tmp_path / "keys.yaml"
    made = [new_key(name, [], Limits()) for name in ("ada", "bob")]
    change_keys(file, lambda _: {entry.id: entry for _, entry in made})
    return Callers(StickyConfig(), KeyRing(file), 900), made[0][0], made[1][0]


def back(callers: Callers, caller: Caller, session: str = "s1") -> Caller:
    """The caller as they come with the cookies that they were given."""
    pairs = [cookie.partition(";")[0] for cookie in callers.set_cookies(caller, session)]
    return callers.identify({"cookie": "; ".join(pairs)})


def test_the_cookies_are_seed_000s_with_one_for_the_owner() -> None:
    caller = OPEN.identify({})
    assert OPEN.set_cookies(caller, "abc") == [
        f"{SESSION}=abc; Path=/; Max-Age=900; HttpOnly",
        f"{OWNER}={caller.cookie}; Path=/; Max-Age=900; HttpOnly",
    ]


def test_who_comes_back_with_the_cookies_is_the_same_caller_in_the_same_session() -> None:
    caller = OPEN.identify({})
    again = back(OPEN, caller)
    assert (again.owner, again.secret, again.session) == (caller.owner, caller.secret, "s1")


def test_each_caller_without_cookies_is_somebody_else_whom_nobody_guesses() -> None:
    callers = [OPEN.identify({}) for _ in range(200)]
    assert len({caller.owner for caller in callers}) == 200
    assert all(len(caller.cookie or "") >= 24 for caller in callers)


def test_the_owners_name_does_not_give_the_secret_away() -> None:
    caller = OPEN.identify({})
    assert caller.secret.decode() not in caller.owner


@pytest.mark.parametrize("cookie", ["", "short", "x" * 65, "a" * 30 + "λ", "a" * 30 + "\n", "../" * 10])
def test_an_owner_cookie_that_we_cannot_have_made_is_not_taken(cookie: str) -> None:
    caller = OPEN.identify({"cookie": f"{OWNER}={cookie}"})
    assert caller.cookie != cookie
    assert len(caller.cookie or "") >= 24


@pytest.mark.parametrize(
    ("header", "session"),
    [
        (f"{SESSION}=abc", "abc"),
        (f"other=1;{SESSION}=abc ; more=2", "abc"),
        (f'{SESSION}="abc"', "abc"),
        (f"{SESSION}=first; {SESSION}=second", "first"),
        (f"x{SESSION}=abc", None),
        (SESSION, None),
        (f"{SESSION}=", None),
        (f"{SESSION}={'x' * 257}", None),
        ("", None),
        (";;=;", None),
    ],
)
def test_the_session_is_read_from_the_cookie_header(header: str, session: str | None) -> None:
    assert OPEN.identify({"cookie": header}).session == session


def test_names_of_cookies_are_as_configured() -> None:
    callers = Callers(StickyConfig(cookie="Mine", owner_cookie="Own"), None, 5)
    caller = callers.identify({"cookie": f"Mine=abc; {SESSION}=other"})
    assert caller.session == "abc"
    assert callers.set_cookies(caller, "abc")[1].startswith("Own=")
    with pytest.raises(msgspec.ValidationError, match="another name"):
        msgspec.convert({"cookie": "Same", "owner_cookie": "Same"}, StickyConfig)


def test_without_stickiness_no_cookie_is_set_or_read_and_nobody_can_come_back() -> None:
    caller = OFF.identify({"cookie": f"{SESSION}=abc; {OWNER}={'o' * 24}"})
    assert caller.session is None
    assert caller.cookie != "o" * 24
    assert OFF.set_cookies(caller, "abc") == []
    assert not OFF.remembers(caller)
    assert OPEN.remembers(OPEN.identify({}))


def test_with_keys_the_owner_is_the_key_and_only_the_sessions_cookie_is_set(guarded: tuple[Callers, str, str]) -> None:
    callers, ada, bob = guarded
    asked = {"cookie": f"{SESSION}=abc; {OWNER}={'o' * 24}"}
    caller = callers.identify({"authorization": f"Bearer {ada}", **asked})
    assert caller.key is not None
    assert (caller.owner, caller.session) == (f"key-{caller.key.id}", "abc")
    assert callers.identify({"x-api-key": ada}).owner == caller.owner
    assert callers.identify({"x-api-key": bob}).owner != caller.owner
    assert [cookie.partition("=")[0] for cookie in callers.set_cookies(caller, "abc")] == [SESSION]
    assert callers.remembers(caller)


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer lm-nobody-x", "Basic abc"])
def test_without_a_key_that_counts_nobody_is_let_in(guarded: tuple[Callers, str, str], header: str | None) -> None:
    with pytest.raises(LlmError) as raised:
        guarded[0].identify({} if header is None else {"authorization": header})
    assert raised.value.code is Code.UNAUTHENTICATED
    assert "nobody" not in raised.value.message
