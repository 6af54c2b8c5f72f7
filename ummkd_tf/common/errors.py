"""The exceptions a user is meant to see."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 2000  # characters; a message can quote what a damaged file holds


class InputError(ValueError):
    """Bad input that the user can mend: a file, a flag or a data set.

    The message is one line, "where: problem: fix". Command-line programs print it without a traceback and exit with
    code 1.

    Args:
        problem: What happened, and what was found; or the whole message, where it does not come in three parts.
        where: File, folder or flag, or None.
        fix: What was expected, and how to mend it.
    """

    def __init__(self, problem: str, *, where: object = None, fix: str = "") -> None:
        self.where, self.problem, self.fix = "" if where is None else str(where), problem, fix
        super().__init__(one_line(": ".join(part for part in (self.where, problem, fix) if part)))


def one_line(text: str) -> str:
    """A text without line breaks and control characters, whatever a quoted file holds."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in one line, the first few of many."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


class Stopped(Exception):
    """Training was asked to stop and has saved its state.

    Attributes:
        exit_code: What the process should end with: 130 (Ctrl-C), 143 (SIGTERM), or 0 (time is up).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
