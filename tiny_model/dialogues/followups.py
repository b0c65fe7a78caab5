"""Follow-ups: questions that only make sense after the turn before."""

from __future__ import annotations

from collections.abc import Callable

from . import capitals, facts, sums
from .grammar import Phrasings
from .surface import Speaker
from .turn import Turn

CATEGORY = "follow-ups"

AGAIN = Phrasings(
    """
    !Say that again.
    !again
    (repeat|repeat that|repeat it|say it again|say again|once more|once again|one more time|please repeat)
    (can you|could you|would you|will you) (repeat|say) (that|it|this|your answer)( again| once more|)?
    (what did you say|what was that|what did you just say|what was it|what was your answer|come again)?
    (I did not|I didn't) (hear|catch|get|understand|read) (that|it|you)
    (pardon|pardon me|sorry, what|sorry what|excuse me, what|what)?
    (tell me|give me|show me) (that|it|the answer) (again|once more|one more time)
    (please|could you) say (that|it) (again|once more)
    (I want to|let me) hear (that|it) again
    +(sorry|hm|huh|eh|pardon|excuse me)(,|) (what was that|can you repeat that|say again|I missed that|again|repeat)?
    +(sorry|huh|eh|hm, what|say what|what now|what did you say|beg your pardon|I beg your pardon)?
    +(what|huh|eh|hm|pardon)(,|) (sorry|pardon|please|excuse me|what was it)?
    +(excuse me|sorry|pardon)(,|) (huh|again|could you repeat|what was it|how was that|come again|repeat please)?
    +(excuse me|I did not get that|I missed it|I missed your answer|not understood|I did not understand)?
    +(repeat|say|show|write) (the|your) (last|previous) (answer|sentence|message|reply)( again|)
    """,
    bare=True,
)


def follow_up(say: Speaker, other: Callable[[], Turn]) -> list[Turn]:
    """A short conversation whose last turn is a follow-up."""
    draw = say.rng.random()
    if draw < 0.3:
        turns = [capitals.capital(say)]
        for _ in range(say.rng.randint(1, 3)):
            turns.append(capitals.of_country(say, capitals.NEXT, CATEGORY))
        return turns
    if draw < 0.55:
        return [sums.sum_(say), *(sums.next_sum(say) for _ in range(say.rng.randint(1, 3)))]
    if draw < 0.75:
        return facts.chain(say, CATEGORY)
    before = other()
    return [before, Turn(say.say(AGAIN).fill(), before.assistant, CATEGORY)]
