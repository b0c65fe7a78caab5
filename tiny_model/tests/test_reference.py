"""The engine says what the network in the file says, by a second way of computing it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tiny_model.dialogues import mix
from tiny_model.engine import Engine, messages_of
from tiny_model.reference import Reference

GGUF = Path(__file__).parents[2] / "backend_lambda/src/backend_lambda/models/lambdalm-demo.gguf"
NEAR_TIE = 0.25  # llama.cpp rounds activations to 8 bits where NumPy does not; a closer call than this is a tie
TYPICAL = [
    "What is λλM?", "hi", "What is the capital of Italy?", "What is 27 + 35?", "84 - 57", "Name four animals.",
    "What day comes after Friday?", "Count from 3 to 9", "who are you", "what is the grpc proxy?", "Привет!",
    "<b>x</b>",
]  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(GGUF)


def test_greedy_answers_of_engine_and_numpy_are_the_same_token_by_token(reference: Reference) -> None:
    conversations = [[{"role": "user", "content": prompt}] for prompt in TYPICAL]
    conversations += [messages_of(d) for d in itertools.islice(mix.evaluation("memory, two turns", 3), 8)]
    exact = 0
    with Engine(GGUF) as engine:
        for messages in conversations:
            answer, prompt = engine.chat(messages), reference.prompt(messages)
            assert answer.prompt_tokens == len(prompt), messages
            short = reference.regret(prompt, reference.encode(answer.text))
            assert short.max() < NEAR_TIE, (messages, answer.text)
            exact += bool(short.max() == 0)
    assert exact >= len(conversations) - 1, "near ties are rare"


def test_decoding_gives_the_encoded_text_back(reference: Reference) -> None:
    for text in ("What is λλM?", "27 + 35 = 62.", "Привет, 世界 🙂", "  two  spaces ", "", "a\nb\t<0x41>"):
        assert reference.decode(reference.encode(text)) == text


def test_later_tokens_do_not_change_earlier_scores(reference: Reference) -> None:
    ids = reference.prompt([{"role": "user", "content": "What is the capital of Peru?"}])
    np.testing.assert_allclose(reference.logits(ids)[:5], reference.logits(ids[:5]), atol=1e-4)
