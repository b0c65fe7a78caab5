"""Facts on days, months and colors."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

from collections.abc import Callable

from .grammar import Phrasings
from .surface import Speaker
from .turn import Turn

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip
THINGS = {
    "the sky": "blue", "grass": "green", "snow": "white", "blood": "red", "a banana": "yellow", "coal": "black",
    "a lemon": "yellow", "the sun": "yellow", "a leaf": "green", "milk": "white", "a carrot": "orange",
    "a strawberry": "red", "a tomato": "red", "the night": "black", "the sea": "blue", "chocolate": "brown",
    "an elephant": "gray", "a frog": "green", "an orange": "orange", "a cherry": "red", "salt": "white", "a crow": "black",
    "the ocean": "blue", "a flamingo": "pink", "a cucumber": "green", "a fire truck": "red",
}  # fmt: skip
MIXES = {
    ("red", "blue"): "purple", ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("red", "white"): "pink",
    ("black", "white"): "gray",
}  # fmt: skip
AMOUNTS = {
    ("days", "a week"): "A week has 7 days.",
    ("months", "a year"): "A year has 12 months.",
    ("hours", "a day"): "A day has 24 hours.",
    ("minutes", "an hour"): "An hour has 60 minutes.",
    ("seconds", "a minute"): "A minute has 60 seconds.",
    ("weeks", "a year"): "A year has 52 weeks.",
    ("days", "a year"): "A year has 365 days, or 366 in a leap year.",
    ("letters", "the alphabet"): "The alphabet has 26 letters.",
    ("colors", "a rainbow"): "A rainbow has 7 colors.",
    ("seasons", "a year"): "A year has 4 seasons.",
}  # fmt: skip

AFTER = Phrasings(
    """
    !What {unit} comes after {x}?
    (which|what) (day|{unit}) (comes|is|follows|goes) (after|right after|directly after|just after) {x}?
    (which|what) (day|{unit}) (follows|succeeds) {x}?
    (which|what) is the (next {unit}|{unit}) (after|following) {x}?
    (what|which) (comes|is|goes|follows) (after|next after|right after) {x}?
    (tell me|name|say|give me) the {unit} (after|that follows|that comes after|following) {x}
    (after|right after|following) {x} (comes|is|follows)?
    the {unit} after {x}( is|)?
    (today is|it is|now it is|if it is|if today is) {x}, (what is|what comes|what's) (next|after that)?
    what follows {x}?
    if it is {x} (now|today), what (is|comes) next?
    {x} is (followed by|before) (which|what) {unit}?
    +{x} (comes before|goes before|comes right before|is right before|is just before|precedes) (which|what) {unit}?
    +(which|what) {unit} (does {x} come before|is {x} before|does {x} precede|is {x} followed by)?
    +(by which|by what) {unit} is {x} followed?
    +{x} is followed by( what|)?
    +{x} is (directly|always|immediately|then|usually|right away) followed by (which|what) {unit}?
    +{x} is followed by (which|what) (one|other {unit}|next {unit})?
    +and {x} is followed by (which|what) {unit} then?
    """
)
BEFORE = Phrasings(
    """
    !What {unit} comes before {x}?
    (which|what) (day|{unit}) (comes|is|goes) (before|right before|directly before|just before) {x}?
    (which|what) (day|{unit}) precedes {x}?
    (which|what) is the (previous {unit}|{unit}) (before|preceding) {x}?
    (what|which) (comes|is|goes) (before|right before|just before) {x}?
    (tell me|name|say|give me) the {unit} (before|that precedes|that comes before|preceding) {x}
    (before|right before) {x} (comes|is|was)?
    the {unit} before {x}( is|)?
    (today is|it is|now it is|if it is|if today is) {x}, what (was|came) (before|before that)?
    what precedes {x}?
    {x} (comes after|is after|follows) (which|what) {unit}?
    +(which|what) {unit} (does {x} come after|is {x} after|does {x} follow)?
    +{x} is (directly|always|immediately|) preceded by (which|what)( {unit}| one|)?
    +(the|which|what's the|what is the) (previous|preceding|earlier) {unit} (to|of|before|from) {x}?
    +{x} is preceded by( what| which {unit}|)?
    """
)
NTH = Phrasings(
    """
    !What is the {nth} {unit} of the {whole}?
    (which|what|what's) is the {nth} {unit} (of|in) (the|a) {whole}?
    (which|what) {unit} is the {nth} (one|of the {whole}|in the {whole}|)?
    (name|tell me|say|give me) the {nth} {unit} (of the {whole}|in the {whole}|)
    (the {nth} {unit} of the {whole}|{nth} {unit} of the {whole}|the {nth} {unit})( is|)?
    (which|what) {unit} (comes|is) {nth} (in the {whole}|)?
    (do you know|can you name) the {nth} {unit} (of the {whole}|)?
    what {unit} of the {whole} is {nth}?
    +(which|what) (is|comes as) the {nth} (one|{unit}|) (among the {unit}s|of all {unit}s|of the {unit}s)?
    +(which|what) {unit} (of|in) the {whole} (is|comes) (the |){nth}( one|)?
    +the {nth} (one |)(of the {unit}s|among the {unit}s)?
    """
)
LENGTH = Phrasings(
    """
    !How many days does {x} have?
    how many days (are in|are there in|has|does the month of {x} have|in) {x}?
    (how long|of what length) is {x}( in days|)?
    (what is|what's|tell me) the (number|count) of days in {x}?
    (what is|what's|tell me) the length of {x}?
    {x} has how many days?
    (number of days in|days in) {x}?
    (tell me|say) how many days (are in {x}|{x} has)
    +(what|which) length has (the month of |){x}?
    +(how long|how many days long) (does|is) (the month of |){x}( last|)?
    +(length|duration|number of days) of {x}?
    +(say|give me|find) the (length|number of days|duration) (of|in) {x}
    """
)
COLOR = Phrasings(
    """
    !What color is {x}?
    (what|which) (color|colour) (is|has|does {x} have|would be) {x}?
    (what is|what's|tell me|name) the (color|colour) of {x}?
    of (what|which) (color|colour) is {x}?
    (the|) (color|colour) of {x}?
    {x} (is|has) (what|which) (color|colour)?
    (say|tell me) (what|which) (color|colour) {x} is
    (do you know|can you say) (what|which) (color|colour) {x} (is|has)?
    +(give|give me|say|find) (the|its|a) (color|colour) (of|for) {x}
    +(which|what) (is|would be) (the|a typical|the usual) (color|colour) (of|for) {x}?
    +{x}'s (color|colour)?
    +(the|which) (color|colour) (has|of|is) {x}( is|)?
    """
)
MIX = Phrasings(
    """
    !What do {x} and {y} make?
    (what|which) (color|colour) do {x} and {y} (make|give|mix to)?
    (what|which) (color|colour) (do I get|do you get|comes out) (if I mix|when I mix|by mixing|from) {x} (and|with) {y}?
    (mix|combine|blend) {x} (and|with) {y}
    {x} (mixed with|and) {y} (makes|make|gives|give)( what|)?
    what happens (if|when) (you|I) mix {x} (and|with) {y}?
    {x} plus {y} makes what color?
    +(if|when) (I|you|we) mix {x} (and|with) {y}, (what|which) (color|colour) (do I get|do you get|comes out|is it|results)?
    +(what|which) (color|colour) (results|appears|is made|is it|will I get) (from|by mixing|if I combine|when I blend|of) {x} and {y}?
    +(what do I get|what do you get|what comes out) (from|if I mix|when I mix|by mixing) {x} (and|with) {y}?
    """
)
AMOUNT = Phrasings(
    """
    !How many {x} are in {y}?
    how many {x} (does|do) {y} have?
    how many {x} (are there in|in|has|make|make up|are part of) {y}?
    (what is|what's|tell me|say) the number of {x} in {y}?
    {y} has how many {x}?
    (tell me|say|do you know) how many {x} (are in {y}|{y} has|there are in {y})
    (number|count) of {x} in {y}?
    +(how many|what number of) {x} (does|do) (one {y}|{y}) (contain|consist of|include|count|last|comprise)?
    +(of how many|in how many) {x} does {y} consist?
    +(do you know|say|tell me) how many {x} {y} (contains|consists of|has got|has)
    """
)
THEN = Phrasings(
    """
    !and after that?
    (and then|and next|and the next one|and the one after|and the one after that|and what is next)?
    (then|next|what then|and then what|what comes then|what follows|and what comes next)?
    (what is|what's|what comes) (next|after that|after it|after this|then|afterwards)?
    (the next one|next one|one more|go on|continue|carry on|keep going)
    (and|so) what (comes|is) after (that|it|this one|that one)?
    +(and|ok|okay|then) (the next|the following one|the following|the one next|another one|another|one further)?
    +(and|now) (next|further|the next one please|after|afterwards)?
    +(keep|go) (on|going on|it going|on please|ahead|further)( please| now|)
    +(continue|proceed|carry on|more|move on)( please| now| from there|)
    +(then|so) what (is|comes|follows) (next|then|after)?
    """,
    bare=True,
)


def _row(say: Speaker) -> tuple[tuple[str, ...], str, str]:
    return (DAYS, "day", "week") if say.rng.random() < 0.5 else (MONTHS, "month", "year")


def _after(say: Speaker) -> tuple[str, str]:
    row, unit, _ = _row(say)
    at = say.rng.randrange(len(row))
    return say.say(AFTER).fill(x=row[at], unit=unit), follows(row, at)


def follows(row: tuple[str, ...], at: int) -> str:
    """The answer to what comes after row[at]."""
    return f"{row[(at + 1) % len(row)]} comes after {row[at]}."


def _before(say: Speaker) -> tuple[str, str]:
    row, unit, _ = _row(say)
    at = say.rng.randrange(len(row))
    return say.say(BEFORE).fill(x=row[at], unit=unit), f"{row[at - 1]} comes before {row[at]}."


def _nth(say: Speaker) -> tuple[str, str]:
    row, unit, whole = _row(say)
    at = say.rng.randrange(len(row))
    nth = "last" if at == len(row) - 1 and say.rng.random() < 0.5 else ORDINALS[at]
    user = say.say(NTH).fill(nth=nth, unit=unit, whole=whole)
    return user, f"{row[at]} is the {nth} {unit} of the {whole}."


def _length(say: Speaker) -> tuple[str, str]:
    at = say.rng.randrange(12)
    leap = ", or 29 in a leap year" if at == 1 else ""
    return say.say(LENGTH).fill(x=MONTHS[at]), f"{MONTHS[at]} has {LENGTHS[at]} days{leap}."


def _color(say: Speaker) -> tuple[str, str]:
    thing, color = say.rng.choice(list(THINGS.items()))
    return say.say(COLOR).fill(x=thing), f"{thing[:1].upper()}{thing[1:]} is {color}."


def _mix(say: Speaker) -> tuple[str, str]:
    pair, made = say.rng.choice(list(MIXES.items()))
    x, y = say.rng.sample(pair, 2)
    return say.say(MIX).fill(x=x, y=y), f"{x.capitalize()} and {y} make {made}."


def _amount(say: Speaker) -> tuple[str, str]:
    (x, y), answer = say.rng.choice(list(AMOUNTS.items()))
    return say.say(AMOUNT).fill(x=x, y=y), answer


KINDS: tuple[Callable[[Speaker], tuple[str, str]], ...] = (
    _after, _after, _before, _before, _nth, _length, _color, _color, _mix, _amount,
)  # fmt: skip


def fact(say: Speaker) -> Turn:
    """A question on days, months or colors."""
    user, answer = say.rng.choice(KINDS)(say)
    return Turn(user, answer, "facts")


def chain(say: Speaker, category: str) -> list[Turn]:
    """ "What day comes after Monday?" and one to three times "and after that?"."""
    row, unit, _ = _row(say)
    at = say.rng.randrange(len(row))
    turns = [Turn(say.say(AFTER).fill(x=row[at], unit=unit), follows(row, at), "facts")]
    for step in range(1, say.rng.randint(2, 4)):
        turns.append(Turn(say.say(THEN).fill(), follows(row, (at + step) % len(row)), category))
    return turns
