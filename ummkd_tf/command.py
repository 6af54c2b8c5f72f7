"""The console command `ummkd`: finds the programs and runs `experiments.command`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Puts the folder that holds `experiments` and `data_prep` first on the path, for processes it starts, too."""
    package = Path(__file__).resolve().parent
    installed = package / "_programs"  # where a wheel holds them; an editable install has the checkout
    folder = str(installed if installed.is_dir() else package.parent)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    runpy.run_module("experiments.command", run_name="__main__", alter_sys=True)
