"""Capitals of sixty countries, asked in both directions; near misses are in `refusals`."""

# ruff: noqa: E501  (a template is a line)

from __future__ import annotations

from .grammar import Phrasings
from .surface import Speaker, slip
from .turn import Turn

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Scotland": "Edinburgh", "Belgium": "Brussels",
    "the Netherlands": "Amsterdam", "Austria": "Vienna", "Switzerland": "Bern", "Denmark": "Copenhagen",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Iceland": "Reykjavik", "Poland": "Warsaw",
    "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia", "Greece": "Athens", "Croatia": "Zagreb",
    "Serbia": "Belgrade", "Ukraine": "Kyiv", "Russia": "Moscow", "Turkey": "Ankara", "Estonia": "Tallinn",
    "Latvia": "Riga", "Lithuania": "Vilnius", "China": "Beijing", "Japan": "Tokyo", "South Korea": "Seoul",
    "India": "New Delhi", "Pakistan": "Islamabad", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta",
    "Malaysia": "Kuala Lumpur", "the Philippines": "Manila", "Nepal": "Kathmandu", "Iran": "Tehran", "Iraq": "Baghdad",
    "Saudi Arabia": "Riyadh", "Lebanon": "Beirut", "Egypt": "Cairo", "Morocco": "Rabat", "Algeria": "Algiers",
    "Tunisia": "Tunis", "Kenya": "Nairobi", "Nigeria": "Abuja", "Ghana": "Accra", "Ethiopia": "Addis Ababa",
    "Canada": "Ottawa", "the United States": "Washington", "Mexico": "Mexico City", "Cuba": "Havana",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago", "Peru": "Lima", "Colombia": "Bogota",
    "Venezuela": "Caracas", "Australia": "Canberra", "New Zealand": "Wellington",
}  # fmt: skip
ALSO = {
    "the United States": ("the USA", "the US", "USA", "America", "United States"),
    "the Netherlands": ("Netherlands", "Holland"),
    "the Philippines": ("Philippines",),
    "England": ("the UK", "Great Britain", "the United Kingdom", "Britain"),
    "South Korea": ("Korea",),
}

