"""onnxruntime-genai on a model that its own builder made:
``python -m benchmarks.peers.genai FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import onnxruntime_genai as genai

from benchmarks.child import Fields, serve, timed


def open_model() -> dict[str, Callable[..., Fields]]:
    """One thread that does not spin, greedy."""
    config = genai.Config(sys.argv[1])
    config.overlay(
        '{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1, '
        '"inter_op_num_threads": 1, "session.intra_op.allow_spinning": "0"}}}}'
    )
    model = genai.Model(config)

    def start() -> genai.Generator:
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=512, min_length=512, do_sample=False)
        return genai.Generator(model, params)

    def write(generator: genai.Generator, count: int) -> None:
        for _ in range(count):
            generator.generate_next_token()

    def prefill(tokens: list[int]) -> Fields:
        generator = start()
        return timed(lambda: generator.append_tokens(tokens))

    def decode(tokens: list[int], count: int) -> Fields:
        generator = start()
        generator.append_tokens(tokens)
        generator.generate_next_token()  # takes the prompt's logits; computes nothing yet
        return timed(lambda: write(generator, count))

    return {
        "prefill": prefill,
        "decode": decode,
        "about": lambda: {"build": f"onnxruntime-genai {genai.__version__}"},
    }


if __name__ == "__main__":
    serve(open_model)
