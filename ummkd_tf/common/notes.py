"""Shows the library's warnings as the programs' `note:` lines."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from ummkd_tf.common.errors import one_line


def note(text: str) -> None:
    """Prints what is worth knowing."""
    print(f"note: {text}")


def note_aside(text: str) -> None:
    """`note` on standard error, so that it does not get into a table that is written to a file."""
    print(f"note: {text}", file=sys.stderr)


@contextlib.contextmanager
def warnings_to(take: Callable[[str], None]) -> Iterator[None]:
    """Gives the library's warnings to `take` instead of the log, each text once."""
    seen = set()

    class Taker(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = one_line(record.getMessage())
            if text not in seen:
                seen.add(text)
                take(text)

    logger = logging.getLogger("ummkd_tf")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Taker(logging.WARNING)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
