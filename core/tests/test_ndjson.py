from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm.errors import Code, LlmError
from lambdalm.ndjson import Decoder

from . import strategies


def read(*chunks: bytes, limit: int = 2**20) -> list[bytes]:
    decoder = Decoder(limit)
    return [*(line for chunk in chunks for line in decoder.feed(chunk)), *decoder.close()]


def test_a_line_is_given_as_soon_as_it_ends() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b'{"a"')) == []
    assert list(decoder.feed(b': 1}\n{"b')) == [b'{"a": 1}']
    assert list(decoder.feed(b'": 2}\n')) == [b'{"b": 2}']


def test_a_crlf_ends_a_line_also_where_it_is_cut() -> None:
    assert read(b"1\r\n2\r", b"\n3\n") == [b"1", b"2", b"3"]


def test_a_cr_inside_a_line_is_part_of_it() -> None:
    assert read(b"1\r2\n") == [b"1\r2"]


def test_empty_lines_are_skipped() -> None:
    assert read(b"\n\r\n1\n\n\r", b"\n2\n", b"", b"\n") == [b"1", b"2"]


def test_a_last_line_without_its_end_is_given_at_the_close() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"1\n2")) == [b"1"]
    assert list(decoder.close()) == [b"2"]
    assert list(decoder.close()) == []


def test_nothing_is_given_at_the_close_where_nothing_is_left() -> None:
    assert read(b"1\n") == [b"1"]
    assert read() == []


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_line_over_the_limit_is_an_error(step: int) -> None:
    stream = b"1\n" + b"x" * 101 + b"\n"
    with pytest.raises(LlmError, match="100 bytes") as caught:
        read(*(stream[at : at + step] for at in range(0, len(stream), step)), limit=100)
    assert caught.value.code is Code.INTERNAL


def test_a_line_that_never_ends_is_not_held_beyond_the_limit() -> None:
    decoder = Decoder(100)
    for _ in range(10):
        assert list(decoder.feed(b"x" * 10)) == []
    with pytest.raises(LlmError):
        list(decoder.feed(b"x"))


def test_what_came_before_a_line_over_the_limit_is_given_first() -> None:
    lines = Decoder(10).feed(b"1\n2\n" + b"x" * 11)
    assert [next(lines), next(lines)] == [b"1", b"2"]
    with pytest.raises(LlmError):
        next(lines)


def test_many_lines_within_the_limit_do_not_add_up_to_it() -> None:
    assert len(read(b"0123456789\n" * 20, *[b"0123456789\n"] * 20, limit=10)) == 40


_soup = st.lists(st.sampled_from([b"1", b"{}", "λ".encode(), b"\xff", b"\r", b"\n", b"\n", b"\r\n"]), max_size=20)


@given(_soup.map(b"".join), strategies.cuts)
def test_however_the_bytes_are_cut_the_lines_are_the_same(stream: bytes, cuts: list[int]) -> None:
    whole = read(stream)
    assert read(*strategies.pieces(stream, cuts)) == whole
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == whole


@given(st.lists(strategies.texts, max_size=5), strategies.cuts)
def test_json_comes_out_as_it_went_in(values: list[str], cuts: list[int]) -> None:
    stream = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
    assert [json.loads(line) for line in read(*strategies.pieces(stream, cuts))] == values
