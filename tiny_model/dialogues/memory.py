"""Memory over several turns: a person tells a name, a home, a color, a pet or an age, and asks for it later."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .grammar import Phrasings, words
from .surface import Speaker
from .turn import Turn

NAMES = words(
    """
    Ada Alan Grace Linus Guido Ken Dennis Barbara Edsger Donald Margaret Katherine Alice Bob Carol Dave Eve
    Frank Grete Hans Ingrid Jan Karl Lena Maria Nina Otto Paul Quentin Rosa Sven Tom Ulla Vera Walter Xenia Yann
    Zoe Anna Ben Clara David Emma Felix Hanna Ivan Julia Kevin Laura Max Noah Olga Peter Rita Simon Tina Uwe
    Victor Wendy Ahmed Fatima Omar Leila Hassan Amina Yusuf Zainab Ali Mohammed Aisha Karim Nadia Samir Priya
    Rahul Anjali Arjun Deepa Ravi Sita Vikram Himanshu Neha Amit Pooja Sanjay Kiran Wei Ming Li Hua Jing Chen
    Mei Xin Yuki Haruto Sakura Kenji Akira Naoko Hiroshi Ji-woo Minho Soo Hyun Nguyen Linh Minh Thao Carlos Juan
    Pedro Lucia Sofia Diego Elena Pablo Javier Carmen Miguel Ana Luis Jose Marta Rafael Giulia Marco Luca Chiara
    Paolo Francesca Matteo Pierre Marie Jean Claire Luc Camille Louis Chloe Antoine Margot Olivier Boris
    Svetlana Dmitri Natasha Igor Katya Sergei Tatiana Mikhail Irina Oleg Kofi Ama Kwame Zola Thabo Naledi Chidi
    Ngozi Emeka Amara Tunde Folake Makena Wanjiru Jomo Lars Astrid Bjorn Freya Erik Sigrid Nils Liv Aino Eero
    Matti Kaisa Michael Sarah James Emily John Jessica Robert Ashley William Amanda Daniel Jennifer Thomas Megan
    Joseph Rachel Charles Nicole George Hannah Edward Victoria Henry Charlotte Jack Amelia Oliver Isla Harry
    Ruby Oscar Daisy Archie Lily Liam Mia Ethan Ava Mason Ella Logan Aria Lucas Nora Jacob Hazel Owen Iris Sam
    Alex Kim Chris Pat Robin Jordan Taylor Casey Morgan Jamie Riley Quinn Tony Mary Lisa Mike Steve Nick Joe Dan
    Jim Bill Kate Beth Sue Amy Ann Jill Meg Ian Neil Sean Rory Aidan Fiona Niamh Siobhan Gareth Rhys Bronwyn
    Tomasz Agnieszka Piotr Zofia Istvan Eszter Laszlo Vaclav Jana Pavel Goran Milica Dragan Ayse Mehmet Elif
    Emre Dimitra Nikos Yiannis Eleni Noam Tamar Avi Shira Moshe Rivka Cleo Dexter Juno Milo Otis Pearl Rufus
    Stella Theo Winona
    """
)
HIDDEN_NAMES = frozenset(NAMES[3::9])
CITIES = words(
    """
    Paris London Berlin Rome Madrid Vienna Oslo Tokyo Lima Cairo Hamburg Munich Milan Naples Lyon Nice Porto
    Geneva Zurich Basel Graz Ghent Bruges Leeds York Bath Glasgow Cork Bergen Malmo Turku Krakow Gdansk Brno
    Split Varna Izmir Kazan Osaka Kyoto Nagoya Busan Shanghai Mumbai Delhi Pune Chennai Lahore Dubai Doha Haifa
    Lagos Kano Durban Boston Chicago Denver Dallas Austin Seattle Portland Miami Toronto Montreal Calgary Sydney
    Perth Auckland Cusco Bahia Quito Rosario
    """
)
COLORS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "black", "white", "brown", "gray", "turquoise", "violet",
    "gold", "silver", "teal", "magenta", "indigo", "lime", "beige", "dark blue", "light green",
)  # fmt: skip
PET_NAMES = words(
    """
    Rex Bella Luna Max Charlie Rocky Toby Coco Simba Tiger Felix Whiskers Shadow Ginger Nala Oreo Pepper
    """
)
FOODS = (
    "pizza", "pasta", "rice", "soup", "sushi", "bread", "cheese", "curry", "salad", "cake", "ice cream", "chocolate",
    "noodles", "tacos", "fish", "pancakes", "lasagna", "dumplings", "falafel", "hummus", "risotto", "paella",
)  # fmt: skip

ONSETS = (
    "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pr", "qu", "r", "s",
    "sh", "st", "t", "tr", "th", "v", "w", "x", "y", "z", "",
)  # fmt: skip
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "io", "ou", "ei", "y")
CODAS = ("", "", "", "n", "l", "r", "s", "m", "k", "t", "x", "nd", "rt", "sh", "lf", "ck", "d", "p", "b", "v", "z")


def invented(rng: random.Random) -> str:
    """A name made of one to three syllables, capitalized."""
    word = "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choices((1, 2, 3), (2, 6, 2))[0])
    )
    if rng.random() < 0.04:
        return f"{word.capitalize()}-{rng.choice(ONSETS)}{rng.choice(VOWELS[:10])}{rng.choice(CODAS)}"
    return word.capitalize() if len(word) > 1 else invented(rng)


def person(say: Speaker) -> str:
    """A name; evaluation uses only names that training cannot hold: hidden real ones and freshly invented ones."""
    if say.rng.random() < 0.6:
        return invented(say.rng)
    name = say.rng.choice(NAMES)
    while (name in HIDDEN_NAMES) != say.held:
        name = say.rng.choice(NAMES)
    return f"{name} {invented(say.rng)}" if not say.held and say.rng.random() < 0.06 else name


def _town(say: Speaker) -> str:
    return say.rng.choice(CITIES) if say.rng.random() < 0.6 else invented(say.rng)


def _pet(say: Speaker) -> str:
    return say.rng.choice(PET_NAMES) if say.rng.random() < 0.4 else invented(say.rng)


@dataclass(frozen=True)
class Kind:
    """One thing that can be told and asked for; answers hold `{x}` where the told value goes."""

    tell: Phrasings
    ask: Phrasings
    noted: str
    recalled: str
    unknown: str
    value: Callable[[Speaker], str]


NAME = Kind(
    Phrasings(
        """
        !My name is {x}.
        !My name is {x}
        (my name is|my name's|my first name is|the name is|the name's|my full name is) {x}
        (I am|I'm) {x}
        (call me|you can call me|please call me|just call me|everyone calls me|people call me|they call me) {x}
        (I am|I'm|I was) (called|named) {x}
        (hi|hello|hey|good morning|good evening|good day),? (I am|I'm|my name is|this is|it is|it's) {x}
        (this is|it is|it's) {x} (here|speaking|writing|)
        {x} is my name
        (my friends|my parents|my colleagues) call me {x}
        (remember|please remember|note|remember this|please note|don't forget)( that|:|) my name is {x}
        (actually|no|sorry|wait|correction),? (my name is|I am|call me|I'm) {x}
        (I want you to know|let me tell you|you should know|just so you know) (that |)my name is {x}
        (let me introduce myself|allow me to introduce myself)[:,] (I am|I'm|my name is) {x}
        I go by {x}
        (nice to meet you|pleased to meet you), (I am|I'm|my name is) {x}
        my name is {x}, (nice to meet you|what is yours|and you|by the way|remember it|remember that|ok)?
        """.replace(",? (", "(,|) (").replace("[:,]", "(:|,)")
    ),
    Phrasings(
        """
        !What is my name?
        !What's my name?
        (what's|whats|what was|tell me|say|do you know|do you remember) my name?
        (what|who) did I say my name (was|is)?
        (who am I|do you know who I am|do you remember who I am|who is this again|tell me who I am)?
        (can you|could you|please|will you) (tell me|say|repeat|recall|remember) my name?
        (what did I tell you|what have I told you|what did I say) my name (is|was)?
        (remind me of|recall|repeat|say) my name
        (how|what) (am I called|do people call me|did I call myself|should you call me|do you call me|will you call me)?
        my name (is|was|is what|was what|again)?
        (have you forgotten|did you forget|have you remembered|did you remember|do you still know) my name?
        (and|so|now), what (is|was) my name( again|)?
        (I forgot|I have forgotten) my name(, what is it|, can you help me|)?
        (what's|what is) my name( again| then| now| please|)?
        by what name (do you know me|should you call me|did I introduce myself)?
        +(what|which) name (did I|do I|have I) (tell you|give you|have|told you|say|mention|given you)?
        +(do you|can you) (know|still know|recall|remember) (who I am|my name|what I am called|what my name is)?
        +(tell|remind) me (what my name is|who I am|what I am called|my own name)
        +(what|how) (did|have) I (say|tell you|told you|said) (my name|that my name) (is|was)?
        +(and|so|well|now), (what was|what is|what's|tell me|say) my name( again| then| now|)?
        """
    ),
    "Nice to meet you, {x}!",
    "Your name is {x}.",
    "You have not told me your name.",
    person,
)
COLOR = Kind(
    Phrasings(
        """
        !My favorite color is {x}.
        (my favorite color is|my favourite colour is|my favorite colour is|my favourite color is|my best color is) {x}
        {x} is my (favorite color|favourite colour)
        (I like|I love|I prefer) the (color|colour) {x} (most|best|the most)
        (actually|no|sorry|wait), my (favorite color|favourite colour) is {x}
        (remember|please remember|note) that my (favorite color|favourite colour) is {x}
        (the color|the colour) I like (best|most) is {x}
        as for colors, my favorite is {x}
        """
    ),
    Phrasings(
        """
        !What is my favorite color?
        (what's|whats|what is|what was|tell me|say|do you know|do you remember) my (favorite color|favourite colour)?
        (which|what) (color|colour) do I (like|love|prefer) (best|most|the most|)?
        (which|what) (color|colour) (is my favorite|is my favourite|did I say I like|did I mention)?
        (what did I say|what did I tell you) my (favorite color|favourite colour) (is|was)?
        my (favorite color|favourite colour) (is|was|is what)?
        (remind me of|recall|repeat) my (favorite color|favourite colour)
        """
    ),
    "Noted: your favorite color is {x}.",
    "Your favorite color is {x}.",
    "You have not told me your favorite color.",
    lambda say: say.rng.choice(COLORS),
)
HOME = Kind(
    Phrasings(
        """
        !I live in {x}.
        (I live in|I am living in|I'm living in|my home is in|my home is|my city is|my home town is) {x}
        (I am from|I'm from|I come from) {x}
        {x} is (my city|my home|my home town|where I live)
        (actually|no|sorry|wait), (I live in|I am from|I moved to) {x}
        (remember|please remember|note) that I live in {x}
        (I moved to|I have a house in|I have a flat in|I am based in) {x}
        the (city|town|place) (where |)I live (in |)is {x}
        """
    ),
    Phrasings(
        """
        !Where do I live?
        (where do I live|where am I from|where do I come from|where did I say I live|where is my home)?
        (which|what) (city|town|place) (do I live in|am I from|do I come from|did I say I live in|is my home)?
        (do you know|do you remember|tell me|can you tell me|say) where I (live|am from|come from)?
        (what is|what's|what was) my (city|home town|home|town)?
        (in which|in what) (city|town) do I live?
        (remind me|recall) where I live
        """
    ),
    "Noted: you live in {x}.",
    "You live in {x}.",
    "You have not told me where you live.",
    _town,
)
DOG = Kind(
    Phrasings(
        """
        !My dog is called {x}.
        (my dog is called|my dog's name is|my dog is named|the name of my dog is|my dog's called) {x}
        (I have a dog|I've got a dog|we have a dog) (called|named|and his name is|and her name is|, its name is) {x}
        {x} is (my dog|my dog's name|the name of my dog)
        (actually|no|sorry|wait), my dog is called {x}
        (we call|I call|we named|I named) (my|our) dog {x}
        """
    ),
    Phrasings(
        """
        !What is my dog called?
        (what's|whats|what is|what was|tell me|do you know|do you remember) my dog's name?
        (what is|what's|what was|tell me) the name of my dog?
        (how|what) is my dog (called|named)?
        (what did I call|what do I call|what did I name) my dog?
        (who is|what's) my dog?
        my dog's name (is|was|)?
        """
    ),
    "Noted: your dog is called {x}.",
    "Your dog is called {x}.",
    "You have not told me about a dog.",
    _pet,
)
AGE = Kind(
    Phrasings(
        """
        !I am {x} years old.
        (I am|I'm) {x} years (old|of age)
        (my age is|I turned|I just turned) {x}
        (actually|no|sorry|wait), (I am|I'm) {x} years old
        (remember|please remember|note) that (I am|I'm) {x} years old
        (I was|I am) {x} (on|since) my last birthday
        """
    ),
    Phrasings(
        """
        !How old am I?
        (how old am I|how old did I say I am|what is my age|what's my age|what was my age)?
        (do you know|do you remember|tell me|can you tell me|say) (how old I am|my age)?
        (what age|which age) (am I|do I have|did I say|did I tell you)?
        (how many years|how many years old) (am I|have I)?
        my age (is|was|)?
        """
    ),
    "Noted: you are {x} years old.",
    "You are {x} years old.",
    "You have not told me your age.",
    lambda say: str(say.rng.randint(5, 99)),
)
FOOD = Kind(
    Phrasings(
        """
        !My favorite food is {x}.
        (my favorite food is|my favourite food is|my favorite dish is|my favourite meal is) {x}
        (I like|I love) to eat {x} (most|best|the most)
        {x} is my (favorite|favourite) (food|dish|meal)
        (actually|no|sorry|wait), my (favorite|favourite) food is {x}
        the food I like (best|most) is {x}
        """
    ),
    Phrasings(
        """
        !What is my favorite food?
        (what's|whats|what is|what was|tell me|do you know|do you remember) my (favorite|favourite) (food|dish|meal)?
        (what|which) food do I (like|love) (best|most|the most)?
        (what|which) (food|dish) is my (favorite|favourite)?
        what (do I like|did I say I like) to eat( best| most|)?
        +(what|which) (did|do|have) I (say|tell you|mention|told you) (I like to eat|my favorite food is|my favorite food was|I love to eat)?
        +(remind me of|recall|repeat|say|tell me) my (favorite|favourite) (food|dish|meal)
        +(what|which) (meal|dish|food) do I (like|love|prefer)( best| most|)?
        +(what|which things) do I (like|love|prefer) to eat( the most| the best|)?
        my (favorite|favourite) food (is|was|)?
        """
    ),
    "Noted: your favorite food is {x}.",
    "Your favorite food is {x}.",
    "You have not told me your favorite food.",
    lambda say: say.rng.choice(FOODS),
)
KINDS = (NAME, COLOR, HOME, DOG, AGE, FOOD)
WEIGHTS = (7, 2, 3, 2, 2, 1)
CATEGORY = "memory"


def tell(say: Speaker, kind: Kind) -> tuple[Turn, str]:
    """A turn that tells the model something, and the value as it was typed."""
    surface = say.say(kind.tell)
    value = kind.value(say)
    if surface.case == "lower" and surface.text.startswith(("I am {x}", "I'm {x}")):
        surface.case = "as is"
    typed = surface.styled(value)
    return Turn(surface.fill(x=value), kind.noted.format(x=typed), CATEGORY), typed


def ask(say: Speaker, kind: Kind, value: str | None) -> Turn:
    """A turn that asks for it; value is None when it was never told."""
    answer = kind.unknown if value is None else kind.recalled.format(x=value)
    return Turn(say.say(kind.ask).fill(), answer, CATEGORY)


def conversation(say: Speaker, other: Callable[[], Turn], turns: int) -> list[Turn]:
    """A conversation of telling, asking and other talk; a fact told again replaces the old one."""
    known: dict[int, str] = {}
    made: list[Turn] = []
    main = say.rng.choices(range(len(KINDS)), WEIGHTS)[0]
    for step in range(turns):
        draw = say.rng.random()
        at = main if say.rng.random() < 0.7 else say.rng.choices(range(len(KINDS)), WEIGHTS)[0]
        last = step == turns - 1
        if (step == 0 and draw < 0.85) or (draw < 0.2 and not last):
            turn, known[at] = tell(say, KINDS[at])
        elif draw < 0.5 or last:
            if last and known and say.rng.random() < 0.9:
                at = say.rng.choice(list(known))
            turn = ask(say, KINDS[at], known.get(at))
        else:
            turn = other()
        made.append(turn)
    return made
