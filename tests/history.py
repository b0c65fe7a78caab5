"""The history checker: kills hops under load, by a seeded plan, and looks whether what was acknowledged is kept.

    python -m tests.history --rounds 50                     # prints its seed
    python -m tests.history --rounds 200 --seed 7 --store redis

Clients talk HTTP with the edge, each with a cookie jar of its own, and note each turn. In every round one hop is
killed with SIGKILL and started again; then all sessions are read and judged (`history_check`). What is asked, and who
dies when, `history_plan` says. The exit status is 1 if anything is violated.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click
import requests

from lambdalm.testing.chain import Chain, free_ports
from lambdalm.testing.valkey import redis_server
from tests import history_plan
from tests.history_check import Attempt, Kept, check
from tests.history_plan import Question, Round

_PATIENCE = 60.0  # seconds until what does not come is a violation
_PAUSE = 0.1  # seconds between a client's failure and what it does next
_AFTERWARDS = 2  # acknowledged turns for each client, after a kill


class StuckError(Exception):
    """What must come in the end has not come."""


class Notes:
    """What clients have been told, as they note it down; whoever waits for something there is woken."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._changed = threading.Condition()

    def add(self, attempt: Attempt) -> None:
        with self._changed:
            self.attempts.append(attempt)
            self._changed.notify_all()

    def acknowledged(self, since: float) -> list[Attempt]:
        """Those that were asked after this moment."""
        late = itertools.takewhile(lambda attempt: attempt.ended >= since, reversed(self.attempts))
        return [attempt for attempt in late if attempt.acknowledged and attempt.began >= since]

    def first_new(self, since: float) -> Attempt:
        """The first turn asked and acknowledged since then; a repetition may be answered from what is kept."""
        known = {a.question.request_id for a in self.attempts if a.acknowledged and a.began < since}
        new = (a for a in self.acknowledged(since) if a.question.request_id not in known)
        return min(new, key=lambda attempt: attempt.ended)

    def wait_for(self, number: int, since: float, when: str) -> None:
        """Return when so many turns asked since then have been acknowledged; raises StuckError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.acknowledged(since)) >= number, _PATIENCE):
                raise StuckError(f"not {number} turns acknowledged within {_PATIENCE:g} s {when}")


class Client:
    """One client: a conversation after the other, each with a cookie jar of its own."""

    def __init__(self, number: int, url: str, notes: Notes) -> None:
        self._number = number
        self._url = url
        self._notes = notes
        self._jars: dict[str, requests.Session] = {}
        self.start_anew()

    def start_anew(self) -> None:
        """Become somebody else: without cookies."""
        self._owner = f"client {self._number}.{len(self._jars)}"
        self._http = self._jars[self._owner] = requests.Session()
        self._http.trust_env = False

    def ask_all(self, questions: Iterator[Question], stopping: threading.Event) -> None:
        """One question after the other; a persistent one is asked until it is acknowledged."""
        while not stopping.is_set():
            self._ask(next(questions))

    def sessions(self) -> dict[tuple[str, str], list[Kept]]:
        """All that this client can read, as all that it has been."""
        found = {}
        for owner, http in self._jars.items():
            listed = {summary["id"] for summary in _get(http, f"{self._url}/sessions")["sessions"]}
            told = {a.session_id for a in self._notes.attempts if a.owner == owner and a.session_id is not None}
            for session_id in listed | told:
                turns = _get(http, f"{self._url}/sessions/{session_id}").get("turns")
                if turns is not None:
                    found[owner, session_id] = [Kept(*(turn[field] for field in Kept._fields)) for turn in turns]
        return found

    def close(self) -> None:
        for http in self._jars.values():
            http.close()

    def _ask(self, question: Question) -> None:
        began = time.monotonic()
        while not self._attempt(question):
            time.sleep(_PAUSE)
            if not question.persists:
                return
            if time.monotonic() - began > _PATIENCE:
                raise StuckError(f"{question.request_id} not acknowledged within {_PATIENCE:g} s")
        if question.again:
            self._attempt(question)

    def _attempt(self, question: Question) -> bool:
        began, said = time.monotonic(), _Said()
        try:
            self._send(question, said)
        except requests.exceptions.ConnectionError:
            said.failure = "no connection"
        except requests.RequestException:
            said.failure = "cut off"
        text = "".join(said.text)
        self._notes.add(Attempt(self._owner, question, said.session_id, text, said.failure, began, time.monotonic()))
        return said.failure is None

    def _send(self, question: Question, said: _Said) -> None:
        body = {"prompt": question.prompt, "model": question.model, "max_tokens": question.max_tokens, "stream": True}
        headers = {"X-Request-Id": question.request_id, "X-Request-Timeout": "20"}
        with self._http.post(f"{self._url}/query", json=body, headers=headers, stream=True, timeout=30) as response:
            if response.status_code != 200:
                said.failed(str(response.status_code), response.json()["error"])
                return
            for line in response.iter_lines(chunk_size=None):
                if line.startswith(b"data: "):
                    said.heard(json.loads(line.removeprefix(b"data: ")))


class _Said:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.text: list[str] = []
        self.failure: str | None = "cut off"

    def heard(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "started":
                self.session_id = event.get("session_id")
            case "text_delta":
                self.text.append(event["text"])
            case "error":
                self.failed("in the stream", event["error"])
            case "finished":
                self.failure = None

    def failed(self, where: str, error: dict[str, Any]) -> None:
        self.failure = f"{where}: {error['code']} of {error['origin']}"


def _get(http: requests.Session, url: str) -> dict[str, Any]:
    """The JSON there, empty where there is nothing; a hop that has just come back may need a moment."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        answer = http.get(url, timeout=10)
        if answer.status_code == 404:
            return {}
        if answer.status_code == 200:
            found: dict[str, Any] = answer.json()
            return found
        if time.monotonic() > deadline:
            raise StuckError(f"GET {url} answers {answer.status_code}: {answer.text}")
        time.sleep(_PAUSE)


