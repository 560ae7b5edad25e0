"""Runs a bundle's decoder graph as its contract says, with onnxruntime alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Graph:
    """One sequence over one key-value buffer, bound as past and as present."""

    def __init__(self, bundle: Path, max_len: int = 160) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(
            str(bundle / "decode.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._buffers = {
            value.name: (1, value.shape[1], max_len, value.shape[3])
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self._adapter = {
            value.name: [size if isinstance(size, int) else 0 for size in value.shape]
            for value in self.session.get_inputs()
            if value.name.startswith("lora.")
        }
        self.restart()

    def restart(self) -> None:
        # What lies beyond the sequence must not matter: fill it with what would be noticed.
        self._past = {
            name: ort.OrtValue.ortvalue_from_numpy(np.full(shape, 1e3, np.float32))
            for name, shape in self._buffers.items()
        }
        self._length = 0

    def go_back(self, length: int) -> None:
        """Keep the first ``length`` tokens of the sequence."""
        self._length = length

    def extend(self, ids: Sequence[int], positions: Sequence[int] | None = None) -> np.ndarray:
        """Logits [P, vocabulary] at ``positions`` (all of them by default) of these ``ids``."""
        self._length += len(ids)
        at = range(self._length - len(ids), self._length)
        positions = range(len(ids)) if positions is None else positions
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        binding.bind_cpu_input("seqlens_k", np.array([self._length - 1], np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(self._length, np.int32))
        binding.bind_cpu_input("logit_positions", np.array(positions, np.int64))
        binding.bind_cpu_input("position_ids", np.array([at], np.int64))
        binding.bind_cpu_input("attention_bias", np.zeros((1, 1, len(ids), 1), np.float32))
        for name, shape in self._adapter.items():
            binding.bind_cpu_input(name, np.zeros(shape, np.float32))
        for name, buffer in self._past.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()

    def extend_in(self, chunks: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits at every position of the chunks, run one after the other from the start."""
        self.restart()
        return np.concatenate([self.extend(chunk) for chunk in chunks])
