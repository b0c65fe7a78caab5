"""Training: batches of dialogues of like length, Muon for the matrices inside, AdamW for the rest, weights averaged."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .dialogues import mix
from .model import Shape, TinyLlama
from .tokenizer import encode

LONGEST = 480
POOL = 6000


@dataclass(frozen=True)
class Plan:
    """How to train; the learning rate follows the clock, so that the run ends when its minutes are over."""

    minutes: float
    seed: int = 1
    rate: float = 3e-3
    batch_tokens: int = 2048
    warm_up: int = 100
    decay: float = 0.05
    average: float = 0.998
    threads: int = 2


@dataclass(frozen=True)
class Batch:
    """Ids [dialogues, length], right-padded with 0; weights say how much predicting each of them counts."""

    ids: Tensor
    weights: Tensor


def batches(pieces: Any, plan: Plan) -> Iterator[Batch]:
    """Batches without end, each of about `batch_tokens` tokens with little padding."""
    rng = random.Random(plan.seed)
    dialogues = mix.training(plan.seed)
    while True:
        pool = sorted((encode(pieces, d, LONGEST) for d in islice(dialogues, POOL)), key=lambda item: len(item[0]))
        cut: list[list[tuple[list[int], list[float]]]] = [[]]
        for item in pool:
            if cut[-1] and (len(cut[-1]) + 1) * len(item[0]) > plan.batch_tokens:
                cut.append([])
            cut[-1].append(item)
        rng.shuffle(cut)
        yield from map(_pad, cut)


def _pad(items: list[tuple[list[int], list[float]]]) -> Batch:
    length = max(len(ids) for ids, _ in items)
    ids, weights = np.zeros((len(items), length), np.int64), np.zeros((len(items), length), np.float32)
    for row, (tokens, counts) in enumerate(items):
        ids[row, : len(tokens)], weights[row, : len(tokens)] = tokens, counts
    return Batch(torch.from_numpy(ids), torch.from_numpy(weights))


def loss_of(model: TinyLlama, batch: Batch) -> Tensor:
    """Weighted cross-entropy of the next token; logits are made only where the weight is not zero."""
    counted = batch.weights[:, 1:] > 0
    hidden = model(batch.ids[:, :-1])[counted]
    losses = F.cross_entropy(model.logits(hidden), batch.ids[:, 1:][counted], reduction="none")
    weights = batch.weights[:, 1:][counted]
    return (losses * weights).sum() / weights.sum()


def optimizers(model: TinyLlama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    hidden = [p for p in model.blk.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim == 1] + [model.token_embd.weight]
    muon = torch.optim.Muon(
        hidden, lr=plan.rate, momentum=0.95, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0)]


def rate_at(plan: Plan, step: int, done: float) -> float:
    """Linear warm-up in steps, then a cosine over the share of the time that is done, down to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return plan.rate * min(1.0, (step + 1) / plan.warm_up) * cosine


def train(pieces: Any, plan: Plan, checkpoint: Path, resume: Path | None = None) -> TinyLlama:
    """Train for the plan's minutes and return the averaged model; it is also saved every five minutes."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    model = TinyLlama(Shape(vocab=pieces.get_piece_size()))
    if resume:
        model.load_state_dict(torch.load(resume, weights_only=True))
    averaged = copy.deepcopy(model)
    steppers = optimizers(model, plan)
    started, tokens, smooth, saved = time.monotonic(), 0, 0.0, 0.0
    for step, batch in enumerate(batches(pieces, plan)):
        elapsed = time.monotonic() - started
        if elapsed >= plan.minutes * 60:
            break
        loss = _step(model, steppers, batch, rate_at(plan, step, elapsed / (plan.minutes * 60)))
        _blend(averaged, model, min(plan.average, (step + 1) / (step + 10)))
        tokens += batch.ids.numel()
        smooth = loss if step == 0 else 0.99 * smooth + 0.01 * loss
        if step % 200 == 0:
            print(f"{elapsed / 60:5.1f} min  step {step:6d}  {tokens / 1e6:6.2f} M tokens  "
                  f"{tokens / max(elapsed, 1):6.0f}/s  loss {smooth:.4f}", flush=True)  # fmt: skip
        if elapsed - saved > 300:
            saved = elapsed
            torch.save(averaged.state_dict(), checkpoint)
    torch.save(averaged.state_dict(), checkpoint)
    return averaged


def _step(model: TinyLlama, steppers: list[torch.optim.Optimizer], batch: Batch, rate: float) -> float:
    loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = rate
        stepper.step()
        stepper.zero_grad()
    return loss.item()


@torch.no_grad()
def _blend(averaged: TinyLlama, model: TinyLlama, keep: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - keep)
