"""Counting up and down between 0 and 30, and the neighbours of a number."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

from .grammar import Phrasings
from .surface import Speaker
from .turn import Turn

TOP = 30
LONGEST = 20

UP_TO = Phrasings(
    """
    !Count to {b}
    count (up|) to {b} (for me|please|now|)
    (can you|could you|will you|would you) count (up |)to {b}?
    (please|now|let's|let us) count (up |)to {b}
    (say|list|write|give me|tell me|show me) the numbers (up to|to|until) {b}
    (start counting|count for me|count numbers|counting) (up |)to {b}
    (I want you to|I'd like you to|try to) count (up |)to {b}
    (write|list|say|show) (all |)(numbers|the numbers|integers) from (1|one) to {b}
    +(could|can|would|will|may) (you|I ask you to|you please|you now|we) count (up |)to {b}( for me| please| now|)?
    +(go|go on|go ahead) (and |)count (up |)to {b}
    +(count|say|do) (the |)(numbers |)(one|1) (to|through|till|until|up to) {b}
    """
)
RANGE = Phrasings(
    """
    !Count from {a} to {b}
    count from {a} (up to|until|through|till|to) {b}
    (can you|could you|will you|would you) count from {a} (up to|to|until) {b}?
    (say|list|write|give me|tell me|show me) the numbers (from {a} to|between {a} and|from {a} until) {b}
    (which|what) numbers (are|lie|come) (between {a} and|from {a} to) {b}?
    (start|begin) (counting |)(at|from|with) {a} (and stop at|and end at|and count to|to) {b}
    (please|now|let's|let us) count from {a} to {b}
    (count|numbers) {a} to {b}
    +(I need|I want|I would like|go ahead,|you should|you must|kindly) (you to |to hear you |)count from {a} (up |)to {b}
    +(go|try|start|begin) (and count|counting|to count|to count up) from {a} (up |)to {b}
    +(count|numbers|say the numbers|counting) (starting at|beginning with|beginning at|starting with|starting from) {a} (and |)(ending at|until|up to|to|ending with) {b}
    +from {a} to {b}, count
    (I want you to|I'd like you to|try to) count from {a} to {b}
    """
)
DOWN = Phrasings(
    """
    !Count down from {a}
    count (down|backwards|backward) from {a} (to 1|to one|please|for me|)
    (can you|could you|will you|would you) count (down|backwards) from {a}?
    (do|give me|start|make|show me) a (countdown|count down) from {a}
    (countdown|count down) (from|starting at|starting from|of) {a}
    (please|now|let's|let us) count (down|backwards) from {a}
    (count in reverse|count the other way) from {a}
    +(kindly|go ahead,|ok,|try to|I want you to|you should) count (down|backwards|backward) (from|starting at) {a}
    +(countdown|count down|count backwards): {a}
    +(backwards|down|in reverse) from {a}, (count|please count)
    """
)
AFTER = Phrasings(
    """
    !What number comes after {a}?
    (which|what) number (comes|is|follows|goes) (after|right after|next after) {a}?
    (what|which) is the (next number|number) (after|following) {a}?
    (what|which) (comes|is) (after|right after|next after) {a}?
    (tell me|say|give me|name) the (next number|number) (after|following) {a}
    (what|which) number follows {a}?
    (after {a} comes|the number after {a}|the number after {a} is)?
    +(which|what) (number |)(does follow|will follow|is following|is next after|comes directly after) {a}?
    +{a} is followed by (which number|what number|what)?
    +(which|what) number do I (say|get|reach) after {a}?
    """
)
BEFORE = Phrasings(
    """
    !What number comes before {a}?
    (which|what) number (comes|is|goes) (before|right before|just before) {a}?
    (what|which) is the (previous number|number) (before|preceding) {a}?
    (what|which) (comes|is) (before|right before|just before) {a}?
    (tell me|say|give me|name) the (previous number|number) (before|preceding) {a}
    (what|which) number precedes {a}?
    (before {a} comes|the number before {a}|the number before {a} is)?
    +(which|what) (number |)(does precede|goes before|was before|comes directly before|stands before|lies before) {a}?
    +{a} is preceded by (which number|what number|what)?
    +(which|what) number do I (say|get|reach) before {a}?
    """
)


def row(a: int, b: int) -> str:
    """The numbers from a to b, up or down, both ends included."""
    step = 1 if a <= b else -1
    return ", ".join(str(n) for n in range(a, b + step, step)) + "."


def count(say: Speaker) -> Turn:
    """A request to count, or for the number next to one."""
    user, answer = _any(say)
    return Turn(user, answer, "counting")


def _any(say: Speaker) -> tuple[str, str]:
    kind = say.rng.random()
    if kind < 0.25:
        b = say.rng.randint(3, LONGEST)
        return say.say(UP_TO).fill(b=str(b)), row(1, b)
    if kind < 0.55:
        a = say.rng.randint(0, TOP - 2)
        b = say.rng.randint(a + 2, min(TOP, a + 12))
        return say.say(RANGE).fill(a=str(a), b=str(b)), row(a, b)
    if kind < 0.7:
        a = say.rng.randint(3, LONGEST)
        return say.say(DOWN).fill(a=str(a)), row(a, 1)
    a = say.rng.randint(1, 98)
    if kind < 0.85:
        return say.say(AFTER).fill(a=str(a)), f"{a + 1} comes after {a}."
    return say.say(BEFORE).fill(a=str(a)), f"{a - 1} comes before {a}."
