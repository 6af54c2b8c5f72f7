"""Recorded runs as data: what tables and figures are made from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.plans import DATA, TARGETS, RunSpec
from ummkd_tf.common import documents
from ummkd_tf.common.documents import MALFORMED
from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.folder import RUN, evaluation_name, read_run, task_of
from ummkd_tf.runs.history import KNOWLEDGE, read_history
from ummkd_tf.tasks import TASKS, Task, check_same_task

EVALUATION, OUTLIER = (evaluation_name(part) for part in ("test", "outlier"))
_PLANNED = re.compile(r"(.+)-seed(\d+)-fold(\d+)")  # names as `RunSpec.name` makes them


@dataclass(frozen=True)
class Record:
    """One run's folder.

    Attributes:
        name: Name of the folder; for a planned run `RunSpec.name`.
        run_dir: The folder.
        run: Content of run.json.
        evaluation: Content of evaluation_test.json, or of that with a tag; None where there is none.
        outlier: The same of evaluation_outlier.json (Table VI).
        knowledge: Lines of knowledge.jsonl: {"step", "kd_loss", "q": {modality: C×C}}, in order of steps.
    """

    name: str
    run_dir: Path
    run: dict[str, Any]
    evaluation: dict[str, Any] | None = None
    outlier: dict[str, Any] | None = None
    knowledge: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """Its `RunSpec.stem`; "" where the folder's name does not end as those of planned runs."""
        match = _PLANNED.fullmatch(self.name)
        return match[1] if match else ""

    @property
    def data(self) -> str:
        """Its data set, of `plans.DATA` where the run was planned."""
        return next((name for name in DATA if self.name.startswith(f"{name}-")), self.task.name)

    @property
    def task(self) -> Task:
        """What it was trained for, as stored with it."""
        return task_of(self.run)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the model's order."""
        return tuple(self.run["model"]["modalities"])

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end; only then it counts in tables and figures."""
        return self.run.get("status") == "finished"

    def cases(self, kind: str = "evaluation") -> dict[str, Any]:
        """The evaluated cases by id; none where it was not evaluated.

        Args:
            kind: Which evaluation: "evaluation" (of the test part) or "outlier".
        """
        return (getattr(self, kind) or {"cases": {}})["cases"]


def load_records(runs_dir: str | Path, tag: str = "", *, original_grid: bool = False) -> list[Record]:
    """Every run in a folder of runs, by name; [] where there is no such folder yet.

    Args:
        runs_dir: The folder.
        tag: Which evaluations, see `evaluation_name`.
        original_grid: Likewise.

    Raises:
        InputError: A damaged JSON file.
    """
    name = partial(evaluation_name, tag=tag, original_grid=original_grid)
    return [_load(path.parent, name) for path in sorted(Path(runs_dir).glob(f"*/{RUN}"))]


def load_folder(runs_dir: str | Path, tag: str = "", *, original_grid: bool = False) -> list[Record]:
    """`load_records` of the --runs_dir of a program that shows runs.

    Raises:
        InputError: No such folder, no evaluation with the tag, or a damaged JSON file.
    """
    if not Path(runs_dir).is_dir():
        raise InputError(f"--runs_dir={runs_dir}: no such folder: expected one that ummkd reproduce wrote")
    records = load_records(runs_dir, tag, original_grid=original_grid)
    given = "".join([" --grid=original" * original_grid, f" --tag={tag}" if tag else ""])
    if given and not any(record.evaluation or record.outlier for record in records):
        name = evaluation_name("test", tag=tag, original_grid=original_grid)
        raise InputError(f"{given[1:]}: no run in {runs_dir} has {name}: expected one; run ummkd evaluate{given}")
    return records


def select(records: Iterable[Record], specs: Iterable[RunSpec]) -> list[Record]:
    """The records of planned runs, in the plan's order; those not there are left out."""
    by_name = {record.name: record for record in records}
    return [by_name[spec.name] for spec in specs if spec.name in by_name]


