from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_lambda.providers.think_tags import ThinkTags
from lambdalm.events import ReasoningDelta, StreamEvent, TextDelta, join


def split(*pieces: str) -> list[StreamEvent]:
    tags = ThinkTags()
    deltas: list[StreamEvent] = [delta for piece in pieces for delta in tags.feed(piece)]
    return list(join([*deltas, *tags.close()]))


def test_a_block_at_the_start_is_reasoning_and_the_rest_is_text() -> None:
    assert split("<think>So.</think>Hello!") == [ReasoningDelta("So."), TextDelta("Hello!")]


def test_text_without_a_block_is_text() -> None:
    assert split("Hello", "!") == [TextDelta("Hello!")]


def test_white_space_may_go_before_the_block_and_is_not_lost() -> None:
    assert split("\n <think>So.</think>Hello!") == [ReasoningDelta("\n So."), TextDelta("Hello!")]


def test_a_block_further_on_is_text() -> None:
    assert split("Say <think>so</think>.") == [TextDelta("Say <think>so</think>.")]


def test_a_second_block_is_text() -> None:
    text = "<think>b</think>"
    assert split(f"<think>a</think>{text}") == [ReasoningDelta("a"), TextDelta(text)]


def test_a_block_that_never_closes_is_all_reasoning() -> None:
    assert split("<think>So, ", "what now</thin") == [ReasoningDelta("So, what now</thin")]


def test_the_newlines_after_the_block_are_dropped_and_no_other_white_space() -> None:
    assert split("<think>\na\n</think>", "\n", "\r\n\n", " \nHello\n") == [
        ReasoningDelta("\na\n"),
        TextDelta(" \nHello\n"),
    ]


def test_an_empty_block_is_no_reasoning() -> None:
    assert split("<think></think>\n\nHello") == [TextDelta("Hello")]


def test_a_closing_tag_alone_is_text() -> None:
    assert split("</think>Hello") == [TextDelta("</think>Hello")]


@pytest.mark.parametrize("text", ["<", "<thin", "<thinking>", " \n", " <b>Hello</b>", "<think >a</think >", "<THINK>a"])
def test_what_only_looks_like_the_tag_is_text(text: str) -> None:
    assert split(text) == split(*text) == [TextDelta(text)]


def test_an_inner_tag_is_part_of_the_reasoning() -> None:
    assert split("<think>a<think>b</think>c") == [ReasoningDelta("a<think>b"), TextDelta("c")]


def test_reasoning_and_text_come_out_as_soon_as_they_can_be_told() -> None:
    tags = ThinkTags()
    assert list(tags.feed("<think>")) == []
    assert list(tags.feed("So<")) == [ReasoningDelta("So")]
    assert list(tags.feed("b")) == [ReasoningDelta("<b")]
    assert list(tags.feed("</think>\nHe")) == [TextDelta("He")]
    assert list(tags.feed("llo")) == [TextDelta("llo")]


_text = st.text("<>/think \nλ", max_size=12)
_words = st.sampled_from(["<think>", "</think>", "<", "</", "</thi", "nk>", "\n", "\r\n", " ", "a", "λ"])
_soup = st.lists(_words | _text, max_size=12)


@given(_soup)
def test_however_the_text_is_cut_it_is_split_the_same(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert split(*pieces) == split(text) == split(*text)


@given(_text, _text)
def test_only_tags_and_the_newlines_after_the_block_are_lost(inside: str, after: str) -> None:
    inside = inside.replace("</think>", "")
    found = split(f"<think>{inside}</think>{after}")
    answer = after.lstrip("\n")
    assert found == [*([ReasoningDelta(inside)] if inside else []), *([TextDelta(answer)] if answer else [])]


@given(_soup.map("".join).filter(lambda text: not text.lstrip().startswith("<think>")))
def test_without_a_block_no_character_is_lost(text: str) -> None:
    assert split(text) == ([TextDelta(text)] if text else [])
