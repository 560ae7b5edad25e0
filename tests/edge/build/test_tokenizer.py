"""The bundle's tokenizer gives llama.cpp's tokens, and its text comes back."""

from __future__ import annotations

import io
import json
import random
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from cascade.errors import InvalidInput

from .tiny import Tiny

# Pieces at which splitting rules differ, to be strung together at random.
_PIECES = [
    *("a", "Z", "é", "ß", "日本", "ไทย", "हिन्दी", "עברית", "ǅ", "ʰ", "ſ", "e\u0301"),
    *("🙂", "👩‍👩‍👧", "\U0001f1e9\U0001f1ea", "\ufffd", "\x00", "\x7f"),
    *("1", "23", "456", "４５", "½", "²", "٣", "𝟙", "Ⅷ"),
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u200b"),
    *(".", "...", "!?", "_", "-", "(", ")", "{", "==", "#", "<", "|", "'s", "'LL", "n't", "'ſ"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "user", "assistant"),
]
_CHAT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"


@pytest.fixture(scope="module")
def tokenizer(device_bundle: Path) -> Tokenizer:
    return Tokenizer.from_file(str(device_bundle / "tokenizer.json"))


@pytest.fixture(scope="module")
def texts(model_path) -> list[str]:
    """Sentences that people wrote, strings that nobody would, code, and chats."""
    sentences = _sentences(model_path("vader-sentences"))[::16]
    chosen = random.Random(0)
    strings = ["".join(chosen.choices(_PIECES, k=chosen.randint(1, 14))) for _ in range(1000)]
    code = Path(__file__).read_text(encoding="utf-8").split("\n\n")
    chats = [_CHAT.format(sentence) for sentence in sentences[:100]]
    return ["", *sentences, *strings, *code, *chats]


def _sentences(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as outer:
        inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        file = outer.extractfile(inner)
        assert file is not None
        with tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
            rated = [
                archive.extractfile(member).read().decode("utf-8")
                for member in archive.getmembers()
                if Path(member.name).name.endswith("_GroundTruth.txt")
                and not Path(member.name).name.startswith(".")
            ]
    return [line.split("\t", 2)[2] for text in rated for line in text.splitlines() if line]


class LlamaCpp:
    """llama.cpp's own server, asked for tokens over the loopback."""

    def __init__(self, gguf: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 256, 1, 1
        params.warmup, params.verbosity = False, 0
        self._server = xllamacpp.Server(params)

    def tokens(self, text: str) -> list[int]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            json.dumps({"content": text, "add_special": False, "parse_special": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


@pytest.fixture(scope="module")
def llama_cpp(smollm2_gguf: Path) -> Iterator[LlamaCpp]:
    return LlamaCpp(smollm2_gguf)


@pytest.mark.models
def test_tokens_are_those_of_llama_cpp(tokenizer, llama_cpp, texts):
    assert len(texts) >= 2000
    different = [text for text in texts if tokenizer.encode(text).ids != llama_cpp.tokens(text)]
    assert different == []


@pytest.mark.models
def test_decoding_gives_the_text_back(tokenizer, texts):
    different = [
        text
        for text in texts
        if tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) != text
    ]
    assert different == []


@pytest.mark.models
def test_nothing_is_put_around_a_text(tokenizer):
    assert tokenizer.encode("<|im_start|>").ids == [1]
    assert tokenizer.encode("").ids == []
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""


def test_a_qwen2_split_keeps_line_ends_with_punctuation(build, tmp_path):
    gguf = Tiny("qwen2").write(tmp_path / "tiny.gguf", tokenizer__ggml__pre="qwen2")
    tokenizer = Tokenizer.from_file(str(build(gguf, tmp_path / "out") / "tokenizer.json"))
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("It's 42!\n\n a")]
    assert pieces == ["It", "'s", "Ġ", "4", "2", "!ĊĊ", "Ġa"]


def test_an_unknown_split_is_refused_with_those_that_work(build, tmp_path):
    gguf = Tiny().write(tmp_path / "tiny.gguf", tokenizer__ggml__pre="viking")
    with pytest.raises(InvalidInput, match=r"pre-tokenizer 'viking'; supported: .*qwen2, smollm"):
        build(gguf, tmp_path / "out")
