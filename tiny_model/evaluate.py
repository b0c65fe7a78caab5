"""Measures a GGUF in the real engine: exact answers to held-out phrasings, and refusals of prompts written by hand.

    python -m tiny_model.evaluate --gguf PATH

Exits with 1 when a goal is missed. Needs no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .dialogues import mix
from .dialogues.refusals import OPENING
from .dialogues.turn import Dialogue
from .engine import Engine

HAND_WRITTEN = Path(__file__).with_name("out_of_domain.txt")
HAND_WRITTEN_KNOWN = Path(__file__).with_name("in_domain.txt")
PER_CATEGORY = 200
SEED = 7
OVERALL, EACH, TWO_TURNS, REFUSED = 0.95, 0.90, 0.95, 0.90
BY_HAND = "out of domain, by hand"
KNOWN_BY_HAND = "in domain, by hand"
FIVE = {
    "Who are you?": "I am the λλM demo, a tiny language model",
    "What is λλM?": "λλM (lambda-lambda-M) is a pipeline that carries your prompt to a large language model",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is 27 + 35?": "27 + 35 = 50 + 12 = 62.",
    "Name three colors.": "Three colors are red, blue and green.",
}


@dataclass(frozen=True)
class Miss:
    """A wrong answer."""

    dialogue: Dialogue
    said: str


@dataclass(frozen=True)
class Score:
    """How many prompts of a category were answered right."""

    category: str
    right: int
    asked: int
    misses: tuple[Miss, ...] = ()

    @property
    def share(self) -> float:
        return self.right / self.asked


def hand_written() -> list[str]:
    """The out-of-domain prompts that a person wrote; training never sees them."""
    return _lines(HAND_WRITTEN)


def hand_written_known() -> list[tuple[str, str]]:
    """Hand-written prompts that the model should answer, with how the answer must begin."""
    pairs = (line.split(" => ") for line in _lines(HAND_WRITTEN_KNOWN))
    return [(prompt, start) for prompt, start in pairs]


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def distinct(dialogues: Iterable[Dialogue], count: int) -> list[Dialogue]:
    """The first `count` different dialogues; fewer where a small family has no more."""
    found: dict[Dialogue, None] = {}
    for dialogue in itertools.islice(dialogues, 40 * count):
        found.setdefault(dialogue)
        if len(found) == count:
            break
    return list(found)


def score(engine: Engine, category: str, count: int) -> Score:
    """Ask held-out prompts of one category; right means: the same text."""
    dialogues = distinct(mix.evaluation(category, SEED), count)
    misses = [Miss(d, said) for d in dialogues if (said := engine.answer(d)) != d[-1].assistant]
    return Score(category, len(dialogues) - len(misses), len(dialogues), tuple(misses))


def score_by_hand(engine: Engine) -> tuple[list[Score], list[str]]:
    """Ask the hand-written prompts, of both kinds; also the wrong answers, as lines to print."""
    strange, known = hand_written(), hand_written_known()
    wrong = _wrong(engine, [(prompt, OPENING) for prompt in strange])
    wrong_known = _wrong(engine, known)
    scores = [
        Score(KNOWN_BY_HAND, len(known) - len(wrong_known), len(known)),
        Score(BY_HAND, len(strange) - len(wrong), len(strange)),
    ]
    lines = [f"  {prompt!r} → {said!r}" for prompt, said in wrong_known + wrong]
    return scores, lines


def _wrong(engine: Engine, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The prompts whose answer does not begin as wanted, with what was said."""
    asked = [(prompt, start, engine.chat([{"role": "user", "content": prompt}]).text) for prompt, start in wanted]
    return [(prompt, said) for prompt, start, said in asked if not said.startswith(start)]


def missed_goals(exact: list[Score], by_hand: list[Score]) -> list[str]:
    """The goals that the scores miss, in words."""
    goals = [(s, EACH) for s in exact] + [(total(exact), OVERALL)]
    goals += [(s, TWO_TURNS) for s in exact if s.category == "memory, two turns"]
    goals += [(s, REFUSED) for s in by_hand if s.category == BY_HAND]
    return [f"{s.category}: {s.share:.1%} < {goal:.0%}" for s, goal in goals if s.share < goal]


def total(scores: list[Score]) -> Score:
    """All categories together."""
    return Score("**overall** (exact)", sum(s.right for s in scores), sum(s.asked for s in scores))


def table(exact: list[Score], by_hand: list[Score]) -> str:
    """The scores as a Markdown table."""
    lines = [f"| {s.category} | {s.right} / {s.asked} | {s.share:.1%} |" for s in [*exact, total(exact), *by_hand]]
    return "\n".join(["| category | right | share |", "|---|---|---|", *lines])


def speed(engine: Engine) -> float:
    """Tokens per second of long answers, the best of five."""
    prompt = [{"role": "user", "content": "Count to 20"}]
    return max(engine.chat(prompt).tokens_per_second or 0.0 for _ in range(5))


def report(gguf: Path, *, count: int = PER_CATEGORY, misses: int = 0) -> int:
    """Measure, print the table, the speed and the missed goals; 0 when all goals are reached."""
    with Engine(gguf) as engine:
        exact = [score(engine, category, count) for category in mix.CATEGORIES]
        by_hand, lines = score_by_hand(engine)
        wrong = _wrong(engine, list(FIVE.items()))
        rate = speed(engine)
    print(table(exact, by_hand))
    size = gguf.stat().st_size / 1e6
    print(f"\n{gguf.name}: {size:.2f} MB; {rate:.0f} tokens/s with one thread; SHA-256 {_digest(gguf)}")
    print("wrong answers to the hand-written prompts:", *lines, sep="\n")
    for s in exact:
        for miss in s.misses[:misses]:
            asked = " // ".join(turn.user for turn in miss.dialogue)
            print(f"  {s.category}: {asked!r}\n      → {miss.said!r}\n      ≠ {miss.dialogue[-1].assistant!r}")
    failed = missed_goals(exact, by_hand) + [f"one of the five prompts: {p!r} → {said!r}" for p, said in wrong]
    for line in failed:
        print(f"MISSED: {line}")
    return 1 if failed else 0


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tiny_model.evaluate", description="Measure the demo model.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--count", type=int, default=PER_CATEGORY, help="prompts per category (default: 200)")
    parser.add_argument("--misses", type=int, default=0, help="wrong answers to show per category (default: 0)")
    args = parser.parse_args()
    return report(args.gguf, count=args.count, misses=args.misses)


if __name__ == "__main__":
    raise SystemExit(main())
