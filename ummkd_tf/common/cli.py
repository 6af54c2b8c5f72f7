"""How every command-line program of the project starts and fails."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging

from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.common.notes import note_aside, warnings_to


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main` under absl; bad input, a full disk or no memory becomes one line on stderr and exit code 1."""

    def guarded(argv: list[str]) -> int | None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]!r}: every option is a flag, --name=value")
            with warnings_to(note_aside):
                return main(argv)
        except Stopped as stopped:
            print(stopped)
            return stopped.exit_code
        except KeyboardInterrupt:
            print("stopped by SIGINT before there was anything to save")
            return 130
        except Exception as error:
            line = message_for_user(error)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 1

    # absl would show what other libraries log as information, such as every table of a font in a PDF.
    verbosity = flags.FLAGS["verbosity"]
    verbosity.value, verbosity.using_default_value = logging.WARNING, False
    for flag in (flags.FLAGS[name] for name in flags.FLAGS):
        if any("must have a value other than None" in validator.message for validator in flag.validators):
            flag.help += " Required."
    with tolerant_output():
        app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """As absl does it, with one line where a flag is unknown, wrong or missing."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        text = str(error).removeprefix("flag ")
        if missing := re.match(r"(--\w+)=None: .* must have a value other than None", text):
            text = f"{missing[1]} is needed"
        print(f"error: {text}: --help explains every flag", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def tolerant_output() -> Iterator[None]:
    """Lets a program print to any terminal, file or pipe.

    A character that the encoding lacks, such as "α" in ASCII, is shown as "?". Where nobody reads the output any more,
    as behind `| head -1`, the process ends without a message.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have replaced it
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def message_for_user(error: Exception) -> str | None:
    """The line for the user: of bad input, a full disk or no memory. None of anything else, a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and (full or error.filename):
        fix = "make room and start again" if full else "check the path and its permissions"
        return f"{error.filename or 'disk'}: {error.strerror}: {fix}"
    # By its name, so that programs without TensorFlow start without it.
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return "out of memory: free some, or take a smaller image; in training, a smaller --batch_size or --preset"
    return None


def start_tensorflow() -> None:
    """Imports TensorFlow without its start-up banners, and with oneDNN kernels on every processor.

    TensorFlow leaves oneDNN off on many AMD processors; a 3D training step was measured three to six times slower
    without it. A TF_ENABLE_ONEDNN_OPTS that the user has set stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Some banners come before TensorFlow reads its log level: keep file descriptor 2 aside meanwhile.
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        # Here, to start without TensorFlow.
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
