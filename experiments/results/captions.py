"""What stands above and below a table: data, split, preset, steps, seeds, n, commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.plans import TARGETS, RunSpec
from experiments.results.records import Record, Runs, modalities_of
from experiments.results.table import modality_title
from ummkd_tf.common.errors import listed
from ummkd_tf.runs.config import RunConfig
from ummkd_tf.runs.folder import AROUND_REFERENCE, commits_of, is_of_selected, selected_step

MEANS = (
    "Mean ± population standard deviation over test cases (of the pooled distance: over surface points); a modality's "
    "mean is the mean of its classes' means, the overall mean that of the modalities' means."
)
OWN_MEANS = (
    "Means are of runs that differ in fold and seed alone, where the runs of each seed test every case once: over the "
    "cases of all folds together; over seeds, the mean of the seeds' means ± the root mean square of their deviations."
)


def title(target: str) -> str:
    """What a target shows, with the table's number in the paper where it has one."""
    number = target.removeprefix("table")
    roman = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI"}.get(number)
    return (f"Table {roman}. " if roman else "") + TARGETS[target].title


def is_phantom(record: Record) -> bool:
    """Whether a run's data were generated."""
    return record.run.get("source", "").startswith("phantom")


def provenance(records: Sequence[Record], kind: str = "evaluation") -> str:
    """Where the numbers come from; what differs between runs is listed, so that it shows.

    Args:
        records: The runs.
        kind: Which of their evaluations: "evaluation" (of the test part) or "outlier".
    """
    if not records:
        return "Nothing has been run."

    def each(values: Iterable[Any]) -> str:
        return " / ".join(sorted({str(value) for value in values}))

    sources = each(r.run.get("source") or "unknown" for r in records)
    seeds = sorted({r.run["seed"] for r in records})
    parts = [
        f"{'PHANTOM data' if any(map(is_phantom, records)) else 'Data'}: {sources}",
        f"split {each(r.run['split_name'] for r in records)}",
        f"preset {each(r.run['flags']['preset'] for r in records)}",
        *_unlike_the_paper(records),
        f"{each(r.run['flags']['steps'] for r in records)} steps",
        f"seeds {', '.join(map(str, seeds))}",
        f"{case_numbers(records, kind)} {'outlier' if kind == 'outlier' else 'test'} cases",
        *how_evaluated([getattr(r, kind) or {} for r in records]),
        *_other_checkpoints(records, kind),
        *_other_data(records),
        f"commit {each(commit for r in records for commit in commits_of(r.run))}",
    ]
    return "; ".join(parts) + "."


def case_numbers(records: Sequence[Record], kind: str = "evaluation") -> str:
    """How many different cases were evaluated, e.g. "n = 4 CT + 4 MRI"; arguments as `provenance`."""
    tested = {case_id: case["modality"] for record in records for case_id, case in record.cases(kind).items()}
    return "n = " + " + ".join(f"{list(tested.values()).count(m)} {modality_title(m)}" for m in modalities_of(records))


def _unlike_the_paper(records: Sequence[Record]) -> list[str]:
    """Recipe and precision of training, where they are not the paper's."""
    found = []
    for name, usual in (("recipe", "paper"), ("precision", "float32")):
        values = sorted({record.run["flags"].get(name, usual) for record in records})
        if values != [usual]:
            found.append(f"{name} {' / '.join(values)}")
    patches = {record.run["flags"].get("labelled_patches", RunConfig.labelled_patches) for record in records}
    if len(patches) > 1:
        found.append(f"PATCHES AROUND LABELLED SLICES DRAWN IN {len(patches)} WAYS: {' / '.join(sorted(patches))}")
    return found


def how_evaluated(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of their numbers must know of evaluations, and in how many of them it is so."""

    def each(evaluation: Mapping[str, Any]) -> Iterator[str]:
        if share := evaluation.get("overlap"):
            yield f"chunks overlapping by {100 * share:g} %"
        if evaluation.get("largest_component"):
            yield "largest connected part of each class"
        if evaluation.get("grid") == "original":
            yield "in the scans' own voxels"
        if str(evaluation.get("window", "")).startswith(AROUND_REFERENCE):
            yield f"windows {AROUND_REFERENCE}, so finding the organs is not measured"

    texts = [text for evaluation in evaluations for text in each(evaluation)]
    return [
        text if number == len(evaluations) else f"{text} in {number} of {len(evaluations)} evaluations"
        for text, number in Counter(texts).items()
    ]


def _other_checkpoints(records: Sequence[Record], kind: str) -> list[str]:
    """Runs whose evaluation is not of the checkpoint that is their result: of an earlier end, or another selection."""
    found = []
    for record in records:
        evaluation = getattr(record, kind)
        if evaluation and not is_of_selected(evaluation, record.run):
            step, own = evaluation.get("step"), selected_step(record.run)
            what = f"AT STEP {step}, not {own}" if step != own else f"WITH --selection={evaluation['selection']}"
            found.append(f"{record.name} EVALUATED {what}")
    return found


def _other_data(records: Sequence[Record]) -> list[str]:
    """Cases that are not the same scan, or have not the same labels, in all runs, so that pairs of them mean nothing.

    Runs that do not say, because they are older, are passed over.
    """
    known: dict[tuple[str, str, str], str] = {}
    different = {
        case_id
        for record in records
        for what in ("scans", "labels")
        for case_id, checksum in record.run.get(what, {}).items()
        if known.setdefault((record.data, what, case_id), checksum) != checksum
    }
    return [f"NOT THE SAME SCANS OR LABELS IN ALL RUNS: {listed(sorted(different))}"] if different else []


def counts(used: Mapping[Any, Sequence[Record]], kind: str = "evaluation") -> list[str]:
    """Notes on everything that was missed, invented or left out, by `RunSpec` or name of a run."""
    texts = []
    for statuses, text in (
        (("missed", "spurious"), "Missed or invented (Dice 0, distance = image diagonal)"),
        (("absent",), "Absent in prediction and reference, left out"),
    ):
        found = []
        for spec, records in used.items():
            of_classes = [
                case["classes"][name]["status"]
                for record in records
                for case in record.cases(kind).values()
                for name in record.task.table_classes
            ]
            if number := sum(status in statuses for status in of_classes):
                found.append(f"{_label(spec)} {number} of {len(of_classes)}")
        if found:
            texts.append(f"{text}: {', '.join(found)}.")
    return texts


def runs_missing(used: Mapping[Any, Sequence[Record]], runs: Runs) -> dict[Any, str]:
    """Specs that have only some of their planned runs, each with a text such as "1 of 2 runs"."""
    planned = len(runs.seeds) * len(runs.folds)
    return {spec: f"{len(found)} of {planned} runs" for spec, found in used.items() if 0 < len(found) < planned}


def incomplete(used: Mapping[Any, Sequence[Record]], runs: Runs) -> list[str]:
    """A note on the specs of `runs_missing`; [] where there are none."""
    short = [f"{_label(spec)} {text}" for spec, text in runs_missing(used, runs).items()]
    return [f"Incomplete: {', '.join(short)}."] if short else []


def _label(spec: RunSpec | str) -> str:
    return spec if isinstance(spec, str) else spec.stem
