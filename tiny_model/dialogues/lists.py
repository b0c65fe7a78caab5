"""Short lists: one to five things of a kind, always the same ones in the same order."""

from __future__ import annotations

from .facts import DAYS, MONTHS
from .grammar import Phrasings
from .sums import WORDS
from .surface import Speaker
from .turn import Turn

KINDS: dict[str, tuple[str, ...]] = {
    "colors": ("red", "blue", "green", "yellow", "orange"),
    "animals": ("cat", "dog", "horse", "cow", "sheep"),
    "fruits": ("apple", "banana", "pear", "cherry", "lemon"),
    "vegetables": ("carrot", "potato", "onion", "pea", "bean"),
    "countries": ("France", "Japan", "Brazil", "Egypt", "Canada"),
    "capitals": ("Paris", "Tokyo", "Cairo", "Ottawa", "Rome"),
    "days": DAYS[:5],
    "months": MONTHS[:5],
    "planets": ("Mercury", "Venus", "Earth", "Mars", "Jupiter"),
    "numbers": ("one", "two", "three", "four", "five"),
    "birds": ("crow", "duck", "eagle", "owl", "swan"),
    "seasons": ("spring", "summer", "autumn", "winter"),
}
SINGULAR = {"countries": "country", "cherries": "cherry"}
ALSO = {"colors": ("colors", "colours"), "fruits": ("fruits", "kinds of fruit"), "days": ("days", "days of the week"),
        "months": ("months", "months of the year"), "capitals": ("capitals", "capital cities")}  # fmt: skip
FULL = {
    "days of the week": f"The days of the week are {', '.join(DAYS[:-1])} and {DAYS[-1]}.",
    "months of the year": f"The months of the year are {', '.join(MONTHS[:-1])} and {MONTHS[-1]}.",
}

SOME = Phrasings(
    """
    !Name {n} {kind}
    !Name {n} {kind}.
    (list|give me|tell me|show me|say|write|write down|mention|think of|enumerate) {n} {kind}
    (can you|could you|will you|would you) (name|list|give me|tell me|say) {n} {kind}?
    (what are|which are|what're) {n} {kind}?
    (I need|I want|I would like|I'd like|let me have|let me hear) {n} {kind}
    (name|list|give me|tell me) {n} (different|nice|random|well-known|common|examples of) {kind}
    (do you know|what about|how about) {n} {kind}?
    a list of {n} {kind}
    (make|write|give me|create|show me) a (short |)list of {n} {kind}
    {n} {kind}
    (pick|choose|suggest|find) {n} {kind} (for me|)
    (please|now|next) (name|list|give) {n} {kind}
    {n} (examples of|names of) {kind}
    """
)
ANY = Phrasings(
    """
    !Name some {kind}
    (list|give me|tell me|show me|say|name|mention) (some|a few|several) {kind}
    (can you|could you) (name|list|give me|tell me) (some|a few) {kind}?
    (what|which) {kind} (do you know|can you name|are there)?
    (do you know|I need|I want) (any|some|a few) {kind}
    (make|write|give me) a (short |)list of {kind}
    """
)
ALL = Phrasings(
    """
    !What are the {kind}?
    (list|name|tell me|give me|show me|say) (all |)the {kind}
    (what|which) are (all |)the {kind}?
    (can you|could you) (list|name|tell me|say) (all |)the {kind}?
    (list|name|say) all {kind}
    all (the |){kind}
    """
)


def listed(n: int, kind: str) -> str:
    """The answer to "name n things of a kind"."""
    items = KINDS[kind][:n]
    if n == 1:
        return f"One {SINGULAR.get(kind, kind[:-1])} is {items[0]}."
    return f"{WORDS[n].capitalize()} {kind} are {', '.join(items[:-1])} and {items[-1]}."


def list_(say: Speaker) -> Turn:
    """A request for a short list."""
    draw = say.rng.random()
    if draw < 0.1:
        kind = say.rng.choice(list(FULL))
        return Turn(say.say(ALL).fill(kind=kind), FULL[kind], "lists")
    kind = say.rng.choice(list(KINDS))
    typed = say.rng.choice(ALSO.get(kind, (kind,)))
    if draw < 0.25:
        return Turn(say.say(ANY).fill(kind=typed), listed(3, kind), "lists")
    n = say.rng.randint(1, len(KINDS[kind]))
    number = WORDS[n] if say.rng.random() < 0.6 else str(n)
    if n == 1:
        typed = SINGULAR.get(kind, kind[:-1])
        article = "an" if typed[0] in "aeiou" else "a"
        number = say.rng.choice(("one", article, "1"))
    return Turn(say.say(SOME).fill(n=number, kind=typed), listed(n, kind), "lists")
