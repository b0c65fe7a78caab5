from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lambdalm.errors import LlmError
from lambdalm.listen import GuardedListen, Listen, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert is_loopback(host)
    assert Listen(host, 80).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.7", "example.org", "localhost.org", ""])
def test_listening_for_other_machines_must_be_meant(host: str) -> None:
    with pytest.raises(ValueError, match="allow_public"):
        Listen(host, 80)
    assert Listen(host, 80, allow_public=True).host == host


def test_a_config_says_the_same_at_its_place() -> None:
    with pytest.raises(msgspec.ValidationError, match="allow_public"):
        msgspec.convert({"host": "0.0.0.0", "port": 80}, Listen)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_has_16_bits(port: int) -> None:
    with pytest.raises(msgspec.ValidationError, match="port"):
        msgspec.convert({"host": "127.0.0.1", "port": port}, Listen)


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert Listen("::1", 80).address == "[::1]:80"
    assert Listen("127.0.0.1", 80).address == "127.0.0.1:80"


def test_with_a_token_a_server_may_listen_anywhere(tmp_path: Path) -> None:
    assert GuardedListen("0.0.0.0", 80, token="t").secret() == "t"
    file = tmp_path / "token"
    file.write_text("t2\nmore\n")
    assert GuardedListen("0.0.0.0", 80, token_file=str(file)).secret() == "t2"
    assert GuardedListen("127.0.0.1", 80).secret() is None
    with pytest.raises(ValueError, match="allow_public"):
        GuardedListen("0.0.0.0", 80)


def test_a_token_that_cannot_be_had_is_an_error_that_names_the_key() -> None:
    with pytest.raises(LlmError, match="token_file"):
        GuardedListen("127.0.0.1", 80, token_file="no/such/file").secret()
