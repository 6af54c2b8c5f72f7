"""The exceptions a user is meant to see."""

from __future__ import annotations

_LONGEST = 2000  # characters; a message can quote what a damaged file holds


class InputError(ValueError):
    """Bad input that the user can mend: a file, a flag or a data set.

    The message is one line: what happened, what was expected, what was found and how to fix it.
    Command-line programs print it without a traceback and exit with code 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text without line breaks and control characters, whatever a quoted file holds."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"


class Stopped(Exception):
    """Training was asked to stop and has saved its state.

    Attributes:
        exit_code: What the process should end with: 130 (Ctrl-C), 143 (SIGTERM), or 0 (time is up).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
