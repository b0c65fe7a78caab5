"""Passive mode: the config's prompts, one after the other, without a hand on the keyboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bedrest_client.screen import Screen


def run(prompts: Sequence[str], ask: Callable[[str], bool], screen: Screen) -> bool:
    """Ask each prompt and show it with its answer, whatever became of those before; says whether all were answered."""
    answered = 0
    for prompt in prompts:
        screen.line(f"> {prompt}")
        answered += ask(prompt)
        screen.line("")
    screen.note(f"{answered} of {len(prompts)} answered")
    return answered == len(prompts)
