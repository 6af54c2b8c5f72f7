"""Versions, commit and machine of this process, for the run record."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "nibabel", "SimpleITK", "h5py")


def environment() -> dict[str, Any]:
    """Versions, commit, machine and device of this process."""
    import tensorflow as tf

    return {
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}},
        "commit": commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": [d.name for d in tf.config.list_physical_devices()],
    }


def commit() -> str:
    """Commit of the source tree, with "+changes" where it has uncommitted ones; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie inside another repository
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
