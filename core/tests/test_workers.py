"""Several workers on one port, as processes: they share it, they are replaced, and they end together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lambdalm import ports
from lambdalm.listen import Listen
from lambdalm.testing.chain import free_ports
from lambdalm.workers import Deaths, Pulse

WAIT = 45  # seconds until a test that waits has failed

PROGRAM = Path(__file__).with_name("worker_program.py")


class Program:
    """`worker_program.py`, running."""

    def __init__(self, count: int, *more: str) -> None:
        self.port = free_ports().proxy
        self.process = subprocess.Popen(
            command(self.port, count, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def ask(self) -> int:
        """The id of the process that answers a new connection."""
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), WAIT) as sock:
                if answer := sock.recv(64):
                    return int(answer)

    def until_two_answer(self) -> set[int]:
        """Asks until two processes have answered; which they are."""
        seen: set[int] = set()
        while len(seen) < 2:
            seen.add(self.ask())
        return seen

    def end(self) -> tuple[int, str]:
        """SIGTERM, if it has not ended; its status and all that it said."""
        self.process.terminate()
        said = self.process.communicate(timeout=WAIT)[0]
        return self.process.returncode, said


def command(port: int, count: int, *more: str) -> list[str]:
    return [sys.executable, str(PROGRAM), str(port), str(count), *more]


@contextlib.contextmanager
def running(count: int, *more: str) -> Iterator[Program]:
    program = Program(count, *more)
    try:
        yield program
    finally:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*program.children(), psutil.Process(program.process.pid)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        program.process.communicate()


def test_two_workers_answer_on_one_port_and_end_with_their_parent_on_sigterm() -> None:
    with running(2) as program:
        answering = program.until_two_answer()
        children = program.children()
        assert answering == {child.pid for child in children}
        assert program.end()[0] == 0
        assert not any(child.is_running() for child in children)


def test_ctrl_c_which_reaches_all_of_them_ends_all_of_them_too() -> None:
    with running(2) as program:
        answering = program.until_two_answer()
        for pid in (*answering, program.process.pid):
            os.kill(pid, signal.SIGINT)
        assert program.process.wait(WAIT) == 0


def test_killed_worker_is_replaced_while_the_port_keeps_answering() -> None:
    with running(2) as program:
        before = program.until_two_answer()
        psutil.Process(before.pop()).kill()
        (other,) = before
        now = program.until_two_answer()
        while other not in now or len(now) > 2:  # until the one that was killed is not among them any more
            now = program.until_two_answer()
        assert now == {child.pid for child in program.children()}
        status, said = program.end()
    assert status == 0
    assert "worker_ended" in said
    assert len(re.findall(r"^worker \d pid", said, re.MULTILINE)) == 3


def test_worker_that_cannot_be_started_now_is_started_later() -> None:
    with running(2) as program:
        program.until_two_answer()
        parent, (killed, kept) = psutil.Process(program.process.pid), program.children()
        limits = parent.rlimit(psutil.RLIMIT_NOFILE)
        parent.rlimit(psutil.RLIMIT_NOFILE, (1, limits[1]))
        killed.kill()
        assert program.process.stdout is not None
        assert any("worker_not_started" in line for line in program.process.stdout)
        assert program.ask() == kept.pid
        parent.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert kept.pid in program.until_two_answer()
        assert program.end()[0] == 0


def test_hung_worker_is_killed_and_replaced() -> None:
    with running(2) as program:
        hung = program.until_two_answer().pop()
        os.kill(hung, signal.SIGSTOP)
        psutil.Process(hung).wait(WAIT)
        while hung in program.until_two_answer():
            pass
        status, said = program.end()
    assert status == 0
    assert said.count("worker_hung") == 1
    assert f"pid={hung}" in said


def test_stopping_waits_for_no_hung_worker() -> None:
    with running(2) as program:
        os.kill(program.until_two_answer().pop(), signal.SIGSTOP)
        status, said = program.end()
    assert status == 1
    assert "did not stop as it should: its status is -9" in said


def test_workers_stop_when_their_parent_is_killed() -> None:
    with running(2) as program:
        program.until_two_answer()
        children = program.children()
        program.process.kill()
        alive = psutil.wait_procs(children, WAIT)[1]
        for child in alive:
            child.kill()  # nobody else knows of it any more
        assert alive == []


def test_a_worker_that_keeps_dying_young_ends_all_with_status_1_and_a_line_that_says_so() -> None:
    with running(2, "0") as program:
        said, _ = program.process.communicate(timeout=WAIT)
        assert program.process.returncode == 1
    assert said.count("worker 1 pid") == 5
    assert said.count("worker 0 pid") == 1
    assert said.endswith("error: worker 1 keeps ending as soon as it is started: its log says why\n")


def test_one_worker_is_the_process_itself() -> None:
    with running(1) as program:
        assert program.ask() == program.process.pid
        assert program.end()[0] == 0


@pytest.mark.parametrize("count", [1, 2])
def test_nobody_else_gets_the_port_not_even_with_workers_of_their_own(count: int) -> None:
    with running(2) as program:
        program.until_two_answer()
        if count == 1:
            with pytest.raises(OSError, match="in use"), socket.create_server(("127.0.0.1", program.port)):
                pass
            return
        ran = subprocess.run(command(program.port, count), capture_output=True, text=True, timeout=WAIT, check=False)
    assert ran.returncode == 1
    assert ran.stderr == f"error: cannot listen on 127.0.0.1:{program.port}: is another server running there?\n"
    assert "worker" not in ran.stdout


def test_a_port_is_held_while_nobody_listens_and_connections_come_to_who_does() -> None:
    (held,) = ports.hold(listen := Listen("127.0.0.1", free_ports().proxy))
    with held:
        with pytest.raises(OSError, match="is another server running there"):
            ports.hold(listen)
        with pytest.raises(OSError, match="in use"), socket.create_server(("127.0.0.1", listen.port)):
            pass
        with socket.create_server(("127.0.0.1", listen.port), reuse_port=True) as server:
            for _ in range(50):
                with socket.create_connection(("127.0.0.1", listen.port), WAIT), server.accept()[0]:
                    pass


def test_a_port_that_a_stopped_server_has_left_connections_on_can_be_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # first, so that it is this side's that stays in TIME_WAIT
            assert client.recv(1) == b""
    (held,) = ports.hold(Listen("127.0.0.1", port))
    with held:
        assert held.getsockname()[1] == port


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        (Listen("127.0.0.1", 0), "cannot listen on 127.0.0.1:0: several workers share one port, so give it a number"),
        (Listen("192.0.2.1", 5, True), "cannot listen on 192.0.2.1:5: Cannot assign requested address"),
        (Listen("no.such.host.invalid", 5, True), "cannot listen on no.such.host.invalid:5: "),
    ],
)
def test_an_address_that_is_not_to_be_had_is_refused_with_its_reason(listen: Listen, why: str) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011  # what it says is what is asserted
        ports.hold(listen)
    assert str(refused.value).startswith(why)


def test_pauses_grow_while_workers_die_young_and_one_that_lived_is_started_at_once() -> None:
    deaths = Deaths()
    assert [deaths.pause(1) for _ in range(4)] == pytest.approx([0.1, 0.3, 0.7, 1.5])
    assert deaths.pause(60) == 0
    assert deaths.pause(1) == pytest.approx(0.1)
    assert [deaths.pause(1) for _ in range(4)][-1] is None


def test_worker_hangs_when_it_has_beaten_and_stays_silent() -> None:
    pulse = Pulse(2)
    assert not any(pulse.hangs() for _ in range(100)), "it loads"
    pulse.beat()
    assert [pulse.hangs() for _ in range(3)] == [False, False, True]
    pulse.beat()
    assert not pulse.hangs()