class Result(NamedTuple):
    """What a run has shown."""

    attempts: Sequence[Attempt]
    kills: Counter[str]
    recoveries: Sequence[float]
    """Seconds from each kill to the end of the first turn that was asked after it and acknowledged."""
    violations: Sequence[str]

    def lines(self) -> Iterator[str]:
        """The totals, for people."""
        asked = {attempt.question.request_id for attempt in self.attempts}
        kept = {attempt.question.request_id for attempt in self.attempts if attempt.acknowledged}
        yield f"turns asked {len(asked)}, acknowledged {len(kept)}, attempts {len(self.attempts)}"
        for failure, number in Counter(a.failure for a in self.attempts if a.failure is not None).most_common():
            yield f"  failed {number}: {failure}"
        yield "kills " + ", ".join(f"{hop} {number}" for hop, number in sorted(self.kills.items()))
        if self.recoveries:
            p50, p99 = quantile(self.recoveries, 0.5), quantile(self.recoveries, 0.99)
            yield f"recovery p50 {p50:.2f} s, p99 {p99:.2f} s, most {max(self.recoveries):.2f} s"
        yield f"violations {len(self.violations)}"
        yield from (f"  {violation}" for violation in self.violations)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


class Run:
    """The clients and the chain that they talk to, round after round."""

    def __init__(self, chain: Chain, seed: int, clients: int) -> None:
        self._chain = chain
        self._seed = seed
        self._notes = Notes()
        self._clients = [Client(number, chain.url, self._notes) for number in range(clients)]
        self._kills: Counter[str] = Counter()
        self._recoveries: list[float] = []
        self._violations: list[str] = []

    def play(self, rounds: Sequence[Round], say: Callable[[str], None]) -> Result:
        """All of them, or until something is violated."""
        try:
            for one in rounds:
                self._play(one)
                say(self._line(one))
                if self._violations:
                    break
        except StuckError as error:
            dead = [
                f"; the {hop.name} has ended: {hop.tail[-1:]}" for hop in self._chain.hops.values() if not hop.alive
            ]
            self._violations.append("".join([str(error), *dead]))
        finally:
            for client in self._clients:
                client.close()
        return Result(self._notes.attempts, self._kills, self._recoveries, self._violations)

    def _play(self, one: Round) -> None:
        for number in one.fresh:
            self._clients[number].start_anew()
        stopping = threading.Event()
        with ThreadPoolExecutor(len(self._clients)) as threads:
            asking = [
                threads.submit(client.ask_all, history_plan.questions(self._seed, one.number, number), stopping)
                for number, client in enumerate(self._clients)
            ]
            try:
                self._kill(one)
            finally:
                stopping.set()
        for client in asking:
            client.result()
        found = {key: turns for client in self._clients for key, turns in client.sessions().items()}
        self._violations += check(self._notes.attempts, found)

    def _kill(self, one: Round) -> None:
        self._notes.wait_for(one.after, time.monotonic(), f"in round {one.number}")
        self._chain.hops[one.victim].kill()
        killed = time.monotonic()
        self._chain.start(one.victim)
        self._kills[one.victim] += 1
        after = f"after the {one.victim} was killed in round {one.number}"
        self._notes.wait_for(len(self._clients) * _AFTERWARDS, killed, after)
        self._recoveries.append(self._notes.first_new(killed).ended - killed)

    def _line(self, one: Round) -> str:
        acknowledged = sum(attempt.acknowledged for attempt in self._notes.attempts)
        return (
            f"round {one.number}: {one.victim} killed after {one.after} turns, back in {self._recoveries[-1]:.2f} s; "
            f"{acknowledged} acknowledged so far, {len(self._violations)} violations"
        )


@contextlib.contextmanager
def chain_of(store: str, log: Path | None) -> Iterator[Chain]:
    """The chain on the scripted provider, with a store of its own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lambdalm-history-")))
        environ = {
            "PROVIDER": "scripted",
            "PARALLEL_SLOTS": "32",
            "INTERACTION_LOG_CONTENT": "off",
            "SESSION_SECONDS": "86400",
            "STORE": store,
            "STORE_SQLITE_PATH": str(folder / "history.sqlite"),
        }
        if store == "redis":
            environ["REDIS_URL"] = stack.enter_context(redis_server(folder)).url
        lines = stack.enter_context((log or folder / "log").open("w", encoding="utf-8"))
        yield stack.enter_context(Chain(free_ports(), environ, lambda hop, line: print(hop, line, file=lines)))


@click.command(help=__doc__)
@click.option("--seed", type=int, help="of the plan; drawn and printed if there is none")
@click.option("--rounds", default=50, show_default=True, help="kills")
@click.option("--clients", default=6, show_default=True)
@click.option("--store", type=click.Choice(["sqlite", "redis"]), default="sqlite", show_default=True)
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="a file for what the hops log")
def main(seed: int | None, rounds: int, clients: int, store: str, log: Path | None) -> None:
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}, store {store}, {clients} clients, {rounds} rounds")
    with chain_of(store, log) as chain:
        result = Run(chain, seed, clients).play(history_plan.rounds(seed, rounds, clients), click.echo)
    for line in result.lines():
        click.echo(line)
    if result.violations:
        click.echo(f"violated with --seed {seed} --store {store} --clients {clients} --rounds {rounds}")
        sys.exit(1)


if __name__ == "__main__":
    main()
