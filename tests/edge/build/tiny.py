"""A two-layer decoder with random weights, written as a GGUF file, and what it should compute.

``logits`` follows llama.cpp's description of the architecture in plain float64 numpy, on weights
that the ``gguf`` package de-quantised: nothing of ``edge.build`` is used.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

LAYERS, HIDDEN, WIDE, HEADS, KV_HEADS, HEAD = 2, 64, 256, 4, 2, 16
CONTEXT, ROPE_BASE, EPSILON = 64, 10_000.0, 1e-5
K_TYPES = (Type.Q4_K, Type.Q6_K)

# The 256 printable stand-ins for bytes of byte-level BPE (GPT-2), in order of the bytes.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_STAND_INS = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in _PRINTABLE)
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(_STAND_INS[b] for b in range(256)), "ab"]
VOCABULARY = len(TOKENS)


class Tiny:
    """Tensors of a tiny model, with the block types asked for.

    Arguments:
        family: "llama" or "qwen2".
        types: block type by the tensor's last name ("attn_q", "token_embd", ...).
        default: of the other matrices.
        tied: whether the embedding is the head as well.
        rope_factors: whether the file slows the rotation pair by pair, as Llama 3.1's do.
        biases: whether q, k and v have biases; by default Qwen2's have.
    """

    def __init__(
        self,
        family: str = "llama",
        types: dict[str, Type] | None = None,
        default: Type = Type.Q4_1,
        *,
        tied: bool = True,
        rope_factors: bool = False,
        biases: bool | None = None,
    ) -> None:
        self.family = family
        self._rng = np.random.default_rng(7)
        self._types, self._default = types or {}, default
        self.stored: dict[str, tuple[np.ndarray, Type]] = {}
        self.weights: dict[str, np.ndarray] = {}
        self._matrix("token_embd", VOCABULARY, HIDDEN)
        if not tied:
            self._matrix("output", VOCABULARY, HIDDEN)
        self._vector("output_norm.weight", HIDDEN, around=1.0)
        if rope_factors:
            self._vector("rope_freqs.weight", HEAD // 2, around=3.0)
        for layer in range(LAYERS):
            block = f"blk.{layer}"
            widths = {"q": HEADS * HEAD, "k": KV_HEADS * HEAD, "v": KV_HEADS * HEAD}
            for part, width in widths.items():
                self._matrix(f"{block}.attn_{part}", width, HIDDEN)
                if biases if biases is not None else family == "qwen2":
                    self._vector(f"{block}.attn_{part}.bias", width)
            self._matrix(f"{block}.attn_output", HIDDEN, HIDDEN)
            self._matrix(f"{block}.ffn_gate", WIDE, HIDDEN)
            self._matrix(f"{block}.ffn_up", WIDE, HIDDEN)
            self._matrix(f"{block}.ffn_down", HIDDEN, WIDE)
            self._vector(f"{block}.attn_norm.weight", HIDDEN, around=1.0)
            self._vector(f"{block}.ffn_norm.weight", HIDDEN, around=1.0)

    def write(self, path: Path, *, without: tuple[str, ...] = (), **changed: object) -> Path:
        """Write the GGUF file.

        Arguments:
            without: tensors to leave out.
            changed: metadata to replace, dots written as double underscores; ``context_length``.
        """
        writer = gguf.GGUFWriter(path, str(changed.get("general__architecture", self.family)))
        writer.add_block_count(LAYERS)
        writer.add_context_length(int(str(changed.get("context_length", CONTEXT))))
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(WIDE)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_layer_norm_rms_eps(EPSILON)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(str(changed.get("tokenizer__ggml__pre", "smollm")))
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(2)
        writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
        for name, (raw, kind) in self.stored.items():
            if name not in without:
                writer.add_tensor(name, raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def logits(self, ids: list[int]) -> np.ndarray:
        """float64 [len(ids), vocabulary]."""
        x = self.weights["token_embd.weight"][ids]
        for layer in range(LAYERS):
            own = f"blk.{layer}"
            normed = _rms_norm(x, self.weights[f"{own}.attn_norm.weight"])
            x = x + self._linear(self._attention(normed, own), f"{own}.attn_output")
            normed = _rms_norm(x, self.weights[f"{own}.ffn_norm.weight"])
            gate, up = (self._linear(normed, f"{own}.ffn_{part}") for part in ("gate", "up"))
            x = x + self._linear(gate / (1 + np.exp(-gate)) * up, f"{own}.ffn_down")
        head = "output" if "output.weight" in self.weights else "token_embd"
        return self._linear(_rms_norm(x, self.weights["output_norm.weight"]), head)

    def _attention(self, x: np.ndarray, own: str) -> np.ndarray:
        heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        q, k, v = (
            self._linear(x, f"{own}.attn_{part}").reshape(len(x), count, HEAD)
            for part, count in heads.items()
        )
        q, k = self._rotate(q), self._rotate(k)
        future = np.triu(np.full((len(x), len(x)), -np.inf), 1)
        out = np.empty_like(q)
        for head in range(HEADS):
            shared = head * KV_HEADS // HEADS
            scores = q[:, head] @ k[:, shared].T / np.sqrt(HEAD) + future
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = scores / scores.sum(axis=1, keepdims=True) @ v[:, shared]
        return out.reshape(len(x), -1)

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """llama files pair dimensions (2i, 2i + 1); qwen2 files pair (i, i + HEAD / 2)."""
        frequencies = ROPE_BASE ** (-np.arange(0, HEAD, 2) / HEAD)
        frequencies = frequencies / self.weights.get("rope_freqs.weight", 1.0)
        angle = np.outer(np.arange(len(x)), frequencies)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        neighbours = self.family == "llama"
        first = np.s_[..., 0::2] if neighbours else np.s_[..., : HEAD // 2]
        second = np.s_[..., 1::2] if neighbours else np.s_[..., HEAD // 2 :]
        out = np.empty_like(x)
        out[first] = x[first] * cos - x[second] * sin
        out[second] = x[second] * cos + x[first] * sin
        return out

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def _matrix(self, name: str, rows: int, columns: int) -> None:
        kind = self._types.get(name.rsplit(".", 1)[-1], self._default)
        raw = random_rows(self._rng, kind, rows, columns)
        self.stored[f"{name}.weight"] = raw, kind
        self.weights[f"{name}.weight"] = gguf.dequantize(raw, kind).astype(np.float64)

    def _vector(self, name: str, size: int, around: float = 0.0) -> None:
        values = (around + 0.2 * self._rng.normal(size=size)).astype(np.float32)
        self.stored[name] = values, Type.F32
        self.weights[name] = values.astype(np.float64)


def random_rows(rng: np.random.Generator, kind: Type, rows: int, columns: int) -> np.ndarray:
    """A matrix of type ``kind``, its weights of a size that keeps activations near one."""
    if kind not in K_TYPES:
        values = (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)
        return gguf.quantize(values, kind)
    # gguf cannot quantise to these: random codes and scales, under a small overall scale.
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    small = np.array([1e-4], np.float16).view(np.uint8)
    for offset in (0, 2) if kind is Type.Q4_K else (size - 2,):
        raw[..., offset : offset + 2] = small
    return raw.reshape(rows, -1)


def _rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON) * weight
