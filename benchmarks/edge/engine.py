"""Our engine as a child: ``python -m benchmarks.edge.engine BUNDLE TRUST``. It is loaded by the
first request that needs it, so that loading can be timed in a fresh process."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.child import Fields, serve, timed

if TYPE_CHECKING:
    from cascade.local import LocalAnswer
    from cascade.signals import ScoreMode
    from edge import Bundle, OnnxModel
    from edge.decoder import Row
    from edge.measure import RowStats

_RANK = 8


def main() -> None:
    """Serve until standard input ends."""
    engine = Engine(Path(sys.argv[1]), Path(sys.argv[2]))
    requests = (
        engine.imported,
        engine.first_token,
        engine.memory,
        engine.encode,
        engine.prefill,
        engine.decode,
        engine.adapters,
        engine.use_adapter,
        engine.overhead,
        engine.choose,
        engine.read_and_write,
    )
    handlers: dict[str, Callable[..., Fields]] = {each.__name__: each for each in requests}
    serve(lambda: handlers)


class Engine:
    """What the parent may ask for; every method answers with a JSON object."""

    def __init__(self, bundle: Path, trust: Path) -> None:
        self._path, self._trust = bundle, trust
        self._adapters = {"none": ""}

    def imported(self) -> Fields:
        """Import the SDK, and what it takes without any model."""
        return {**timed(lambda: importlib.import_module("edge")), **self.memory()}

    def first_token(self, text: str) -> Fields:
        """From nothing loaded to the first token of an answer to ``text``."""
        bundle = timed(lambda: self._bundle)
        load = timed(lambda: self._model)
        token = timed(lambda: self._model.generate(text, max_tokens=1))
        return {"verify": bundle, "load": load, "token": token}

    def memory(self) -> Fields:
        """Of this process, in bytes."""
        from edge.memory import memory

        now = memory()
        return {"resident": now.resident, "anonymous": now.anonymous, "peak": now.peak}

    def encode(self, text: str, tokens: int = 0) -> Fields:
        """A beginning of ``text`` of about so many tokens (all of it for 0), and its ids."""
        from edge.text import TextCodec

        codec = TextCodec(self._bundle)
        if tokens:
            text = codec.decode(codec.encode_plain(text)[:tokens])
        return {"text": text, "tokens": codec.encode_plain(text)}

    def prefill(self, text: str) -> Fields:
        """Read a prompt of which nothing is known yet."""
        self._model.forget_prefix()
        return timed(lambda: self._model.generate(text, max_tokens=1))

    def decode(self, text: str, count: int) -> Fields:
        """Write so many tokens after a prompt that is in the cache."""
        self._model.generate(text, max_tokens=1)
        return timed(lambda: self._write(text, count))

    def adapters(self) -> Fields:
        """Load two adapters of rank 8: on q and v, and on all linears."""
        import numpy as np

        from edge.adapter import Adapter, AdapterManifest, LoraPair

        generator = np.random.default_rng(0)
        manifest = self._bundle.manifest
        pairs = {}
        for slot in manifest.adapter_slots:
            for module, width in zip(slot.modules, slot.widths, strict=True):
                a = generator.standard_normal((slot.columns, _RANK), np.float32)
                # Too small to change the text: all sides write the same.
                b = generator.standard_normal((_RANK, width), np.float32) * np.float32(1e-6)
                pairs[module] = LoraPair(a, b)
        wanted = {
            "qv": {
                name: pair for name, pair in pairs.items() if name.endswith(("q_proj", "v_proj"))
            },
            "all": pairs,
        }
        for name, chosen in wanted.items():
            described = AdapterManifest(name, 1, "", manifest.base_digest, "Apache-2.0", "0" * 64)
            self._adapters[name] = self._model.load_adapter(Adapter(described, name, chosen))
        return {name: len(chosen) for name, chosen in wanted.items()}

    def use_adapter(self, name: str) -> Fields:
        """Switch to ``"none"``, ``"qv"`` or ``"all"``."""
        self._model.use_adapter(self._adapters[name])
        return {}

    def overhead(self, text: str, count: int) -> Fields:
        """CPU seconds of writing ``count`` tokens, and among them of the graph's runs alone, and of
        measuring the signals."""
        import onnxruntime

        import edge.generate
        from edge.measure import row_stats

        inside = {"runs_s": 0.0, "signals_s": 0.0}
        run = onnxruntime.InferenceSession.run_with_iobinding

        def timed_run(session: object, *arguments: object) -> None:
            started = time.process_time()
            run(session, *arguments)
            inside["runs_s"] += time.process_time() - started

        def timed_stats(logits: Row) -> RowStats:
            started = time.process_time()
            stats = row_stats(logits)
            inside["signals_s"] += time.process_time() - started
            return stats

        self._model.generate(text, max_tokens=1)
        onnxruntime.InferenceSession.run_with_iobinding = timed_run
        edge.generate.row_stats = timed_stats  # type: ignore[attr-defined]
        try:
            total = timed(lambda: self._write(text, count))
        finally:
            onnxruntime.InferenceSession.run_with_iobinding = run
            edge.generate.row_stats = row_stats  # type: ignore[attr-defined]
        return {"total_s": total["cpu_s"], **inside}

    def choose(self, text: str, options: list[str], mode: ScoreMode, prior: str | None) -> Fields:
        """Choose, of a prompt of which nothing is known yet; with ``prior``, the prompt of an empty
        input, its scores are known, as after a task's first question."""
        choose = partial(self._model.choose, option_prefix=" ", mode=mode, options=tuple(options))
        if prior is not None:
            choose = partial(choose, prior_prompt=prior)
            choose(text)
        self._model.forget_prefix()
        answers: list[LocalAnswer] = []
        took = timed(lambda: answers.append(choose(text)))
        scores = answers[0].options
        assert scores is not None
        bounds = scores.bounds
        return {
            **took,
            "best": scores.best,
            "lower": bounds.lower,
            "upper": bounds.upper,
            "probabilities": scores.probabilities.tolist(),
        }

    def read_and_write(self, text: str, count: int) -> Fields:
        """Read a prompt of which nothing is known yet, and run ``count`` decode steps."""
        self._model.forget_prefix()
        took = timed(lambda: self._write(text, count + 1))
        return {**took, "prompt_tokens": self._model.count_tokens(text)}

    @cached_property
    def _bundle(self) -> Bundle:
        from cascade.signing import TrustStore
        from edge import Bundle

        return Bundle.open(self._path, TrustStore(self._trust))

    @cached_property
    def _model(self) -> OnnxModel:
        from edge import OnnxModel

        return OnnxModel(self._bundle)

    def _write(self, text: str, count: int) -> None:
        answer = self._model.generate(text, max_tokens=count)
        if answer.tokens != count:
            raise RuntimeError(f"the answer ended after {answer.tokens} of {count} tokens")


if __name__ == "__main__":
    main()
