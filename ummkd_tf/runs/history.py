"""What a run writes while it trains, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ummkd_tf.common.documents import MALFORMED
from ummkd_tf.common.files import write_whole

HISTORY = "history.jsonl"
KNOWLEDGE = "knowledge.jsonl"

_END = 1 << 16  # bytes at the end of a file, which hold many lines

_LOG = logging.getLogger(__name__)


class JsonLines:
    """A file of one JSON object a line, with "step" and values.

    Lines after the step that a run continues from are dropped, since those steps will be done again.

    Args:
        path: The file.
        step: Steps already done.
    """

    def __init__(self, path: Path, step: int) -> None:
        if step and not path.exists():
            _LOG.warning("%s: missing: what it told of the first %d steps is lost", path, step)
        kept = [line for line in read_history(path) if step and line["step"] <= step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed in __exit__

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def last_step(path: Path) -> int:
    """Step of the newest whole line of a `JsonLines` file, of which the end alone is read; 0 where there is none."""
    if not path.is_file():
        return 0
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - _END))
        *whole, _ = stream.read().split(b"\n")
    for line in reversed(whole):
        with contextlib.suppress(*MALFORMED):
            return operator.index(json.loads(line)["step"])
    return 0


def read_history(path: Path) -> list[dict[str, Any]]:
    """Lines of a `JsonLines` file without damaged ones: a killed process can leave half a line at the end.

    Returns:
        Objects with "step"; [] where there is no file.
    """
    lines = []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            line["step"] = operator.index(line["step"])
            lines.append(line)
        except MALFORMED:
            if number < len(texts):
                _LOG.warning("%s: line %d is damaged and left out", path, number)
    return lines
