"""llama.cpp compiled for this machine by ``llama-cpp-python``:
``python -m benchmarks.peers.llama_cpp_native GGUF``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import llama_cpp
import numpy as np

from benchmarks.child import Fields, serve, timed


def open_model() -> dict[str, Callable[..., Fields]]:
    """One thread; greedy by numpy, which is less work than llama.cpp's own samplers."""
    model = llama_cpp.Llama(
        sys.argv[1], n_ctx=1024, n_threads=1, n_threads_batch=1, n_batch=512, verbose=False
    )

    def read(tokens: list[int]) -> None:
        model.reset()
        model.eval(tokens)

    def write(count: int) -> None:
        for _ in range(count):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            row = np.ctypeslib.as_array(logits, (model.n_vocab(),))
            model.eval([int(row.argmax())])

    def decode(tokens: list[int], count: int) -> Fields:
        read(tokens)
        return timed(lambda: write(count))

    def about() -> Fields:
        info = llama_cpp.llama_print_system_info().decode()
        entries = (part.rpartition(":")[2].split("=") for part in info.split("|") if "=" in part)
        on = (name.strip() for name, value in entries if value.strip() == "1")
        return {"build": " ".join(on)}

    return {
        "prefill": lambda tokens: timed(lambda: read(tokens)),
        "decode": decode,
        "about": about,
    }


if __name__ == "__main__":
    serve(open_model)
