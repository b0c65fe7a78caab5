"""The training data: deterministic, right, and without the phrasings and prompts that are for measuring."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from tiny_model import evaluate
from tiny_model.dialogues import memory, mix, refusals, sums
from tiny_model.dialogues.grammar import Phrasings, expand, skeleton, skeletons
from tiny_model.dialogues.surface import CLEAN
from tiny_model.dialogues.turn import Dialogue, Turn

SAMPLE = 20_000


@pytest.fixture(scope="module")
def sample() -> list[Dialogue]:
    return list(itertools.islice(mix.training(1), SAMPLE))


@pytest.fixture(scope="module")
def turns(sample: list[Dialogue]) -> list[Turn]:
    return [turn for dialogue in sample for turn in dialogue]


def test_the_same_seed_gives_the_same_dialogues_and_another_seed_gives_others(sample: list[Dialogue]) -> None:
    assert list(itertools.islice(mix.training(1), 500)) == sample[:500]
    assert list(itertools.islice(mix.training(2), 500)) != sample[:500]


def test_evaluation_asks_the_same_prompts_every_time() -> None:
    for category in mix.CATEGORIES:
        first, second = (list(itertools.islice(mix.evaluation(category, 7), 50)) for _ in range(2))
        assert first == second


def test_a_template_expands_to_all_its_alternatives() -> None:
    assert expand("(hi|hello) (there|), {x}") == [
        "hi there, {x}",
        "hi , {x}",
        "hello there, {x}",
        "hello , {x}",
    ]


def test_each_family_holds_phrasings_out_and_no_phrasing_is_on_both_sides() -> None:
    families = [p for p in mix.all_phrasings() if len(p.train) >= 5]
    assert len(families) > 40
    for phrasings in families:
        assert phrasings.held
        assert not skeletons(phrasings.held) & skeletons(phrasings.train)


def test_pinned_phrasings_are_always_trained_on_and_added_ones_yield_to_held_out_ones() -> None:
    block = "!what is it\n" + "\n".join(f"line {i}" for i in range(16))
    plain = Phrasings(block)
    held = skeletons(plain.held)
    widened = Phrasings(block + "\n+" + "\n+".join(f"line {i}" for i in range(16)))
    assert ["what is it"] in plain.train
    assert len(held) == 2
    assert skeletons(widened.held) == held


def test_held_out_phrasings_never_appear_in_training(turns: list[Turn]) -> None:
    fixed = {text for text in mix.HELD_OUT if "{" not in text}
    assert len(fixed) > 500
    assert not fixed & {skeleton(turn.user) for turn in turns}


def test_the_prompts_written_by_hand_are_never_trained_on(turns: list[Turn]) -> None:
    prompts = evaluate.hand_written()
    assert len(set(prompts)) == 100
    assert not {skeleton(prompt) for prompt in prompts} - {""} & {skeleton(turn.user) for turn in turns} - {""}


def test_names_for_evaluation_are_not_in_training(turns: list[Turn]) -> None:
    words = {word for turn in turns if turn.assistant.startswith("Your name is") for word in turn.assistant.split()}
    assert not {f"{name}." for name in memory.HIDDEN_NAMES} & words


def test_sums_are_right(turns: list[Turn]) -> None:
    seen = 0
    for turn in turns:
        if found := re.match(r"(\d+) ([+×-]) (\d+) = .*?(-?\d+)\.$", turn.assistant):
            a, sign, b, result = int(found[1]), found[2], int(found[3]), int(found[4])
            assert result == {"+": a + b, "-": a - b, "×": a * b}[sign]
            seen += 1
    assert seen > 1000


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ((27, "+", 35), "27 + 35 = 50 + 12 = 62."),
        ((7, "+", 5), "7 + 5 = 12."),
        ((62, "-", 35), "62 - 35 = 32 - 5 = 27."),
        ((35, "-", 62), "35 - 62 = -(32 - 5) = -27."),
        ((3, "-", 8), "3 - 8 = -(8 - 3) = -5."),
        ((12, "×", 11), "12 × 11 = 132."),
    ],
)
def test_a_sum_is_worked_out_in_steps(asked: tuple[int, str, int], answer: str) -> None:
    assert sums.worked(*asked) == answer


def test_kept_out_pairs_of_numbers_are_never_trained_on(turns: list[Turn]) -> None:
    for turn in turns:
        if found := re.match(r"(\d+) ([+-]) (\d+) = ", turn.assistant):
            assert not sums.kept_out(int(found[1]), found[2], int(found[3]))


def test_a_recalled_value_is_the_one_told_last(sample: list[Dialogue]) -> None:
    recalled = 0
    for dialogue in sample:
        name = None
        for turn in dialogue:
            if found := re.match(r"Nice to meet you, (.+)!$", turn.assistant):
                name = found[1]
            elif turn.assistant.startswith("Your name is ") and turn.category == memory.CATEGORY:
                assert turn.assistant == f"Your name is {name}."
                recalled += 1
    assert recalled > 500


def test_no_prompt_is_both_refused_and_answered(turns: list[Turn]) -> None:
    alone = [turn for turn in turns if turn.category not in ("memory", "follow-ups")]
    refused = {skeleton(turn.user) for turn in alone if turn.assistant == refusals.REFUSAL} - {""}
    answered = {skeleton(turn.user) for turn in alone if turn.assistant != refusals.REFUSAL}
    assert len(refused & answered) / len(refused) < 0.005, sorted(refused & answered)[:20]


def test_without_noise_a_phrasing_is_typed_as_it_stands() -> None:
    say = mix.speaker(random.Random(1), noise=CLEAN)
    assert say.say(Phrasings("!what is {x}?")).fill(x="λλM") == "What is λλM?"
