"""Progress bars; where the output is no terminal, a line for every tenth instead of thousands in a log file."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm


class _Lines:
    """Writes every state of a bar as a line of its own; tqdm shows the last one twice."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        state = text.partition("[")[0].strip()  # without the times
        if state and state != self._last:
            sys.stderr.write(text.strip() + "\n")
            self._last = state

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Iterable | None = None, *, total: int | None = None, **options: Any) -> tqdm:
    """`tqdm` of some work, on standard error.

    Args:
        iterable: What is gone through, or None where `update` is called.
        total: Its length, where it has none.
        options: As tqdm takes them.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not sys.stderr.isatty():
        options |= {
            "file": _Lines(),
            "bar_format": "{desc}: {n_fmt}/{total_fmt} {unit}s [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
            "miniters": math.ceil((total or 10) / 10),
            "mininterval": 0,
            "maxinterval": math.inf,  # else tqdm shows more when a tenth takes long
            "delay": 1e-9,  # nothing before the first tenth
        }
    return tqdm(iterable, total=total, **options)
