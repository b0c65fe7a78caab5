"""`make up` and its stop: the three servers in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from lambdalm.testing.chain import PortNames, Ports, free_ports, taken

from .conftest import WAIT, until

GONE = 15  # seconds: less than a server's grace, much more than the 2 s that are promised
UP = Path(__file__).resolve().parent.parent / "tools" / "up.py"


def up(ports: Ports) -> subprocess.Popen[str]:
    environ = os.environ | dict(zip(PortNames(), map(str, ports), strict=True)) | {"PROVIDER": "scripted"}
    return subprocess.Popen(
        [sys.executable, str(UP)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def ports() -> Ports:
    return free_ports()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any("ready: http" in line for line in process.stdout)


def test_it_says_when_it_is_ready_answers_and_ends_on_ctrl_c(ports: Ports) -> None:
    process = up(ports)
    try:
        ready(process)
        answer = requests.post(f"http://127.0.0.1:{ports.edge}/query", json={"prompt": "hi"}, timeout=WAIT)
        assert answer.json()["text"] == "hi"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.communicate()
    assert not any(map(taken, ports))


def test_a_second_ctrl_c_does_not_wait_for_what_is_in_progress(ports: Ports) -> None:
    process = up(ports)
    try:
        ready(process)
        body = {"prompt": "hi", "model": "stall", "stream": True}
        with requests.post(f"http://127.0.0.1:{ports.edge}/query", json=body, stream=True, timeout=WAIT) as answer:
            next(answer.iter_lines())
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            assert any("Ctrl-C again" in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
            process.wait(WAIT)
    finally:
        process.kill()
        process.communicate()
    until(lambda: not any(map(taken, ports)), "all hops have ended")


def test_killed_make_up_leaves_no_server_behind(ports: Ports) -> None:
    process = up(ports)
    servers: list[psutil.Process] = []
    try:
        ready(process)
        servers = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) >= 3
        body = {"prompt": "hi", "model": "stall", "stream": True}
        with requests.post(f"http://127.0.0.1:{ports.edge}/query", json=body, stream=True, timeout=WAIT) as answer:
            next(answer.iter_lines())
            process.kill()
            alive = psutil.wait_procs(servers, GONE)[1]
        assert alive == []
    finally:
        process.kill()
        process.communicate()
        for server in servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()


def test_a_port_that_is_taken_is_named_with_the_variable_that_sets_another(ports: Ports) -> None:
    first = up(ports)
    try:
        ready(first)
        second = up(ports)
        said, _ = second.communicate(timeout=WAIT)
        assert second.returncode == 1
        assert f"error: port {ports.backend} is taken" in said
        assert "BACKEND_PORT" in said
    finally:
        first.terminate()
        first.communicate()