def of_spec(records: Iterable[Record], spec: RunSpec) -> list[Record]:
    """The records of a planned run, whatever their seed and fold."""
    return [record for record in records if record.stem == spec.stem]


def unplanned(records: Iterable[Record]) -> list[Record]:
    """The records of runs that no table and no figure of the paper needs."""
    stems = set().union(*(target.stems for target in TARGETS.values()))
    return [record for record in records if record.stem not in stems]


def modalities_of(records: Iterable[Record]) -> tuple[str, ...]:
    """Modalities of any of the runs, in the models' order."""
    return tuple(dict.fromkeys(m for record in records for m in record.modalities))


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None where there is none.

    Raises:
        InputError: Not JSON.
    """
    try:
        return documents.read_json(path)
    except FileNotFoundError:
        return None
    except MALFORMED as error:
        raise InputError(f"damaged ({error})", where=path, fix="delete it and run again what writes it") from error


def _load(run_dir: Path, name: Callable[[str], str]) -> Record:
    return Record(
        name=run_dir.name,
        run_dir=run_dir,
        run=read_run(run_dir),
        evaluation=read_json(run_dir / name("test")),
        outlier=read_json(run_dir / name("outlier")),
        knowledge=_by_step(run_dir / KNOWLEDGE),
    )


def _by_step(path: Path) -> list[dict[str, Any]]:
    """Lines in order of steps; the last of a step counts."""
    by_step = {line["step"]: line for line in read_history(path)}
    return [by_step[step] for step in sorted(by_step)]


Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """A run on the page.

    Attributes:
        record: As recorded.
        curves: Values of history.jsonl by name: (step, value) in order of steps.
        flaw: Why the run is left out of tables, curves and cases; None where nothing is wrong.
    """

    record: Record
    curves: Mapping[str, Points]
    flaw: str | None = None


class Runs:
    """The runs a table is made from.

    Args:
        records: Those that are there.
        seeds: Seeds that belong in the table.
        folds: Likewise.
    """

    def __init__(self, records: Sequence[Record], seeds: Sequence[int], folds: Sequence[int]) -> None:
        self.records, self.seeds, self.folds = records, seeds, folds

    def planned(self, spec: RunSpec) -> list[RunSpec]:
        """A spec for every seed and fold."""
        return [replace(spec, seed=seed, fold=fold) for seed in self.seeds for fold in self.folds]

    def of(self, spec: RunSpec, kind: str = "evaluation") -> list[Record]:
        """The records of a spec, with all its seeds and folds, that have this kind of evaluation.

        Raises:
            InputError: A run was trained for another task than the spec says, or two folds of a seed test one case.
        """
        found = [r for r in select(self.records, self.planned(spec)) if getattr(r, kind)]
        tested: dict[tuple[int, str], Record] = {}
        for record in found:
            check_same_task(record.task, TASKS[spec.task], record.run_dir, "give the run's folder another name")
            for case_id in record.cases() if kind == "evaluation" else ():
                other = tested.setdefault((record.run["seed"], case_id), record)
                if other is not record:
                    raise InputError(
                        f"tests {case_id}, as {other.name} does with the same seed",
                        where=record.run_dir,
                        fix="expected every case in the test part of one fold (--split=k_fold); choose with --folds",
                    )
        return found


def seeds_and_folds(
    records: Iterable[Record], target: str, seeds: Sequence[int] | None, folds: Sequence[int] | None
) -> tuple[Sequence[int], Sequence[int]]:
    """Those asked for; for None all that a target's runs have, or 0 without any."""
    stems = TARGETS[target].stems
    found = [
        (int(match[2]), int(match[3]))
        for record in records
        if (match := _PLANNED.fullmatch(record.name)) and match[1] in stems
    ]
    there = [sorted({numbers[i] for numbers in found}) or [0] for i in (0, 1)]
    return (there[0] if seeds is None else seeds), (there[1] if folds is None else folds)
