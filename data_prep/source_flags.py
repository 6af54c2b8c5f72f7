"""The flags that say where raw data lies, the same in every program."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_prep.chaos import SEQUENCES
from data_prep.pipeline import default_workers
from data_prep.sources import SOURCES, Options, Source

_SOURCE = flags.DEFINE_enum(
    "source",
    None,
    list(SOURCES),
    "Raw data set. " + "; ".join(f"{source.name}: {source.summary}" for source in SOURCES.values()) + ".",
    required=True,
)
_RAW = flags.DEFINE_string("raw", None, "Raw folder, laid out as downloaded (data_prep/README.md shows the trees).")
_RAW_CT = flags.DEFINE_string("raw_ct", None, "Raw folder of the CT, where it is not below --raw.")
_RAW_MR = flags.DEFINE_string("raw_mr", None, "Raw folder of the MR, where it is not below --raw.")
_SEQUENCE = flags.DEFINE_enum("sequence", "t2spir", list(SEQUENCES), "CHAOS sequence; the paper's is t2spir.")
_WORKERS = flags.DEFINE_integer(
    "workers", default_workers(), "Cases worked on at once, each by one process of at most 3 GiB.", lower_bound=1
)


def chosen_source() -> Source:
    """Row of --source."""
    return SOURCES[_SOURCE.value]


def options() -> Options:
    """The flags as data."""
    folders = (Path(flag.value) if flag.value else None for flag in (_RAW, _RAW_CT, _RAW_MR))
    return Options(*folders, sequence=_SEQUENCE.value)


def workers() -> int:
    """Value of --workers."""
    return _WORKERS.value
