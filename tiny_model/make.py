"""Makes the demo model: dialogues → tokenizer → training → GGUF → evaluation, in one command.

python -m tiny_model.make --out build/tiny_model --minutes 40 --seed 1
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from . import evaluate, export, tokenizer
from .dialogues import mix
from .model import TinyLlama
from .train import Plan, train

FOR_TOKENIZER = 40_000


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tiny_model.make", description="Make the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument(
        "--work", type=Path, default=Path("build/tiny_model"), help="folder for tokenizer and checkpoint"
    )
    parser.add_argument("--minutes", type=float, default=40, help="training time (default: 40)")
    parser.add_argument("--seed", type=int, default=1, help="seed of data and weights (default: 1)")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: 2)")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from; --work must hold its tokenizer")
    return parser.parse_args()


def sizes(model: TinyLlama) -> export.Sizes:
    """The network's sizes as the exporter wants them."""
    s = model.shape
    return export.Sizes(s.width, s.layers, s.heads, s.ff, s.vocab, s.theta, s.eps)


def save(model: TinyLlama, pieces: Any, path: Path) -> None:
    """Write the model as GGUF."""
    tensors = {name.removesuffix(".weight"): t.float().numpy() for name, t in model.state_dict().items()}
    export.write(path, sizes(model), tensors, export.vocabulary(pieces))


def main() -> int:
    """Run all steps; the exit status is that of the evaluation."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    vocabulary = args.work / "tokenizer.model"
    if not args.resume:
        print(f"tokenizer: {FOR_TOKENIZER} dialogues", flush=True)
        tokenizer.learn(itertools.islice(mix.training(args.seed), FOR_TOKENIZER), vocabulary)
    pieces = tokenizer.load(vocabulary)
    plan = Plan(minutes=args.minutes, seed=args.seed, rate=args.rate, threads=args.threads)
    model = train(pieces, plan, args.work / "model.pt", args.resume)
    save(model, pieces, args.out)
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes", flush=True)
    return evaluate.report(args.out)


if __name__ == "__main__":
    raise SystemExit(main())
