"""Prepares a raw data set for training: verify, then one HDF5 file per case and a dataset.json with the split.

    python -m data_prep.prepare --source=abdomen --raw=RAW --out=DATA            BTCV in RAW/btcv, CHAOS in RAW/chaos
    python -m data_prep.prepare --source=abdomen --raw_ct=BTCV --raw_mr=CHAOS --out=DATA
    python -m data_prep.prepare --source=abdomen --raw=RAW --out=DATA --dry_run  says what would be done

Every problem of the raw data is reported at once, and nothing is written while there is one. A second run prepares
only what is missing or has changed. data_prep/README.md tells where to get the data and how each step is done.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_prep import pipeline, source_flags, splits
from data_prep.raw import Found
from data_prep.sources import Source
from data_prep.verify import note, report
from ummkd_tf.cli import run
from ummkd_tf.errors import InputError
from ummkd_tf.tasks import get_task

flags.adopt_module_key_flags(source_flags)

_OUT = flags.DEFINE_string("out", None, "Folder for the prepared data set.", required=True)
_SPLIT = flags.DEFINE_string(
    "split",
    "seeded",
    "Which cases train, validate and test: seeded (70/10/20 % per modality), k_fold, a committed split "
    f"({', '.join(splits.committed_names())}), or the path of a split file.",
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", 0, "Seed of --split=seeded and k_fold.")
_FOLDS = flags.DEFINE_integer("folds", 5, "Number of folds of --split=k_fold.")
_FOLD = flags.DEFINE_integer("fold", 0, "Which fold is tested, from 0.")
_EXCLUDE = flags.DEFINE_list("exclude_cases", [], "Case ids to leave out, e.g. ct_0007,mr_3.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Verify and say what would be done; write nothing.")


def main(argv: list[str]) -> int:
    """Program."""
    source = source_flags.chosen_source()
    found = source.find(source_flags.options())
    if found.problems:
        problems, _ = pipeline.verify(found.cases, get_task(source.task), source_flags.workers(), note)
        return report([*found.problems, *problems])
    split_name, split = _split(source, found)
    cases = [case for case in found.cases if case.case_id not in _EXCLUDE.value]
    problems = pipeline.prepare(
        cases,
        get_task(source.task),
        Path(_OUT.value),
        split=split,
        split_name=split_name,
        workers=source_flags.workers(),
        note=note,
        dry_run=_DRY_RUN.value,
    )
    return report(problems)


def _split(source: Source, found: Found) -> tuple[str, splits.Split]:
    excluded = set(_EXCLUDE.value)
    ids = {
        m: [case.case_id for case in found.cases if case.modality == m and case.case_id not in excluded]
        for m in source.modalities
    }
    seed = _SPLIT_SEED.value
    if _SPLIT.value == "seeded":
        return f"seeded 70/10/20, seed {seed}", splits.seeded(ids, seed)
    if _SPLIT.value == "k_fold":
        folds, fold = _FOLDS.value, _FOLD.value
        return f"fold {fold} of {folds}, seed {seed}", splits.k_fold(ids, seed, folds, fold)
    name, split = splits.read(_SPLIT.value, _FOLD.value)
    return name, splits.select(split, source.modalities, {c for of in ids.values() for c in of}, excluded)


if __name__ == "__main__":
    run(main)
