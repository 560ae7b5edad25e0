"""Measuring one point of a machine's profile (``edge.profile``).

A point is measured in a process of its own, ``python -m edge.bench BUNDLE THREADS [--quick]``, so
that its memory is its own and threads of one do not disturb another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cascade import home
from cascade.errors import BundleError, CascadeError
from cascade.signing import TrustStore
from edge.bundle import Bundle
from edge.memory import memory
from edge.model import open_decoder
from edge.profile import Point, point_from_json

_PROMPT_TOKENS, _QUICK_PROMPT_TOKENS = 128, 32
_DECODE_TOKENS, _QUICK_DECODE_TOKENS = 32, 8
_REPEATS, _QUICK_REPEATS = 5, 2
_FIRST_TOKENS = 16


def measure_apart(bundle: Path, *, threads: int, quick: bool = False) -> Point:
    """Measure one point in a process of its own.

    Raises:
        BundleError: the bundle cannot be used, or the process failed; its last line says why.
    """
    command = [sys.executable, "-m", "edge.bench", str(bundle), str(threads)]
    command += ["--quick"] if quick else []
    # The child finds the same packages wherever it is started from.
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        try:
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        raise BundleError(f"{bundle}: {lines[-1] if lines else 'the measurement ended early'}")
    return point_from_json(json.loads(output), "point")


def measure_here(bundle: Path, *, threads: int, quick: bool = False) -> Point:
    """Measure one point in this process, which should have done nothing before.

    Raises:
        NotFound, BundleError: the bundle must not or cannot be used.
    """
    verified = Bundle.open(bundle, TrustStore(home.trust_dir()))
    manifest = verified.manifest
    started = time.perf_counter()
    decoder = open_decoder(verified, threads=threads)
    loaded_at = time.perf_counter()
    prompt = _PROMPT_TOKENS if not quick else _QUICK_PROMPT_TOKENS
    steps = _DECODE_TOKENS if not quick else _QUICK_DECODE_TOKENS
    # Which tokens makes no difference to the time; they only have to exist.
    tokens = [
        (7 * i) % manifest.vocab_size for i in range(min(prompt, manifest.context_tokens // 2))
    ]
    decoder.read(tokens[:_FIRST_TOKENS])
    first_token_at = time.perf_counter()
    prefill: list[float] = []
    decode: list[float] = []
    cpu: list[float] = []
    for _ in range(_REPEATS if not quick else _QUICK_REPEATS):
        decoder.forget()
        begun = time.perf_counter()
        row = decoder.read(tokens)
        prefill.append(len(tokens) / (time.perf_counter() - begun))
        begun, cpu_begun = time.perf_counter(), time.process_time()
        for _ in range(steps):
            row = decoder.push(int(row.argmax()))
        decode.append(steps / (time.perf_counter() - begun))
        cpu.append((time.process_time() - cpu_begun) / steps)
    used = memory()
    return Point(
        bundle=manifest.name,
        quantisation=manifest.quantisation,
        threads=threads,
        load_s=loaded_at - started,
        first_token_s=first_token_at - loaded_at,
        prefill_tokens_per_s=statistics.median(prefill),
        decode_tokens_per_s=statistics.median(decode),
        cpu_s_per_token=statistics.median(cpu),
        peak_bytes=used.peak,
        anonymous_bytes=used.anonymous,
    )


def _main(arguments: Sequence[str]) -> int:
    bundle, threads, *options = arguments
    try:
        point = measure_here(Path(bundle), threads=int(threads), quick="--quick" in options)
    except CascadeError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    print(json.dumps(dataclasses.asdict(point)))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
