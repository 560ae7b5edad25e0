"""Which peers the engine is compared with, pinned, and how their models come about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Child, Environment
from benchmarks.peers.environment import cache_dir, run_whole

_XLLAMACPP = "2026.10.11549"
_LLAMA_CPP_PYTHON = "0.3.36"
_GENAI = "0.18.0"
_GENAI_BUILD_S = 1800.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """A running engine's name for rows, and how to start another child of it."""

    name: str
    start: Callable[[], Child]


def llama_cpp_wheel(gguf: Path, say: Say) -> Peer:
    """The wheel that PyPI gives to everybody: compiled for AVX2 at most.

    Raises:
        PeerUnavailable: it cannot be installed.
    """
    python = Environment("xllamacpp", (f"xllamacpp=={_XLLAMACPP}",)).python(say)
    return _peer(f"llama.cpp, wheel xllamacpp {_XLLAMACPP}", "xllamacpp", gguf, python)


def llama_cpp_native(gguf: Path, say: Say) -> Peer:
    """llama.cpp compiled here with every instruction that this processor has.

    Raises:
        PeerUnavailable: there is no compiler, or it takes more than half an hour.
    """
    python = Environment(
        "llama-cpp-native",
        (f"llama-cpp-python=={_LLAMA_CPP_PYTHON}",),
        pip_arguments=("--no-binary", "llama-cpp-python"),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
        limit_s=1800.0,
    ).python(say)
    return _peer(
        f"llama.cpp, llama-cpp-python {_LLAMA_CPP_PYTHON} compiled here with GGML_NATIVE",
        "llama_cpp_native",
        gguf,
        python,
    )


def genai_int4(gguf: Path, say: Say) -> Peer:
    """onnxruntime-genai with the int4 model that its own builder makes of the same weights.

    Raises:
        PeerUnavailable: it cannot be installed, or its builder fails.
    """
    python = Environment(
        "onnxruntime-genai",
        (
            f"onnxruntime-genai=={_GENAI}",
            "onnxruntime==1.32.0",
            "onnx==1.23.2",
            "onnx-ir",
            "torch==2.13.0",
            "transformers==5.23.0",  # what the builder of this release imports
            "accelerate==1.12.0",
            "gguf==0.19.0",
        ),
        limit_s=1800.0,
    ).python(say)
    model = cache_dir() / f"genai-{_GENAI}-{gguf.stem}"
    if not model.is_dir():
        say("building the int4 model of onnxruntime-genai")
        _build_genai(gguf, model, python)
    return _peer(f"onnxruntime-genai {_GENAI} int4 (lossy)", "genai", model, python)


def _build_genai(gguf: Path, model: Path, python: Path) -> None:
    run_whole(
        [str(python), "-m", "benchmarks.peers.genai_build", str(gguf), str(model)],
        what="the builder of onnxruntime-genai",
        limit_s=_GENAI_BUILD_S,
        folder=Path(__file__).resolve().parents[2],
    )


def _peer(name: str, module: str, model: Path, python: Path) -> Peer:
    def start() -> Child:
        return Child(f"benchmarks.peers.{module}", model, python=python)

    with start() as child:
        build = str(child.ask("about")["build"])
    return Peer(f"{name} ({build})", start)
