"""Sums: a + b up to 99 + 99, a - b with two-digit numbers, a × b up to 12 × 12, worked out on the way to the answer.

`27 + 35 = 50 + 12 = 62.` A network this small cannot carry in its head; the scratch step lets it write the tens and
the ones down first. One pair of numbers in ten, chosen by its SHA-256, is kept out of training.
"""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

import hashlib

from .grammar import Phrasings
from .surface import Speaker, Surface
from .turn import Turn

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
SIGNS = {
    "+": ("+", "+", "+", "+", "plus", "and"),
    "-": ("-", "-", "-", "-", "minus", "−"),
    "×": ("×", "x", "*", "*", "times", "multiplied by"),
}

ASK = Phrasings(
    """
    !What is {sum}?
    !{sum}
    !{sum} = ?
    !{sum}=
    (what's|whats|what is|how much is|what does|calculate|compute|work out|solve|find|evaluate) {sum}?
    (calculate|compute|work out|solve|add up|figure out|do) {sum} (for me|quickly|please|)
    (tell me|give me|say) (what {sum} is|{sum}|the result of {sum}|the answer to {sum}|how much {sum} is)
    (what is|what's) the (result|answer|value|outcome) (of|to|for) {sum}?
    (how much|what) (does {sum} make|is {sum} equal to|does {sum} give|do you get for {sum}|makes {sum})?
    {sum} (is|equals|makes|is equal to|is what|equals what|makes what|gives)?
    (can you|could you) (calculate|compute|solve|do|add|work out) {sum}?
    (do you know|any idea) (what {sum} is|how much {sum} is|how much is {sum})?
    (I need|I want|help me with|let us do|now do|try|next) {sum}
    (a sum|math|maths|sum|question|a small sum|arithmetic): {sum}
    (let me know|I wonder|I want to know) (what {sum} is|how much {sum} is)
    if I (compute|calculate|take|have) {sum}, what do I get?
    what number is {sum}?
    {sum}, (what is it|how much is that|what's that|what does that make)?
    +{sum} (is how much|makes how much|comes to|yields|is the same as|adds up to|results in|amounts to|=)( what|)?
    +(what|how much) is it, {sum}?
    +{sum}: (what is that|result|how much|what|answer|solution)?
    +(so|and) {sum} (is|makes|gives|would be)?
    """
)
WORDED = {
    "+": Phrasings(
        """
        (what is|what's|calculate|find|tell me) the sum of {a} and {b}?
        add {a} (and|to) {b}
        (what do you get|what is it|what happens) (if|when) (you|I) add {a} (and|to) {b}?
        (what is|how much is) {a} added to {b}?
        +(if|when) (you|I|we) add {a} (and|to) {b}, what (is it|do I get|do you get|comes out|is the result)?
        +(what|how much) (is|do I get from|results from) adding {a} (and|to) {b}?
        +{a} and {b} (added|together|in total|added together|in sum) (is|are|make|makes)?
        (what is|what's) the total of {a} and {b}?
        I have {a} apples and get {b} more, how many (do I have|are there|apples do I have)?
        """
    ),
    "-": Phrasings(
        """
        (what is|what's|calculate|find|tell me) the difference (between|of) {a} and {b}?
        (subtract|take|take away) {b} from {a}
        (what do you get|what is it|what happens) (if|when) (you|I) (subtract|take) {b} from {a}?
        (what is|how much is) {a} (less|take away|take) {b}?
        +{a} (take away|less|reduced by|decreased by) {b}?
        +(how much|what) (is left|remains) (of|from) {a} (if|when) I (take|take away|remove) {b}?
        +(what|how much) (is|do I get) {a} (reduced by|decreased by|without) {b}?
        I have {a} apples and (eat|lose|give away) {b}, how many (do I have|are left|remain)?
        """
    ),
    "×": Phrasings(
        """
        (what is|what's|calculate|find|tell me) the product of {a} and {b}?
        multiply {a} (by|and|with) {b}
        (what do you get|what is it|what happens) (if|when) (you|I) multiply {a} (by|with) {b}?
        (what is|how much is) {a} multiplied (by|with) {b}?
        +{a} multiplied (by|with) {b}( is|)?
        +(calculate|find|tell me) {a} (multiplied by|multiplied with) {b}
        +(how much|what) (is|are|makes) {a} (times|groups of|rows of) {b}?
        +{a} times {b}( please| is| makes|)?
        """
    ),
}
NEXT = Phrasings(
    """
    !and {sum}?
    !{sum}?
    (and|what about|how about|now|then|next) {sum}?
    (and|now|ok now|okay and) (what is|what's|how much is) {sum}?
    (and|ok,|now) (then|also) {sum}
    (then|next|now do|now try|also do|and now) {sum}
    +(do|try|also|also try|now take|next do|now compute|also compute) {sum}( too| now| as well| next| please|)
    +(and|also|then|next|now|plus) {sum}( too| now| as well|)?
    """,
    bare=True,
)


