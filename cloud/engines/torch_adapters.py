"""LoRA adapters of a Hugging Face model in memory: PEFT holds them and switches between them.

An adapter is a folder, of either kind: as PEFT's ``save_pretrained`` writes it, or signed as
devices take it (``edge.adapter``). Only plain LoRA of linears is taken. Some of what else PEFT
knows changes the base, and with it the answers of requests that never asked for the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import torch
from transformers.pytorch_utils import Conv1D

from cascade.errors import BundleError, InvalidInput, NotFound
from cascade.signing import TrustStore
from cloud.errors import ModelUnusable
from edge import Adapter
from edge.adapter import MANIFEST, LoraPair
from edge.peft import read_peft
from edge.slots import linear_name

_PREFIX: Final = "base_model.model."


class TorchAdapters:
    """The adapters of one model, of which those that were used last are in memory. Not thread-safe.

    Arguments:
        model: the base; its linears are wrapped in place, and without an adapter they compute what
            they did before.
        folders: by the names that requests know them by.
        most: in memory at one time, ≥ 1.
        trust: publisher keys that this machine accepts, for signed folders.
    """

    def __init__(
        self, model: Any, folders: Mapping[str, Path], *, most: int, trust: TrustStore
    ) -> None:
        self._model = model
        self._linears = _linears(model)
        self._folders = dict(folders)
        # PEFT's own names: a module's may hold no dot.
        self._known_as = {name: f"adapter{place}" for place, name in enumerate(self._folders)}
        self._most = most
        self._trust = trust
        self._peft: Any = None
        self._resident: list[str] = []  # the one that was used last at the end
        self.active = ""
        """The adapter that the model computes with; empty for the base alone."""

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of those in memory, the one that was used last at the end."""
        return tuple(self._resident)

    def check(self) -> None:
        """Load every adapter once, and go back to the base.

        Raises:
            ModelUnusable: one is missing, damaged, of an unknown publisher, or not for this model.
        """
        for name in self._folders:
            self.use(name)
        self.use("")

    def add(self, name: str, folder: Path) -> None:
        """Take one more adapter, and load it once; the model computes without any then.

        Raises:
            ModelUnusable: see ``check``; it is not taken then.
        """
        self._folders[name] = folder
        self._known_as[name] = f"adapter{len(self._known_as)}"
        self.use("")
        try:
            self.use(name)
        except ModelUnusable:
            del self._folders[name], self._known_as[name]
            raise
        finally:
            self.use("")

    def use(self, name: str) -> None:
        """Compute with an adapter from now on; "" goes back to the base.

        Raises:
            KeyError: there is none of this name.
            ModelUnusable: see ``check``; ``active`` says what the model computes with then.
        """
        if name == self.active:
            return
        if name and name not in self._resident:
            self._load(name)
        if not name:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(self._known_as[name])
            self._resident.remove(name)
            self._resident.append(name)
        self.active = name

    def _load(self, name: str) -> None:
        adapter = _read(name, self._folders[name], self._linears, self._trust)
        while len(self._resident) >= self._most:
            self._drop(self._resident[0])
        internal = self._known_as[name]
        try:
            if self._peft is None:
                self._peft = peft.PeftModel(
                    self._model, adapter.config, internal, low_cpu_mem_usage=True
                )
            else:
                self._peft.add_adapter(internal, adapter.config, low_cpu_mem_usage=True)
            self._resident.append(name)
            loaded = peft.set_peft_model_state_dict(
                self._peft, adapter.tensors, internal, low_cpu_mem_usage=True
            )
        except (ValueError, RuntimeError) as problem:
            self._forget(name)
            reason = str(problem).strip().splitlines()[-1].strip()
            raise ModelUnusable(f"adapter {name}: is for another model: {reason}") from None
        missing = [each for each in loaded.missing_keys if f".{internal}." in each]
        if missing or loaded.unexpected_keys:
            self._forget(name)
            at = min(missing or loaded.unexpected_keys).replace(f".{internal}", "")
            what = "lacks" if missing else "is for another model; it has"
            raise ModelUnusable(f"adapter {name}: {what} {at.removeprefix(_PREFIX)}")
        self._peft.eval()  # new layers begin as for training, with dropout

    def _forget(self, name: str) -> None:
        if name in self._resident:
            self._drop(name)

    def _drop(self, name: str) -> None:
        if name == self.active:
            self.use("")
        self._peft.delete_adapter(self._known_as[name])
        self._resident.remove(name)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Where a linear of the base is, its widths, and whether its matrix is the other way round."""

    path: str
    inputs: int
    outputs: int
    turned: bool = False


@dataclass(frozen=True, slots=True)
class _Readable:
    """An adapter as PEFT takes it: its configuration, and float32 tensors by PEFT's names."""

    config: Any
    tensors: dict[str, torch.Tensor]


