"""A reproduction as SLURM jobs: one for each run that is not done, and one after all of them for tables and figures.

Plain `sbatch` scripts, because a cluster has that, and because they can be read and changed before they are submitted.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ummkd_tf.common.files import replacing

_JOB = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# SIGTERM, sent two minutes before the time is over, makes training save and leave; submit again and it goes on.
set -euo pipefail
cd {folder}
export PYTHONPATH={programs}${{PYTHONPATH:+:$PYTHONPATH}}
run() {{ # a program that gets the script's SIGTERM, and the time to save
	"$@" &
	child=$! code=0
	trap 'kill -TERM "$child"' TERM
	wait "$child" || code=$?
	while kill -0 "$child" 2> /dev/null; do code=0; wait "$child" || code=$?; done # the signal ends one wait
	return "$code"
}}
{commands}
"""

_PROGRAMS = Path(__file__).resolve().parents[1]  # of a checkout or of an installed wheel

_SUBMIT = """#!/bin/bash
# Submits every job; arguments are passed on to sbatch, e.g. ./submit.sh --gres=gpu:1 --time=24:00:00
set -euo pipefail
cd {folder}
jobs=()
{submissions}
sbatch --parsable "$@" {after} render.sh
"""


def write_jobs(
    runs: Iterable[tuple[str, Sequence[Sequence[str]]]], render: Sequence[str], folder: Path, logs: Path
) -> Path:
    """Writes the scripts; jobs run in the present folder.

    Args:
        runs: (name, commands one after the other) of each run that is not done.
        render: Command that writes tables and figures.
        folder: Where the scripts go.
        logs: Folder of the jobs' output.

    Returns:
        submit.sh, which submits them all: the last job starts when all others have succeeded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    names = []
    for name, commands in [*runs, ("render", [render])]:
        text = _JOB.format(
            name=name,
            log=shlex.quote(str((logs / f"{name}.log").resolve())),
            folder=shlex.quote(str(Path.cwd())),
            programs=shlex.quote(str(_PROGRAMS)),
            commands="\n".join(f"run {shlex.join(command)}" for command in commands),
        )
        _write(folder / f"{name}.sh", text)
        names.append(name)
    submissions = "\n".join(f'jobs+=("$(sbatch --parsable "$@" {shlex.quote(f"{name}.sh")})")' for name in names[:-1])
    after = '--dependency="afterok:$(IFS=:; echo "${jobs[*]}")"' if submissions else ""
    text = _SUBMIT.format(folder=shlex.quote(str(folder.resolve())), submissions=submissions, after=after)
    return _write(folder / "submit.sh", text)


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
    return path
