"""The network once more in plain NumPy, read from a GGUF: a second opinion on what the engine makes of the file.

It takes nothing from the training code. If what llama.cpp says is what this network would say, then keys, tensor
layout, RoPE, quantization and tokenizer are what the exporter meant.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NORMAL, CONTROL, BYTE = 1, 3, 6
SPACE = "\u2581"


class Reference:
    """A GGUF of the llama architecture, with its tokenizer."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors: dict[str, Floats] = {
            t.name.removesuffix(".weight"): gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
            for t in reader.tensors
        }
        self.layers = int(self._key("block_count"))
        self.heads = int(self._key("attention.head_count"))
        self.eps = float(self._key("attention.layer_norm_rms_epsilon"))
        self.theta = float(self._key("rope.freq_base"))
        self.pieces: list[str] = self._fields["tokenizer.ggml.tokens"]
        self.scores: list[float] = self._fields["tokenizer.ggml.scores"]
        self.kinds: list[int] = self._fields["tokenizer.ggml.token_type"]
        self.template: str = self._fields["tokenizer.chat_template"]
        self.name: str = self._fields["general.name"]
        self.end = int(self._fields["tokenizer.ggml.eos_token_id"])
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}

    def _key(self, name: str) -> Any:
        return self._fields[f"llama.{name}"]

    def logits(self, ids: list[int]) -> Floats:
        """Scores [length, vocabulary] of the token after each of `ids`."""
        x = self.tensors["token_embd"][ids]
        for layer in range(self.layers):
            w = {name: self.tensors[f"blk.{layer}.{name}"] for name in _LAYER}
            x = x + self._attend(self._norm(x, w["attn_norm"]), w)
            h = self._norm(x, w["ffn_norm"])
            gate = h @ w["ffn_gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        scores: Floats = self._norm(x, self.tensors["output_norm"]) @ self.tensors["token_embd"].T
        return scores

    def regret(self, prompt: list[int], answer: list[int]) -> Floats:
        """For each token of an answer and its end: by how much its score falls short of the best one (0: greedy)."""
        tokens = [*answer, self.end]
        scores = self.logits(prompt + answer)[len(prompt) - 1 :]
        short: Floats = scores.max(-1) - scores[np.arange(len(tokens)), tokens]
        return short

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        scaled: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * weight
        return scaled

    def _attend(self, h: Floats, w: dict[str, Floats]) -> Floats:
        length, width = h.shape

        def heads(weight: Floats) -> Floats:
            return (h @ weight.T).reshape(length, self.heads, -1).transpose(1, 0, 2)

        q, k, v = self._rotate(heads(w["attn_q"])), self._rotate(heads(w["attn_k"])), heads(w["attn_v"])
        scores = q @ k.transpose(0, 2, 1) / float(width // self.heads) ** 0.5
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        chance = np.exp(scores - scores.max(-1, keepdims=True))
        chance /= chance.sum(-1, keepdims=True)
        mixed: Floats = (chance @ v).transpose(1, 0, 2).reshape(length, width) @ w["attn_output"].T
        return mixed

    def _rotate(self, x: Floats) -> Floats:
        """RoPE on neighbouring pairs of x [heads, length, head size]."""
        _, length, size = x.shape
        angle = np.outer(np.arange(length), self.theta ** (-np.arange(0, size, 2) / size))
        even, odd, cos, sin = x[..., 0::2], x[..., 1::2], np.cos(angle), np.sin(angle)
        turned = np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1)
        return turned.reshape(x.shape).astype(np.float32)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of short, harmless user and assistant messages, as the chat template lays them out."""
        ids = [self._ids["<s>"]]
        for message in messages:
            ids += [self._ids[f"<|{message['role']}|>"], *self.encode(message["content"])]
            ids += [self.end] if message["role"] == "assistant" else []
        return [*ids, self._ids["<|assistant|>"]]

    def encode(self, text: str) -> list[int]:
        """SentencePiece BPE: join the best-scored neighbours first, the leftmost of equals; bytes for what is left."""
        parts: list[str | None] = list(text.replace(" ", SPACE))
        waiting: list[tuple[float, int, int, str]] = []
        after = list(range(1, len(parts) + 1))
        before = list(range(-1, len(parts) - 1))

        def offer(left: int) -> None:
            if left < 0 or after[left] >= len(parts):
                return
            joined = f"{parts[left]}{parts[after[left]]}"
            if (token := self._ids.get(joined)) is not None and self.kinds[token] == NORMAL:
                heapq.heappush(waiting, (-self.scores[token], left, after[left], joined))

        for left in range(len(parts)):
            offer(left)
        while waiting:
            _, left, right, joined = heapq.heappop(waiting)
            if parts[left] is None or parts[right] is None or f"{parts[left]}{parts[right]}" != joined:
                continue
            parts[left], parts[right] = joined, None
            after[left] = after[right]
            if after[right] < len(parts):
                before[after[right]] = left
            offer(before[left])
            offer(left)
        return [token for part in parts if part is not None for token in self._tokens(part)]

    def _tokens(self, part: str) -> list[int]:
        if part in self._ids:
            return [self._ids[part]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in part.encode()]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        raw = b"".join(
            bytes([int(self.pieces[i][1:-1], 16)]) if self.kinds[i] == BYTE else self.pieces[i].encode() for i in ids
        )
        return raw.decode("utf-8", "replace").replace(SPACE, " ")


_LAYER = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
