"""Prepares a raw data set for training: verify, then one HDF5 file per case and a dataset.json with the split.

    python -m data_prep.prepare --source=abdomen --raw=RAW --out=DATA            BTCV in RAW/btcv, CHAOS in RAW/chaos
    python -m data_prep.prepare --source=abdomen --raw_ct=BTCV --raw_mr=CHAOS --out=DATA
    python -m data_prep.prepare --source=abdomen --raw=RAW --out=DATA --dry_run  says what would be done
    python -m data_prep.prepare --source=abdomen --raw=RAW --split=k_fold --out='DATA/fold{fold}'     all five folds

Every problem of the raw data is reported at once, and nothing is written while there is one. A second run prepares
only what is missing or has changed. docs/data.md tells where to get the data, how each step is done, and how the jobs
of a cluster share a large set (--shard).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast, get_args

from absl import flags

from data_prep import pipeline, release, source_flags, splits
from data_prep.sources.raw_case import Problem, report
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.notes import note
from ummkd_tf.released.records import OutsideLabel

flags.adopt_module_key_flags(source_flags)

_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder for the prepared data set. With {fold} in its name, e.g. 'data/fold{fold}', one for --fold, or for every "
    "fold without that flag; the folds share their case files.",
    required=True,
)
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "Which cases train, validate and test: seeded (70/10/20 % per modality), k_fold, a committed split "
    f"({', '.join(splits.committed_names())}), or the path of a split file; default: the CSV's own, else seeded. "
    "All scans of a patient (column `patient` of the CSV) are in one part.",
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", None, "Seed of --split=seeded and k_fold; default: 0.")
_FOLDS = flags.DEFINE_integer("folds", None, f"Number of folds of --split=k_fold; default: {splits.FOLDS}.")
_FOLD = flags.DEFINE_integer(
    "fold", None, "Which fold is tested, from 0, of --split=k_fold or of a file of folds; default: 0."
)
_EXCLUDE = flags.DEFINE_list("exclude_cases", [], "Case ids to leave out, e.g. ct_0007,mr_3.")
_HOLD_OUT = flags.DEFINE_list(
    "hold_out_cases", [], "Case ids to prepare but put in no part of the split, e.g. the outlier of Table VI."
)
_LABEL_5 = flags.DEFINE_enum(
    "label_5",
    "ignored",
    list(get_args(OutsideLabel)),
    "What label 5 of --source=released, which is none of the five classes, is in training.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite",
    False,
    "Replace a data set of another source, task, classes or modalities, or of other cases, in --out.",
)
_SHARD = flags.DEFINE_string(
    "shard",
    None,
    "Prepare a share of the cases alone, e.g. 3/20 is the third of twenty, for job arrays. When all are done, the same "
    "command without --shard takes them over and ends the work.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Verify and say what would be done; write nothing.")


def main(argv: list[str]) -> int:
    """Prepares the data set that the flags name; exit code 1 where there is a problem."""
    source_flags.check_used(_LABEL_5, "released")
    if source_flags.chosen_source().name == "released":
        return report(_prepare_released())
    choice = splits.Choice(
        name=_SPLIT.value,
        seed=_SPLIT_SEED.value,
        folds=_FOLDS.value,
        fold=_FOLD.value,
        excluded=frozenset(_EXCLUDE.value),
        held_out=frozenset(_HOLD_OUT.value),
    )
    shard = pipeline.Shard.parse(_SHARD.value) if _SHARD.value is not None else None
    earlier: list[Path] = []
    note_once = cache(note)  # every fold has the same to tell of the raw data
    with source_flags.workers() as pool:
        for fold in _folds(choice):
            out = Path(_OUT.value.replace("{fold}", str(fold or 0)))
            problems = pipeline.prepare_source(
                source_flags.chosen_source(),
                source_flags.options(),
                out,
                choice=replace(choice, fold=fold),
                pool=pool,
                note=note_once,
                dry_run=_DRY_RUN.value,
                overwrite=_OVERWRITE.value,
                shard=shard,
                other_folds=earlier,
            )
            if problems:
                before = f"{out} was not written; prepared before it: {', '.join(map(str, earlier))}"
                return report(problems, before if earlier else "nothing was written")
            earlier.append(out)
    return 0


def _folds(choice: splits.Choice) -> list[int | None]:
    """The folds to prepare: all of them where the name of `--out` tells them apart and no other flag chooses one."""
    if "{fold}" not in _OUT.value or choice.fold is not None:
        return [choice.fold]
    if _SHARD.value is not None:
        raise InputError(
            "--shard: goes with one fold: expected --fold=0 beside it; when all shards are done, the command without "
            "--shard and --fold prepares all folds from them"
        )
    return list(choice.folds_there())


def _prepare_released() -> list[Problem]:
    if _SHARD.value is not None:
        raise InputError("--shard: the released files are prepared in a minute; leave the flag out")
    of_split = (_SPLIT, _SPLIT_SEED, _FOLDS, _FOLD, _EXCLUDE, _HOLD_OUT)
    given = [f"--{flag.name}" for flag in of_split if flag.value not in (None, "", [])]
    if "{fold}" in _OUT.value:
        given.append("{fold} in --out")
    if given:
        raise InputError("the lists are the split", where=", ".join(given), fix="expected no such flag; leave it out")
    start_tensorflow()
    raw, out = source_flags.options().folder(), Path(_OUT.value)
    return release.prepare_release(
        raw, out, outside=cast(OutsideLabel, _LABEL_5.value), note=note, dry_run=_DRY_RUN.value
    )


if __name__ == "__main__":
    run(main)
