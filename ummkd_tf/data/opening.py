"""Opens a data set of either kind."""

from __future__ import annotations

from pathlib import Path

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.dataset import DATASET, RELEASED, Dataset
from ummkd_tf.data.released_dataset import ReleasedDataset


def open_dataset(directory: str | Path) -> Dataset:
    """The data set in a folder: prepared cases (`dataset.json`) or the authors' released files (`released.json`).

    Raises:
        InputError: None, both, or an inconsistent one.
    """
    prepared, released = ((Path(directory) / name).is_file() for name in (DATASET, RELEASED))
    if prepared and released:
        raise InputError(
            f"holds {DATASET} and {RELEASED}", where=directory, fix="expected one data set; remove one of the two"
        )
    return ReleasedDataset.load(directory) if released else Dataset.load(directory)