ASK = Phrasings(
    """
    !What is the capital of {country}?
    !capital of {country}
    (what's|whats|which is|name|tell me|give me|say|what was) the capital of {country}
    (what is|what's|tell me|name|which is) the (capital city|capital town|main city and capital) of {country}?
    (what|which) (city|town) is the capital of {country}?
    (what|which) (city|town) is {country}'s capital?
    (what is|what's|tell me|name|which city is) {country}'s capital( city|)?
    (the capital of {country}|capital city of {country}|{country} capital|{country}'s capital|{country}: capital)?
    (do you know|can you name|can you say|could you name|would you know) the capital( city|) of {country}?
    (I need|I want|I am looking for|I forgot|I don't know|I'd like) the capital( city|) of {country}
    the capital( city|) of {country} is( called|)?
    (is|isn't) {other} the capital( city|) of {country}?
    (and|so|now) what is the capital( city|) of {country}?
    {country} has which (city as its capital|capital|capital city)?
    what (capital|capital city) does {country} have?
    what is the (city|town) that is the capital of {country}?
    where is the capital of {country}?
    what (do they|do you|do people) call the capital( city|) of {country}?
    (which|what) is the seat of government of {country}?
    (where does|in which city does|in what city does) the government of {country} (sit|meet)?
    (which|what) (capital city|capital) (does {country} have|belongs to {country}|is in {country}|has {country})?
    in {country}, (which|what) city is the capital?
    what's {country}'s capital called?
    (how is|how's) the capital( city|) of {country} called?
    +(what|which) (city|town) (does {country} have as its capital|has {country} as its capital|is it that {country} has as capital)?
    +{country} (has|have) (what|which) (city as capital|town as capital|city for a capital)?
    +{country}: (which|what) (capital|capital city|city is the capital)?
    +(which|what) capital (does|has|is of|is for) {country}?
    +{country}'s (capital city|capital town|capital is|capital city is)( what| which|)?
    +(what is|what's|tell me|name|say) the (main|capital) city of {country}?
    +(which|what) (capital|capital city) (goes with|fits|matches) {country}?
    +how do (people|they|you) call the capital( city|) of {country}?
    +(tell|ask) me {country}'s capital( city|)
    +what would be the capital( city|) of {country}?
    """
)
REVERSE = Phrasings(
    """
    !{city} is the capital of which country?
    {city} is the capital( city|) of (which|what) (country|nation|land|state)?
    (which|what) (country|nation|land) has {city} as (its|the) capital( city|)?
    (which|what) (country's|country is) capital is {city}?
    (of|for) (which|what) (country|nation) is {city} the capital( city|)?
    (what|which) (country|nation) is {city} the capital( city|) of?
    {city} is the capital( city|) of( what|)?
    (what is|what's) {city} the capital of?
    (which|what) (country|nation) does the capital {city} belong to?
    (name|tell me|give me|say) the (country|nation) (whose capital is|with the capital|that has the capital) {city}
    (whose|which country's) capital (city is|is) {city}?
    the (country|nation) (with|that has) the capital {city}?
    {city} is which country's capital( city|)?
    +(which|what) (country|nation|land|state) is {city} (the capital in|capital of|the capital city for)?
    +{city} (is|was) the capital (of what|of which|in what country|of what place)( exactly|)?
    +(so|and) {city} is the capital of (what|which country|where|what country)?
    +{city} (is|was) (what|which) (country's|nation's|state's) (capital|capital city)?
    +(tell me|say|do you know) (what|which country|which state) {city} (is|was) the capital( city|) of
    +(I wonder|I forgot|guess) (what|which country) {city} is the capital( city|) of
    +(what|which) (land|state|country) (is governed from|has its capital in|calls its capital) {city}?
    +{city}: capital of (what|which country|which land)?
    """
)
NEXT = Phrasings(
    """
    !and of {country}?
    !And {country}?
    (and|what about|how about|now|then|also) (the capital |the one |)of {country}?
    (what about|how about|now|also|then|okay and|what of) {country}?
    (same|the same|same question) for {country}
    (and|what is it|what's it) (for|in) {country}?
    (and|now) (what about|how about) {country}?
    (do|try|tell me|give me) {country} (too|now|next|as well)
    +(do|try|take|give|say|tell me|give me|name) {country}('s|'s capital| as another one| please| for me)
    +(and|also|then|next|now) {country}( too| as well| please| now| next|)?
    +{country} (too|as well|next|please|also|now)?
    +(same|now the same|once more|again|likewise) (with|for|but for|about) {country}
    {country}?
    """,
    bare=True,
)


def capital(say: Speaker) -> Turn:
    """A country's capital, or the country of a capital."""
    if say.rng.random() < 0.25:
        country = say.rng.choice(list(CAPITALS))
        user = say.say(REVERSE).fill(city=CAPITALS[country])
        return Turn(user, f"{CAPITALS[country]} is the capital of {country}.", "capitals")
    return of_country(say, ASK, "capitals")


def of_country(say: Speaker, phrasings: Phrasings, category: str) -> Turn:
    """A turn that asks for a capital in one of the phrasings; now and then with a slip in the country's name."""
    country = say.rng.choice(list(CAPITALS))
    asked = say.rng.choice((country, *ALSO[country])) if country in ALSO else country
    if len(asked) > 5 and " " not in asked and say.rng.random() < say.noise.typo:
        asked = slip(say.rng, asked)
    user = say.say(phrasings).fill(country=asked, other=say.rng.choice(list(CAPITALS.values())))
    return Turn(user, f"The capital of {country} is {CAPITALS[country]}.", category)
