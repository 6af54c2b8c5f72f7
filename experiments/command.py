"""One command for every program: `ummkd train …` does what `python -m experiments.train …` does."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Mapping
from types import MappingProxyType

from ummkd_tf.common.cli import tolerant_output

PROGRAMS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # subcommand: (module, one line of help)
        "phantom": ("data_prep.phantom", "generate phantom scans in the layouts of the public data sets"),
        "new-task": ("data_prep.new_task", "write a first task file from your own scans"),
        "verify": ("data_prep.verify", "look through raw scans and report every problem; writes nothing"),
        "prepare": ("data_prep.prepare", "turn raw scans into a data set for training"),
        "qc": ("data_prep.qc", "pictures and one page to trust a prepared data set by"),
        "train": ("experiments.train", "train one of the seven settings, or continue a run"),
        "evaluate": ("experiments.evaluate", "metrics of a run on the test part"),
        "compare": ("experiments.compare", "two methods on the same test cases, and whether they differ by chance"),
        "predict": ("experiments.predict", "segment scans"),
        "reproduce": ("experiments.reproduce", "run what a table or figure of the paper needs, and print it"),
        "tables": ("experiments.tables", "a table of the paper, or of your own runs, from recorded runs"),
        "figures": ("experiments.figures", "the paper's figures from recorded runs"),
        "export": ("experiments.export", "a trained model as one folder that needs no run, data or flags"),
        "import-tf1": ("experiments.import_tf1", "the authors' TensorFlow 1 checkpoints as such a folder"),
        "growing": ("experiments.growing", "what helps a trained model to learn a further modality, on phantoms"),
        "study": ("experiments.study", "what makes the training work: one change at a time"),
        "gradients": ("experiments.gradients", "size and direction of the gradients of each loss along a training"),
        "benchmark": ("experiments.benchmark", "speed and memory beside TensorFlow's and PyTorch's own code"),
        "report": ("experiments.report", "one HTML page with every table, figure, curve, case and run"),
    }
)


def main() -> int:
    """Runs the program that the first argument names, with the flags behind it."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        lines = "\n".join(f"  {program:<10} {summary}" for program, (_, summary) in PROGRAMS.items())
        print(f"usage: ummkd PROGRAM [--flag=value …]\n\n{lines}\n\nummkd PROGRAM --help explains its flags.")
        return 0
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(PROGRAMS)}"
        print(f"error: unknown program {name!r}: {hint}", file=sys.stderr)
        return 1
    sys.argv = [sys.argv[0], *arguments]
    # As `python -m` does it: the program becomes __main__, which its flags and its worker processes rely on.
    runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