def _linears(model: Any) -> dict[str, _Linear]:
    """By the name that adapters know them by (``edge.slots.linear_name``)."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[linear_name(path)] = _Linear(path, module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            inputs, outputs = map(int, module.weight.shape)
            found[linear_name(path)] = _Linear(path, inputs, outputs, turned=True)
    return found


def _read(name: str, folder: Path, linears: Mapping[str, _Linear], trust: TrustStore) -> _Readable:
    try:
        if (folder / MANIFEST).is_file():
            opened = Adapter.open(folder, trust)
            if opened.head is not None:
                raise ModelUnusable(
                    f"adapter {name}: has a head for a closed set of answers, which transformers "
                    "cannot apply; serve it with the engine onnx"
                )
            _check(name, opened.pairs, linears)
            return _of_pairs(opened.pairs, linears)
        # Refuses what is no plain LoRA; what PEFT makes of the rest is PEFT's business.
        _check(name, read_peft(folder), linears)
    except (BundleError, NotFound) as problem:
        raise ModelUnusable(f"adapter {name}: {problem}") from None
    except InvalidInput as problem:
        raise ModelUnusable(f"adapter {name}: {folder}: {problem.problem}") from None
    config = peft.PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    tensors = peft.load_peft_weights(str(folder), device="cpu")
    return _Readable(config, {at: tensor.float() for at, tensor in tensors.items()})


def _of_pairs(pairs: Mapping[str, LoraPair], linears: Mapping[str, _Linear]) -> _Readable:
    """A device's adapter, whose B has the scale in it already: alpha is the rank."""
    ranks = {linears[module].path: pair.a.shape[1] for module, pair in pairs.items()}
    of_each = {re.escape(path): rank for path, rank in ranks.items()}
    config = peft.LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(ranks),
        # Said once for all; PEFT looks at each linear by itself.
        fan_in_fan_out=any(linears[module].turned for module in pairs),
        rank_pattern=of_each,
        alpha_pattern=dict(of_each),
        inference_mode=True,
    )
    tensors = {}
    for module, pair in pairs.items():
        path = f"{_PREFIX}{linears[module].path}"
        tensors[f"{path}.lora_A.weight"] = torch.from_numpy(np.ascontiguousarray(pair.a.T))
        tensors[f"{path}.lora_B.weight"] = torch.from_numpy(np.ascontiguousarray(pair.b.T))
    return _Readable(config, tensors)


def _check(name: str, pairs: Mapping[str, LoraPair], linears: Mapping[str, _Linear]) -> None:
    for module, pair in pairs.items():
        linear, rank = linears.get(module), pair.a.shape[1]
        if linear is None:
            raise ModelUnusable(f"adapter {name}: is for another model, with a linear {module!r}")
        if pair.a.shape != (linear.inputs, rank) or pair.b.shape != (rank, linear.outputs):
            raise ModelUnusable(
                f"adapter {name}: is for another model: {module} has A {pair.a.shape} and B "
                f"{pair.b.shape}; this one needs A ({linear.inputs}, rank) and B (rank, "
                f"{linear.outputs})"
            )
        if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
            raise ModelUnusable(f"adapter {name}: {module} holds NaN or infinite numbers")
