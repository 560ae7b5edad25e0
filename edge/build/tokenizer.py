"""A Hugging Face ``tokenizer.json`` from the vocabulary inside a GGUF file.

A GGUF file names its pre-tokenizer (``tokenizer.ggml.pre``) but does not spell it out. Each one
known here is the composition that splits text as llama.cpp's regular expressions of that name do;
the tests hold the two to the same tokens. Nothing is added around a text: no start token (chat
templates write their own), no prefix space.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cascade.errors import InvalidInput
from edge.build.gguf_file import GgufFile

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
_EOS_KEY = "tokenizer.ggml.eos_token_id"


class _TokenType(IntEnum):
    """``tokenizer.ggml.token_type``; the other values are plain or unused vocabulary."""

    CONTROL = 3
    USER_DEFINED = 4


def tokenizer_json(gguf: GgufFile) -> str:
    """The tokenizer, in the format of the ``tokenizers`` library.

    Raises:
        InvalidInput: the file's tokenizer is not a byte-level BPE with a known pre-tokenizer.
    """
    kind = gguf.value("tokenizer.ggml.model", str)
    pre = gguf.metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _SPLITTERS:
        raise InvalidInput(
            "gguf",
            f"{gguf.path.name} has a '{kind}' tokenizer with pre-tokenizer '{pre}'; supported: "
            f"'gpt2' with {', '.join(sorted(_SPLITTERS))}",
        )
    tokens = gguf.values("tokenizer.ggml.tokens", str)
    types = gguf.values("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise InvalidInput("gguf", f"{gguf.path.name} has {len(tokens)} tokens, {len(types)} types")
    merges = [_pair(gguf, merge) for merge in gguf.values("tokenizer.ggml.merges", str)]
    try:
        model = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)}, merges=merges
        )
    except Exception as problem:  # tokenizers raises bare Exception
        raise InvalidInput(
            "gguf", f"{gguf.path.name}: its vocabulary is damaged ({problem}); fetch it again"
        ) from None
    tokenizer = Tokenizer(model)
    _SPLITTERS[str(pre)](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(tokens, types, _TokenType.CONTROL))
    tokenizer.add_tokens(_added(tokens, types, _TokenType.USER_DEFINED))
    written = json.loads(tokenizer.to_str(pretty=False))
    # As "left right", which is read in three quarters of the time of ["left", "right"]; in a
    # byte-level vocabulary no token has a blank in it.
    written["model"]["merges"] = [" ".join(pair) for pair in written["model"]["merges"]]
    return json.dumps(written, ensure_ascii=False, separators=(",", ":"))


def stop_token_ids(gguf: GgufFile) -> tuple[int, ...]:
    """Ids that end an answer: the end-of-sequence token and, if there is one, ``<|endoftext|>``."""
    tokens = gguf.values("tokenizer.ggml.tokens", str)
    end = gguf.value(_EOS_KEY, int)
    if not 0 <= end < len(tokens):
        raise InvalidInput("gguf", f"{gguf.path.name}: '{_EOS_KEY}' is {end}, not a token")
    return tuple(sorted({end, *(i for i, token in enumerate(tokens) if token == "<|endoftext|>")}))


def chat_template(gguf: GgufFile) -> str:
    """The Jinja template that turns messages into a prompt; raises ``InvalidInput`` without one."""
    return gguf.value(CHAT_TEMPLATE_KEY, str)


def _pair(gguf: GgufFile, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise InvalidInput("gguf", f"{gguf.path.name}: merge {merge!r} is not a pair")
    return left, right


def _added(tokens: list[str], types: list[int], wanted: _TokenType) -> list[AddedToken]:
    special = wanted is _TokenType.CONTROL
    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind == wanted
    ]


def _smollm(tokenizer: Tokenizer) -> None:
    """Every digit by itself, then GPT-2's split."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2(tokenizer: Tokenizer) -> None:
    """Text in NFC, then Qwen2's split."""
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_SPLITTERS: dict[str, Callable[[Tokenizer], None]] = {"smollm": _smollm, "qwen2": _qwen2}
