"""The tokenizer: SentencePiece BPE with 1,024 pieces and bytes for what has no piece, and how a dialogue is laid out.

A dialogue is `<s><|user|>U<|assistant|>A</s><|user|>…`; the chat template in the GGUF writes the same.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .dialogues.turn import Dialogue

PIECES = 1024
BOS, EOS = 1, 2
USER, ASSISTANT = "<|user|>", "<|assistant|>"
FIRST_WEIGHT, RESULT_WEIGHT = 2.0, 4.0


def learn(dialogues: Iterable[Dialogue], path: Path) -> None:
    """Train the pieces on the texts of dialogues (Latin letters and λ only: the rest is left to bytes)."""
    import sentencepiece

    texts = (text for dialogue in dialogues for turn in dialogue for text in (turn.user, turn.assistant))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for text in texts if all(c.isascii() or c in "λΛ×" for c in text)),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        control_symbols=[USER, ASSISTANT],
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def load(path: Path) -> Any:
    """The SentencePiece processor of a trained model file."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def encode(pieces: Any, dialogue: Dialogue, longest: int) -> tuple[list[int], list[float]]:
    """Token ids of a dialogue and, for each, how much predicting it counts in the loss.

    Only the assistant's tokens count. An answer of n tokens weighs √n in all; its first token, which decides what kind
    of answer it is, counts double, and the result of a sum fourfold. Turns beyond `longest` tokens are left out.
    """
    ids, weights = [BOS], [0.0]
    user, assistant = pieces.piece_to_id(USER), pieces.piece_to_id(ASSISTANT)
    for turn in dialogue:
        asked = [user, *pieces.encode(turn.user), assistant]
        answer = [*pieces.encode(turn.assistant), EOS]
        if len(ids) + len(asked) + len(answer) > longest:
            break
        ids += asked + answer
        weights += [0.0] * len(asked) + _weights(pieces, turn.assistant, len(answer))
    return ids, weights


def _weights(pieces: Any, text: str, length: int) -> list[float]:
    weights = [1.0] * length
    weights[0] = FIRST_WEIGHT
    if " = " in text:
        result = len(pieces.encode(text.rpartition("=")[0] + "="))
        weights[result:] = [RESULT_WEIGHT] * (length - result)
    return [weight / length**0.5 for weight in weights]
