"""llama.cpp as the wheel ``xllamacpp`` brings it: ``python -m benchmarks.peers.xllamacpp GGUF``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import xllamacpp

from benchmarks.child import Fields, serve, timed


def open_server() -> dict[str, Callable[..., Fields]]:
    """One slot, one thread, the prompt cache on for decoding only."""
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def complete(tokens: list[int], count: int, cached: bool) -> None:
        reply = server.handle_completions(
            {
                "prompt": tokens,
                "n_predict": count,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": cached,
            }
        )
        if reply["usage"]["completion_tokens"] != count:
            raise RuntimeError(f"llama.cpp wrote {reply['usage']} instead of {count} tokens")

    def prefill(tokens: list[int]) -> Fields:
        return timed(lambda: complete(tokens, 1, False))

    def decode(tokens: list[int], count: int) -> Fields:
        complete(tokens, 1, True)
        return timed(lambda: complete(tokens, count, True))

    return {
        "prefill": prefill,
        "decode": decode,
        "about": lambda: {"build": _features(xllamacpp.get_system_info())},
    }


def _features(info: str) -> str:
    """``"CPU : SSE3 = 1 | AVX = 0 …"`` to the names of what is on."""
    entries = (entry.rpartition(":")[2].split("=") for entry in info.split("|") if "=" in entry)
    return " ".join(name.strip() for name, value in entries if value.strip() == "1")


if __name__ == "__main__":
    serve(open_server)
