"""The command-line programs, run as a user runs them."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags


@contextlib.contextmanager
def fresh_programs() -> Iterator[None]:
    """Programs start as in a new process: their modules are loaded anew, and their flags are not defined yet."""
    ours = ("experiments", "data_prep", "__main__")
    known, modules = flags.FLAGS, {n: m for n, m in sys.modules.items() if n.startswith(ours[:2])}

    def take() -> dict[str, tuple[str, flags.Flag]]:
        taken = {n: (str(known.find_module_defining_flag(n)), known[n]) for n in list(known)}
        taken = {n: entry for n, entry in taken.items() if not entry[0].startswith("absl")}
        for name in taken:
            delattr(known, name)
        for name in [n for n in sys.modules if n.startswith(ours[:2])]:
            del sys.modules[name]
        return taken

    before, argv = take(), sys.argv
    try:
        yield
    finally:
        take()
        sys.argv = argv
        sys.modules.update(modules)
        for module, flag in before.values():
            flags.DEFINE_flag(flag, module_name=module)
        if "tensorflow" in sys.modules:  # what --deterministic switched on
            from tensorflow.python.framework.config import disable_op_determinism

            disable_op_determinism()


class Done(NamedTuple):
    """How a program ended, as `subprocess.CompletedProcess` says it."""

    returncode: int
    stdout: str
    stderr: str


def program(name: str, *arguments: object) -> Done:
    """Runs a program in this process, which saves it the start of TensorFlow."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with fresh_programs(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = [name, *map(str, arguments)]
        try:
            runpy.run_module(name, run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
