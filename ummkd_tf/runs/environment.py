"""Versions, commit and machine of this process, for the run record."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ummkd_tf.common import processor

_PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "nibabel", "SimpleITK", "h5py")


def environment() -> dict[str, Any]:
    """Versions, commit, machine and device of this process."""
    # Here, to start without TensorFlow.
    import tensorflow as tf

    return {
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}},
        "commit": commit(),
        "platform": platform.platform(),
        "processor": processor.description(),
        "cpus": os.cpu_count(),
        "devices": [d.name for d in tf.config.list_physical_devices()],
        "gpus": gpus(),
    }


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Bytes that processes may still take: of the machine, or of the container or batch job where that is less."""
    meminfo, groups = Path("/proc/meminfo"), Path("/proc/self/cgroup")
    if not meminfo.exists():  # not Linux: all there is
        return total_memory()
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024]
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):  # version 2 or 1 of control groups
            top = Path("/sys/fs/cgroup", controllers)
            free += [n for folder in (top / path.strip("/"), top) if (n := _free_in_group(folder)) is not None]
    return max(0, min(free))


def _free_in_group(folder: Path) -> int | None:
    """Limit of a control group less what it uses, where file contents that can be dropped do not count."""
    for limit, used, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            texts = [(folder / name).read_text(encoding="utf-8") for name in (limit, used, "memory.stat")]
            statistics = dict(line.split() for line in texts[2].splitlines())
            return int(texts[0]) - int(texts[1]) + int(statistics[droppable])
        except (OSError, ValueError, KeyError):  # another version, or no limit ("max")
            continue
    return None


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    # Here, to start without TensorFlow.
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def batch_threads() -> int:
    """Threads that prepare batches: one beside steps on the CPU, which need the cores themselves; up to 8 for a GPU,
    which one thread does not keep busy (docs/performance.md#on-a-gpu)."""
    return min(8, available_cores()) if has_gpu() else 1


def gpus() -> list[str]:
    """Models of the GPUs that TensorFlow sees."""
    # Here, to start without TensorFlow.
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in found]


def device() -> str:
    """What TensorFlow computes on and the machine's memory, e.g. "CPU, 2 cores, 24 GiB"."""
    kind = ", ".join(["GPU", *gpus()] if has_gpu() else ["CPU"])
    return f"{kind}, {available_cores()} cores, {total_memory() / 2**30:.0f} GiB"


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
