"""The paper's tables from recorded runs: Markdown, CSV or LaTeX, with the paper's numbers beside on request.

    python -m experiments.tables --runs_dir=runs/paper --table=2 --compare
    python -m experiments.tables --runs_dir=runs/paper --table=5 --format=latex
    python -m experiments.tables --runs_dir=runs --table=own        runs of your own: a row each, and means over folds
    python -m experiments.tables --runs_dir=runs --table=own --tag=plain        as evaluated with this --tag

Only run.json, evaluation_*.json and knowledge.jsonl are read. How the numbers come about:

- A class's cell is mean ± standard deviation over test cases (population, as everywhere here). The folds of a
  cross-validation join, so that each case counts once. With several seeds the mean is the mean of the seeds' means and
  ± the root mean square of the seeds' deviations: it stays the spread between cases. The standard deviation of the
  seeds' means stands in blocks of its own.
- A modality's mean is the mean of its classes' means, and the overall mean that of the modalities' means. The paper's
  own cells obey both to rounding, one misprint apart (a test holds them to it).
- The paper's "Hausdorff distance" cannot be a maximum per case averaged over cases; its cells fit a distance pooled
  over all surface voxels. That assumption is the block the paper's distances are compared with; HD, HD95 and ASSD
  follow it.
"""

from __future__ import annotations

from absl import flags

from experiments.number_lists import define_whole_numbers
from experiments.results.builders import TABLES, build, own_tables
from experiments.results.records import load_folder
from experiments.results.rendering import FORMATS
from ummkd_tf.common.cli import run
from ummkd_tf.common.errors import InputError

OWN = "own"
NAMES = {name.removeprefix("table"): name for name in TABLES}
"""Value of --table → name of the table."""


def _define_flags() -> None:
    flags.DEFINE_string("runs_dir", "runs", "Folder of runs, as ummkd reproduce writes it.")
    flags.DEFINE_enum("table", None, [*NAMES, OWN], "Number in the paper, a claim, or your own runs.", required=True)
    flags.DEFINE_enum("format", "md", list(FORMATS), "Markdown, CSV or LaTeX.")
    flags.DEFINE_string("tag", "", "Take evaluations with this --tag of ummkd evaluate; default: those without.")
    flags.DEFINE_bool("compare", False, "Add the paper's values and the differences.")
    grids = "Evaluations on the prepared grid, or in the scans' own voxels (ummkd evaluate --grid=original)."
    flags.DEFINE_enum("grid", "prepared", ["prepared", "original"], grids)
    define_whole_numbers("seeds", None, "Seeds that belong in it; default: all that are there.")
    define_whole_numbers("folds", None, "Folds that belong in it; default: all that are there.")


def main(_: list[str]) -> None:
    """Prints the tables that the flags ask for."""
    values = flags.FLAGS
    records = load_folder(values.runs_dir, values.tag, original_grid=values.grid == "original")
    if values.table == OWN:
        if values.compare or values.seeds or values.folds:
            raise InputError(f"--table={OWN}: shows all runs and their means: leave --compare, --seeds and --folds out")
        tables = own_tables(records)
        if not tables:
            raise InputError(
                f"--runs_dir={values.runs_dir}: no run of your own that is finished and evaluated: expected one; "
                "run ummkd evaluate, or give the --grid that they were evaluated on"
            )
        print("\n".join(FORMATS[values.format][1](table) for table in tables), end="")
        return
    table = build(NAMES[values.table], records, seeds=values.seeds, folds=values.folds, compare=values.compare)
    print(FORMATS[values.format][1](table), end="")


if __name__ == "__main__":
    _define_flags()
    run(main)
