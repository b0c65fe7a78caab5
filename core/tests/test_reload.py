"""`serve --reload` with a small service of its own, as a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

WAIT = 20  # seconds until a test that waits has failed

SERVICE = """
import os
import signal
from pathlib import Path

from msgspec import Struct

from lambdalm.commands import Service, service_cli


class Config(Struct):
    word: str


def serve(config: Config) -> None:
    print(f"{os.getpid()} says {config.word} as of version 1", flush=True)
    signal.pause()


service_cli(Service("toy", "A toy.", Config, Path(__file__).with_name("config.yaml"), serve, str, []))()
"""


class Toy:
    """The service and the program that reloads it."""

    def __init__(self, folder: Path) -> None:
        self.code = folder / "toy" / "__main__.py"
        self.config = self.code.with_name("config.yaml")
        self.code.parent.mkdir()
        self.code.write_text(SERVICE)
        self.config.write_text("word: hello")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toy", "serve", "--reload"],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.served: list[int] = []

    def says(self) -> str:
        """What the next server says."""
        pid, _, said = self.line(" says ").partition(" says ")
        self.served.append(int(pid))
        return said

    def line(self, part: str) -> str:
        """The next line that has this in it."""
        assert self.process.stdout is not None
        return next(line.rstrip() for line in self.process.stdout if part in line)

    def close(self) -> None:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT)
        self.process.stdout.close()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    made = Toy(tmp_path)
    yield made
    made.close()
    assert not [pid for pid in made.served if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_change_of_the_config_or_of_the_code_starts_the_server_anew(toy: Toy) -> None:
    assert toy.says() == "hello as of version 1"
    toy.config.write_text("word: goodbye")
    assert toy.line("changed") == "config.yaml changed: starting anew"
    assert toy.says() == "goodbye as of version 1"
    # Of another size: in the same second, Python takes a source of the same size for the one that it has compiled.
    toy.code.write_text(SERVICE.replace("version 1", "version two"))
    assert toy.says() == "goodbye as of version two"
    assert [is_running(pid) for pid in toy.served] == [False, False, True]


def test_a_new_file_starts_it_anew_and_one_that_is_no_python_does_not(toy: Toy) -> None:
    toy.says()
    toy.code.with_name("notes.txt").write_text("nothing")
    toy.code.with_name("more.py").write_text("")
    assert toy.line("changed") == "more.py changed: starting anew"
    toy.says()


def test_what_cannot_start_is_tried_again_after_the_next_change(toy: Toy) -> None:
    toy.says()
    toy.config.write_text("word: [")
    assert toy.line("the server has ended") == "the server has ended (status 2): waiting for a change"
    toy.config.write_text("word: again")
    assert toy.says() == "again as of version 1"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_both_and_leaves_no_process_behind(toy: Toy, number: int) -> None:
    toy.says()
    toy.process.send_signal(number)
    toy.process.wait(WAIT)
    assert not is_running(toy.served[0])


def test_ctrl_c_in_a_terminal_reaches_the_server_once(toy: Toy) -> None:
    toy.says()
    assert os.getpgid(toy.served[0]) == toy.served[0], "a terminal would signal it, too"
    os.killpg(toy.process.pid, signal.SIGINT)
    toy.process.wait(WAIT)


def test_a_config_that_makes_no_sense_at_first_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__main__.py").write_text(SERVICE)
    (tmp_path / "toy" / "config.yaml").write_text("word: 7")
    ran = subprocess.run(
        [sys.executable, "-m", "toy", "serve", "--reload"], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT
    )
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
