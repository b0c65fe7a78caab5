from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdalm import sse
from lambdalm.errors import Code, LlmError
from lambdalm.sse import Decoder, Message

from . import strategies


def read(*chunks: bytes, limit: int = 2**20) -> list[Message]:
    decoder = Decoder(limit)
    return [message for chunk in chunks for message in decoder.feed(chunk)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_in_lf_cr_or_crlf(end: bytes) -> None:
    stream = end.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])
    assert read(stream) == [Message("a", "1"), Message("message", "2")]


def test_line_ends_may_be_mixed() -> None:
    assert read(b"event: a\rdata: 1\r\ndata: 2\n\rdata: 3\r\n\n") == [Message("a", "1\n2"), Message("message", "3")]


def test_a_crlf_cut_between_two_chunks_is_one_line_end() -> None:
    assert read(b"data: 1\r", b"", b"\ndata: 2\r", b"\n\r", b"\n") == [Message("message", "1\n2")]


def test_an_event_that_a_cr_ends_does_not_wait_for_the_next_byte() -> None:
    assert read(b"data: 1\r\r") == [Message("message", "1")]


def test_several_data_lines_are_joined_by_lf() -> None:
    # The first of the examples in the standard.
    assert read(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [Message("message", "YHOO\n+2\n10")]


def test_comments_are_passed_over() -> None:
    assert read(b": test stream\n\ndata: 1\n:\n: data: 2\n\n") == [Message("message", "1")]


def test_a_field_without_a_colon_has_an_empty_value() -> None:
    # The standard's example: two events, one with an empty text and one with a line end.
    assert read(b"data\n\ndata\ndata\n\ndata:") == [Message("message", ""), Message("message", "\n")]


def test_one_space_after_the_colon_is_not_part_of_the_value() -> None:
    assert read(b"data:test\n\ndata: test\n\ndata:  test \n\n") == [
        Message("message", "test"),
        Message("message", "test"),
        Message("message", " test "),
    ]


def test_a_message_without_data_is_dropped_and_its_name_is_not_kept() -> None:
    assert read(b"event: a\n\ndata: 1\n\n") == [Message("message", "1")]


def test_other_fields_are_passed_over() -> None:
    assert read(b"id: 7\nretry: 100\ndatum: 3\n data: 4\nData: 5\ndata: 1\n\n") == [Message("message", "1")]


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert read(b"\xef", b"\xbb", b"\xbf", b"data: 1\n\n") == [Message("message", "1")]


def test_a_byte_order_mark_elsewhere_is_text() -> None:
    assert read("data: \ufeff1\n\n\ufeffdata: 2\n\n".encode()) == [Message("message", "\ufeff1")]


def test_a_message_without_its_blank_line_is_not_given() -> None:
    assert read(b"data: 1\n\ndata: 2\n") == [Message("message", "1")]


_lines = st.sampled_from(
    [b"data: x", b"data:y", b"data", b"event: a", b"", b"", b": c", b"\xef\xbb\xbfdata: z", "λ\x00".encode()]
)
_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
_soup = st.lists(st.tuples(_lines, _ends).map(b"".join), max_size=12).map(b"".join)


@given(_soup, strategies.cuts)
def test_however_the_bytes_are_cut_the_messages_are_the_same(stream: bytes, cuts: list[int]) -> None:
    whole = read(stream)
    assert read(*strategies.pieces(stream, cuts)) == whole
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == whole


@given(st.lists(st.tuples(st.sampled_from(["a", "text_delta"]), strategies.texts), max_size=5), strategies.cuts)
def test_what_encode_writes_is_read_back(messages: list[tuple[str, str]], cuts: list[int]) -> None:
    one_line = [(event, text.replace("\n", "").replace("\r", "")) for event, text in messages]
    stream = b"".join(sse.encode(event, text.encode()) for event, text in one_line)
    assert read(*strategies.pieces(stream, cuts)) == [Message(*message) for message in one_line]


_not_utf8 = [b"data: \xff\n\n", b"data: \xed\xa0\x80\n\n", b"data: \xe2\x82\n\n", b"\xc3: x\n", b": \x80\n"]


@pytest.mark.parametrize("bad", _not_utf8)
def test_bytes_that_are_not_utf_8_are_an_error(bad: bytes) -> None:
    with pytest.raises(LlmError) as caught:
        read(bad)
    assert caught.value.code is Code.INTERNAL


def test_a_character_cut_in_two_is_whole_again() -> None:
    assert read(b"data: \xce", b"\xbb\n\n") == [Message("message", "λ")]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_message_over_the_limit_is_an_error(step: int) -> None:
    stream = b"data: 1\n\n" + b"data: 12345\n" * 20
    with pytest.raises(LlmError, match="100 bytes") as caught:
        read(*(stream[at : at + step] for at in range(0, len(stream), step)), limit=100)
    assert caught.value.code is Code.INTERNAL


def test_a_line_that_never_ends_is_not_held_beyond_the_limit() -> None:
    assert read(*[b"x" * 10] * 10, limit=100) == []
    with pytest.raises(LlmError):
        read(*[b"x" * 10] * 11, limit=100)


def test_messages_within_the_limit_may_come_one_after_another() -> None:
    assert len(read(*[b"data: 0123456789\n\n"] * 100, limit=100)) == 100


def test_many_small_messages_in_one_chunk_are_no_message_over_the_limit() -> None:
    assert len(read(b"data: 0123456789\n\n" * 20, limit=100)) == 20


def test_comments_between_messages_do_not_add_up_to_the_limit() -> None:
    assert read(*[sse.HEARTBEAT] * 100, b"data: 1\n\n", limit=100) == [Message("message", "1")]


def test_what_came_in_the_chunk_of_the_message_before_counts_towards_the_limit() -> None:
    with pytest.raises(LlmError, match="100 bytes"):
        read(b"data: 1\n\ndata: " + b"x" * 80, b"x" * 80 + b"\n\n", limit=100)


BLOCKS = [
    b"event: a\ndata: {}\n\n",
    b"data: {}\n\n",
    b"event: a\n\n",
    b": a comment\n\n",
    b"event: a\ndata: 1\ndata: 2\n\n",
    b"event: a\ndata: 1\nid: 2\n\n",
    b"id: 1\nevent: a\ndata: {}\n\n",
    b"event: \ndata: \n\n",
    b"event:a\ndata: {}\n\n",
    b"event: a\ndata:{}\n\n",
    b"\n\n",
    b"event: \xce\xbb\ndata: \xce\xbb\n\n",
    b"error: x\n\n",
    b"event: a\r\ndata: {}\r\n\r\n",
]


@given(st.lists(st.sampled_from(BLOCKS), max_size=8))
def test_whole_messages_at_once_are_what_they_are_byte_by_byte(blocks: list[bytes]) -> None:
    at_once, by_bytes = Decoder(), Decoder()
    whole = [message for block in blocks for message in at_once.feed(block)]
    joined = list(Decoder().feed(b"".join(blocks)))
    cut = [message for block in blocks for byte in block for message in by_bytes.feed(bytes([byte]))]
    assert whole == joined == cut
