"""Makes the int4 model of onnxruntime-genai from the weights of a GGUF file:
``python -m benchmarks.peers.genai_build GGUF OUT``. transformers de-quantises, genai's own builder
quantises again, with the defaults of its command line for the CPU."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime_genai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Write OUT aside, then rename it."""
    gguf, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".genai-") as aside:
        source, made = Path(aside) / "source", Path(aside) / "made"
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # transformers calls a model that came out of a GGUF file quantised and does not save it.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        plain = type(model)(model.config)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(source)
        builder = Path(onnxruntime_genai.__file__).parent / "models" / "builder.py"
        options = ("-p", "int4", "-e", "cpu", "-c", str(Path(aside) / "cache"))
        command = [sys.executable, str(builder), "-i", str(source), "-o", str(made), *options]
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        if done.returncode:  # its own last line says why, and stays the last
            sys.exit(done.returncode)
        made.rename(out)


if __name__ == "__main__":
    main()