def worked(a: int, sign: str, b: int) -> str:
    """The answer to a sum, with its scratch step."""
    return f"{a} {sign} {b} = {_steps(a, sign, b)}."


def _steps(a: int, sign: str, b: int) -> str:
    if sign == "×":
        return str(a * b)
    if sign == "+":
        if a < 10 and b < 10:
            return str(a + b)
        return f"{a // 10 * 10 + b // 10 * 10} + {a % 10 + b % 10} = {a + b}"
    if a < b:
        return f"-({b} - {a}) = -{b - a}" if b < 10 else f"-({_steps_down(b, a)}) = -{b - a}"
    return str(a - b) if a < 10 else _steps_down(a, b) + f" = {a - b}" if b > 9 else str(a - b)


def _steps_down(a: int, b: int) -> str:
    """Tens first, then ones: `62 - 35` is worked as `32 - 5`."""
    return f"{a - b // 10 * 10} - {b % 10}"


def kept_out(a: int, sign: str, b: int) -> bool:
    """Whether training never sees this pair."""
    return (
        sign != "×"
        and a > 9
        and b > 9
        and (a, b) != (27, 35)
        and hashlib.sha256(f"{a}{sign}{b}".encode()).digest()[0] < 26
    )


def numbers(say: Speaker) -> tuple[int, str, int]:
    """A sum that the model is meant to know; evaluation asks kept-out pairs half of the time."""
    unseen = say.held and say.rng.random() < 0.5
    while True:
        sign = say.rng.choices("+-×", (5, 6, 3))[0]
        top = 12 if sign == "×" else 99 if say.rng.random() < 0.8 else 20
        a, b = say.rng.randint(0, top), say.rng.randint(0, top)
        if sign == "-" and a < b and say.rng.random() < 0.85:
            a, b = b, a
        if kept_out(a, sign, b) == unseen or (unseen and sign == "×"):
            return a, sign, b


def sum_(say: Speaker) -> Turn:
    """A sum, in figures or in words."""
    a, sign, b = numbers(say)
    worded = say.rng.random() < 0.15 and not (sign == "-" and a < b)
    surface = say.say(WORDED[sign] if worded else ASK)
    return _turn(say, surface, (a, sign, b), "sums")


def next_sum(say: Speaker) -> Turn:
    """A further sum after a sum: "and 3 + 4?"."""
    return _turn(say, say.say(NEXT), numbers(say), "follow-ups")


def _turn(say: Speaker, surface: Surface, asked: tuple[int, str, int], category: str) -> Turn:
    a, sign, b = asked
    spelled = max(a, b) <= 20 and say.rng.random() < 0.3
    left, right = (WORDS[a], WORDS[b]) if spelled else (str(a), str(b))
    mark = say.rng.choice(SIGNS[sign][4:] if spelled else SIGNS[sign])
    gap = "" if not mark.isalpha() and " " not in mark and say.rng.random() < 0.3 else " "
    if mark == "x":
        gap = " "
    user = surface.fill(a=left, b=right, sum=f"{left}{gap}{mark}{gap}{right}")
    return Turn(user, worked(a, sign, b), category)
