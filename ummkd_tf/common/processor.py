"""What this machine's processor can do."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

DECISIVE = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide how long a training step takes (docs/performance.md)."""


def description() -> str:
    """Its name and those of `DECISIVE` that it has, e.g. "AMD EPYC (avx2, avx512f)": the name alone may tell little."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    known = instructions()
    found = [word for word in DECISIVE if word in known]
    return f"{name} ({', '.join(found)})" if found else name


def instructions() -> frozenset[str]:
    """Its instruction sets by Linux's names, e.g. "avx2", among other words; nothing where the system does not say."""
    return frozenset(CPUINFO.read_text(encoding="utf-8").split()) if CPUINFO.is_file() else frozenset()
