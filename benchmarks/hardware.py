"""One line that says on what a row was measured."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What the kernels of ONNX Runtime and llama.cpp choose their code by.
_TELLING = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "sve", "sve2"),
)


def describe(*packages: str) -> str:
    """Processor, features that matter, cores, memory, system, and versions of ``packages``."""
    model, flags = _processor()
    telling = " ".join(flag for flag in _TELLING if flag in flags)
    parts = [
        f"{model} ({telling})" if telling else model,
        f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
        " cores",
        _memory(),
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {sys.version.split()[0]}",
        *(f"{name} {package_version(name)}" for name in packages),
    ]
    return ", ".join(part for part in parts if part)


def package_version(name: str) -> str:
    """The installed version, or ``"absent"``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> tuple[str, frozenset[str]]:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    model = fields.get("model name") or platform.machine()
    if "cpu family" in fields:
        model += f" family {fields['cpu family']} model {fields.get('model', '?')}"
    return model, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f"{size / 2**30:.0f} GiB"
