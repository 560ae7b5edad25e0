"""How far the bundle is from its source: divergence from torch on the de-quantised weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.edge.subject import Subject, build
from benchmarks.edge.texts import CHAT, PASSAGES
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.signing import TrustStore
from edge import Bundle, Message
from edge.decoder import Decoder, TreeNode
from edge.text import TextCodec

_QUICK_TOKENS = 48
_RESAMPLES = 1000

Floats = NDArray[np.float64]


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """KL(source ‖ bundle) in nats and the share of equal first choices, over all positions."""
    os.environ["TQDM_DISABLE"] = "1"  # transformers draws a bar for every tensor
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        reason = "needs torch and transformers: pip install 'edge-cloud-cascade[build]'"
        for mode, reach in (("int8 activations", 0.006), ("exact mode", 1e-6)):
            yield run.row(f"KL to the source, {mode}", None, "nats", reason, reach=reach)
        yield run.row(
            "top-1 agreement, int8 activations", None, "share", reason, reach=0.95, sense=">="
        )
        return
    trust = TrustStore(subject.trust)
    device = Bundle.open(subject.bundle, trust)
    run.say("building the exact bundle")
    exact = Bundle.open(
        build(subject.gguf, Path(subject.folder.name) / "exact", subject.key, exact=True), trust
    )
    codec = TextCodec(device)
    chat = tuple(Message(role, text) for role, text in CHAT)
    texts = [*(codec.encode_plain(passage) for passage in PASSAGES), codec.encode(chat)]
    if run.quick:
        texts = [texts[0][:_QUICK_TOKENS]]
    run.say("torch reads")
    expected = _torch_rows(subject.gguf, texts)
    n = sum(len(rows) for rows in expected)
    how = (
        f"{n} positions of {len(texts)} texts of several kinds; torch float32 on the weights as "
        "transformers de-quantises the GGUF file, ours in wide passes; interval by bootstrap over "
        "positions, as if they were independent"
    )
    for bundle, mode, reach in (
        (device, "int8 activations", 0.006),
        (exact, "exact mode", 1e-6),
    ):
        run.say(f"{mode}: the bundle reads")
        divergences, agreements = _compare(expected, _bundle_rows(bundle, texts))
        yield run.row(f"KL to the source, {mode}", _mean(divergences), "nats", how, reach=reach)
        yield run.row(
            f"top-1 agreement, {mode}",
            _mean(agreements),
            "share",
            how,
            reach=0.95 if bundle is device else None,
            sense=">=",
        )


def _torch_rows(gguf: Path, texts: list[list[int]]) -> list[Floats]:
    """Log probabilities [T − 1, vocabulary] of each text: after every token but the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        return [_log_softmax(model(torch.tensor([text])).logits[0, 1:].numpy()) for text in texts]


def _bundle_rows(bundle: Bundle, texts: list[list[int]]) -> Iterator[Floats]:
    """The same by our runtime: a text is a tree without branches."""
    decoder = Decoder(bundle.path, bundle.manifest)
    for text in texts:
        chain = [TreeNode(index - 1, token) for index, token in enumerate(text[1:])]
        yield _log_softmax(decoder.read_tree(text[:1], chain))


def _compare(expected: list[Floats], actual: Iterator[Floats]) -> tuple[Floats, Floats]:
    divergences, agreements = [], []
    for ours, theirs in zip(actual, expected, strict=True):
        divergences.append((np.exp(theirs) * (theirs - ours)).sum(axis=-1))
        agreements.append(theirs.argmax(axis=-1) == ours.argmax(axis=-1))
    return np.concatenate(divergences), np.concatenate(agreements).astype(np.float64)


def _log_softmax(logits: NDArray[np.float32]) -> Floats:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    shifted: Floats = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return shifted


def _mean(values: Floats) -> Estimate:
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), (0.025, 0.975))
    return Estimate(float(values.mean()), len(values), (float(low), float(high)))
