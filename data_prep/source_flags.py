"""The flags that say where raw data lies, the same in every program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from data_prep.sources.chaos import SEQUENCES
from data_prep.sources.table import SOURCES, RawOptions, Source
from data_prep.workers import Workers
from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.environment import available_cores
from ummkd_tf.tasks import TASKS

_SOURCE = flags.DEFINE_enum(
    "source",
    None,
    list(SOURCES),
    "Raw data set. " + "; ".join(f"{source.name}: {source.summary}" for source in SOURCES.values()) + ".",
    required=True,
)
_RAW = flags.DEFINE_string("raw", None, "Raw folder, laid out as downloaded (docs/data.md shows the trees).")
_RAW_CT = flags.DEFINE_string("raw_ct", None, "Raw folder of the CT, where it is not below --raw.")
_RAW_MR = flags.DEFINE_string("raw_mr", None, "Raw folder of the MR, where it is not below --raw.")
_SEQUENCE = flags.DEFINE_enum(
    "sequence",
    "t2spir",
    list(SEQUENCES),
    "CHAOS sequence, which the paper does not name; our default is t2spir, because it has label maps of its own, and "
    "those of T1-DUAL stand for two images.",
)
_CSV = flags.DEFINE_string("csv", None, "CSV file of --source=csv.")
_LABEL_MAP = flags.DEFINE_string(
    "label_map",
    None,
    'JSON file of --source=csv from label value to class name or index, e.g. {"7": "liver"}; '
    "default: the values are the task's class indices.",
)
_TASK = flags.DEFINE_string(
    "task",
    None,
    f"Task of --source=csv: {', '.join(TASKS)}, or a task file (ummkd new-task writes a first one); the other "
    "sources have their own.",
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    available_cores(),
    "Cases worked on at once, each by one process, which takes about 10 bytes a voxel: 1.4 GiB for 512 × 512 × 500.",
    lower_bound=1,
)


def chosen_source() -> Source:
    """Row of --source."""
    return SOURCES[_SOURCE.value]


def check_used(flag: flags.FlagHolder[Any], *sources: str) -> None:
    """Refuses a flag that the chosen source does not use.

    Args:
        flag: The flag.
        sources: Those that use it.

    Raises:
        InputError: The flag was given, and the source is none of these.
    """
    if flag.present and _SOURCE.value not in sources:
        raise InputError(
            f"not used by --source={_SOURCE.value}",
            where=f"--{flag.name}",
            fix=f"expected it only with --source={' or '.join(sources)}; leave it out",
        )


def options() -> RawOptions:
    """The flags as data.

    Raises:
        InputError: A flag that the chosen source does not use.
    """
    check_used(_RAW, *(name for name in SOURCES if name != "csv"))
    check_used(_RAW_CT, "btcv", "abdomen", "mmwhs")
    check_used(_RAW_MR, "chaos", "abdomen", "mmwhs")
    check_used(_SEQUENCE, "chaos", "abdomen")
    check_used(_CSV, "csv")
    check_used(_LABEL_MAP, "csv")
    return RawOptions(
        raw=_path(_RAW),
        raw_ct=_path(_RAW_CT),
        raw_mr=_path(_RAW_MR),
        sequence=_SEQUENCE.value,
        csv=_path(_CSV),
        label_map=_path(_LABEL_MAP),
        task=_TASK.value,
    )


def _path(flag: flags.FlagHolder[str | None]) -> Path | None:
    return Path(flag.value) if flag.value else None


def workers() -> Workers:
    """Processes as many as --workers says."""
    return Workers(_WORKERS.value)
