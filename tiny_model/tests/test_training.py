"""The training side, which needs torch: the exporter loses nothing, and training learns."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is only needed to make the model again")
pytest.importorskip("sentencepiece", reason="SentencePiece is only needed to make the model again")

from tiny_model import make, tokenizer  # noqa: E402
from tiny_model.dialogues import mix  # noqa: E402
from tiny_model.model import Shape, TinyLlama  # noqa: E402
from tiny_model.reference import Reference  # noqa: E402
from tiny_model.train import Plan, batches, loss_of  # noqa: E402


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    tokenizer.learn(itertools.islice(mix.training(1), 3000), path)
    return tokenizer.load(path)


def test_torch_and_the_numpy_reference_agree_on_an_exported_random_model(pieces: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = TinyLlama(Shape(width=64, layers=2, heads=2, ff=96)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    make.save(model, pieces, tmp_path / "random.gguf")
    reference = Reference(tmp_path / "random.gguf")
    ids = reference.prompt([{"role": "user", "content": "What is λλM?"}])
    with torch.no_grad():
        for name, weights in model.state_dict().items():
            stored = torch.from_numpy(reference.tensors[name.removesuffix(".weight")])
            assert torch.allclose(weights, stored, atol=2e-3)
            weights.copy_(stored)  # compare the networks, not the rounding to 8 bits
        scores = model.logits(model(torch.tensor([ids])))[0].numpy()
    np.testing.assert_allclose(reference.logits(ids), scores, atol=1e-4)


def test_the_reference_cuts_texts_as_sentencepiece_does(pieces: Any, tmp_path: Path) -> None:
    make.save(TinyLlama(Shape(width=32, layers=1, heads=1, ff=32)), pieces, tmp_path / "random.gguf")
    reference = Reference(tmp_path / "random.gguf")
    for dialogue in itertools.islice(mix.training(5), 300):
        for turn in dialogue:
            assert reference.encode(turn.user) == pieces.encode(turn.user)


def test_only_the_assistant_is_learnt_from(pieces: Any) -> None:
    dialogue = next(d for d in mix.training(1) if len(d) == 1 and " = " in d[0].assistant)
    ids, weights = tokenizer.encode(pieces, dialogue, 480)
    learnt = pieces.decode([token for token, weight in zip(ids, weights, strict=True) if weight > 0])
    assert learnt.strip() == dialogue[0].assistant
    assert ids[0] == tokenizer.BOS
    assert ids[-1] == tokenizer.EOS
    assert weights[-1] > weights[-len(pieces.encode(dialogue[0].assistant)) + 1]


def test_batches_are_the_same_for_a_seed_and_of_the_planned_size(pieces: Any) -> None:
    plan = Plan(minutes=1, seed=4, batch_tokens=512)
    first, second = next(batches(pieces, plan)), next(batches(pieces, plan))
    assert torch.equal(first.ids, second.ids)
    assert first.ids.numel() <= 2 * plan.batch_tokens


def test_a_few_steps_lower_the_loss(pieces: Any) -> None:
    torch.manual_seed(1)
    model = TinyLlama(Shape(width=64, layers=1, heads=2, ff=96))
    batch = next(batches(pieces, Plan(minutes=1, batch_tokens=512)))
    stepper = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        stepper.step()
        stepper.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
