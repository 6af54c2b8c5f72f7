"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def instructions() -> frozenset[str]:
    """Its instruction sets by Linux's names, e.g. "avx2", among other words; nothing where the system does not say."""
    return frozenset(CPUINFO.read_text(encoding="utf-8").split()) if CPUINFO.is_file() else frozenset()
