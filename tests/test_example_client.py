"""examples/client.py as a program, as its README shows it, with a proxy that remembers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from lambdalm.testing.chain import free_ports

ROOT = Path(__file__).resolve().parent.parent
WAIT = 45  # seconds until a test that waits has failed

Ran = subprocess.CompletedProcess[str]
Client = Callable[..., Ran]


def client_of(target: str) -> Client:
    def run(*arguments: str) -> Ran:
        command = [sys.executable, str(ROOT / "examples" / "client.py"), "--target", target, *arguments]
        quiet = {**os.environ, "GRPC_VERBOSITY": "NONE"}  # gRPC's own log
        return subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT, check=False, env=quiet, umask=0o022
        )

    return run


def fake_proxy(*arguments: str) -> Iterator[Client]:
    """A client of a gRPC proxy that answers with what the session has been asked before."""
    program = [sys.executable, str(ROOT / "restful_proxy" / "tests" / "fake_proxy.py"), *arguments]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        yield client_of(f"127.0.0.1:{int(proxy.stdout.readline())}")
        assert proxy.stdin is not None
        proxy.stdin.close()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    yield from fake_proxy()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Client]:
    """Of a proxy that wants the key "k-canary"."""
    yield from fake_proxy("--key", "k-canary")


def failed(ran: Ran) -> str:
    """The one line that it failed with."""
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("stream", [["--stream"], []])
def test_with_a_cookie_jar_the_second_request_knows_the_first(
    client: Client, tmp_path: Path, stream: list[str]
) -> None:
    jar = str(tmp_path / "cookies.txt")
    first = client(*stream, "--cookie-jar", jar, "--prompt", "What is your name?")
    assert (first.returncode, first.stdout, first.stderr) == (0, "before: nothing\n", "")
    second = client(*stream, "--cookie-jar", jar, "--prompt", "Do you remember my previous question?")
    assert second.stdout == "before: What is your name?\n"


def test_without_a_jar_each_request_stands_alone(client: Client) -> None:
    assert [client("--prompt", "one").stdout for _ in range(2)] == ["before: nothing\n"] * 2


def test_the_jar_is_one_that_curl_can_use_and_no_other_can_read(client: Client, tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    client("--cookie-jar", str(jar), "--prompt", "one")
    assert jar.stat().st_mode & 0o077 == 0
    lines = [line.split("\t") for line in jar.read_text(encoding="utf-8").splitlines() if "\t" in line]
    assert {(line[0], line[5]) for line in lines} == {
        ("127.0.0.1", "LlmServiceOwner"),
        ("127.0.0.1", "LlmServiceStickiness"),
    }


def test_a_jar_that_curl_has_written_is_read(client: Client, tmp_path: Path) -> None:
    ours, curls = tmp_path / "ours.txt", tmp_path / "curls.txt"
    client("--cookie-jar", str(ours), "--prompt", "one")
    cookies = [f"#HttpOnly_{line}" for line in ours.read_text(encoding="utf-8").splitlines() if "\t" in line]
    head = "# Netscape HTTP Cookie File\n# https://curl.se/docs/http-cookies.html\n\n"
    curls.write_text(head + "\n".join(cookies) + "\n", encoding="utf-8")
    assert client("--cookie-jar", str(curls), "--prompt", "two").stdout == "before: one\n"


def test_a_refusal_is_one_line_and_its_cookies_are_kept(client: Client, tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    line = failed(client("--stream", "--cookie-jar", str(jar), "--prompt", "refuse me"))
    assert line == "error: RESOURCE_EXHAUSTED: this key may ask 2 times a minute"
    assert "LlmServiceOwner" in jar.read_text(encoding="utf-8")


def test_a_key_comes_from_a_file_and_is_never_shown(guarded: Client, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k-canary\n", encoding="utf-8")
    assert guarded("--api-key-file", str(file), "--prompt", "one").returncode == 0
    assert "UNAUTHENTICATED" in failed(guarded("--prompt", "one"))
    file.write_text("k-canary λ\n", encoding="utf-8")
    line = failed(guarded("--api-key-file", str(file), "--prompt", "one"))
    assert "--api-key: a secret must be printable ASCII" in line
    assert "canary" not in line


def test_a_jar_that_is_none_is_one_line(client: Client, tmp_path: Path) -> None:
    jar = tmp_path / "cookies.txt"
    for content in (b"no jar", b"# Netscape HTTP Cookie File\n\xff"):
        jar.write_bytes(content)
        assert "cookie" in failed(client("--cookie-jar", str(jar), "--prompt", "one"))


def test_with_tls_it_trusts_whom_it_is_told_to(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    blobs = {"ca": ca.cert_pem, "other": other.cert_pem, "cert": leaf.cert_chain_pems[0], "key": leaf.private_key_pem}
    paths = {name: str(tmp_path / name) for name in blobs}
    for name, blob in blobs.items():
        blob.write_to_path(paths[name])
    jar = str(tmp_path / "cookies.txt")
    with contextlib.contextmanager(fake_proxy)("--tls", paths["cert"], paths["key"]) as client:
        for says in ("nothing", "one"):
            ran = client("--tls", "--ca", paths["ca"], "--cookie-jar", jar, "--prompt", "one")
            assert ran.stdout == f"before: {says}\n"
        assert "UNAVAILABLE" in failed(client("--tls", "--ca", paths["other"], "--prompt", "one"))


def test_nobody_there_is_one_line() -> None:
    target = f"127.0.0.1:{free_ports().proxy}"
    assert failed(client_of(target)("--prompt", "one")).startswith("error: UNAVAILABLE: ")
