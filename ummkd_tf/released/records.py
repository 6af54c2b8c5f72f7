"""The authors' released data, used as it is: training records, list files and test volumes.

A training record (`*.tfrecords`) holds one slice with its two neighbours and the slice's label. A list file names one
record a line. A test volume is an `.npz` file, or the pair of NIfTI files that such a file is made from; its slices are
rotated by 180° against those of the records, so reading rotates them back. Volumes cannot be rebuilt from records (the
slices are shuffled and augmented, and name no patient): only the 2D network can be trained on them.

`data_prep.release` checks a folder of such files once and describes it in `released.json`:

<data_dir>/released.json           records of each modality and part, what label 5 means, checksum
<data_dir>/cases/<case_id>.h5      test volumes as cases, see `ummkd_tf.data.cases`
<raw>/…                            the records themselves, wherever they were unpacked
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.reading import as_labels

TASK = "cardiac"
MODALITIES = ("ct", "mr")

SHAPE = (256, 256, 3)
"""Rows, columns and neighbouring slices of a record."""

OUTSIDE = 5
"""A label beyond the task's classes 0..4 that released files contain."""

OutsideLabel = Literal["ignored", "background"]
"""What `OUTSIDE` is in training: no class at all, as in the released code (its one-hot is zero), or class 0."""

_SIZES = {f"{kind}size_dim{axis}": size for kind in "dl" for axis, size in enumerate(SHAPE)}


def read_record(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Reads one training record.

    Returns:
        (image, label): float32 [256, 256, 3], the slices k-1, k, k+1 bit for bit; uint8 [256, 256], the class map
        (0..5) of slice k, which is channel 1 of the stored label.

    Raises:
        InputError: Damaged, not exactly one example, other sizes, a value that is not finite, or no such label.
    """
    path = Path(path)
    features = _features(path)
    for name, size in _SIZES.items():
        found = list(features[name].int64_list.value)
        if found != [size]:
            raise InputError(
                f"{name} is {found}", where=path, fix=f"expected [{size}]; use the authors' released records"
            )
    image, label = (_array(path, name, list(features[name].bytes_list.value)) for name in ("data_vol", "label_vol"))
    return checked_image(image, path), checked_label(label[:, :, 1], path)


@functools.cache
def _only_element() -> Callable[[str], Any]:
    """Reads the one example of a file; as a graph, because an eager data set takes ten times as long."""
    # Here, to start without TensorFlow.
    import tensorflow as tf

    return tf.function(
        lambda path: tf.data.TFRecordDataset(path).get_single_element(),
        input_signature=[tf.TensorSpec([], tf.string)],
    )


def _features(path: Path) -> Mapping[str, Any]:
    # Here, to start without TensorFlow.
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise InputError("no such record", where=path, fix="check the path")
    if not os.access(path, os.R_OK):
        raise InputError("not readable", where=path, fix="check the file's permissions")
    try:
        return tf.train.Example.FromString(_only_element()(str(path)).numpy()).features.feature
    except tf.errors.InvalidArgumentError as error:
        found = "more than one example" if path.stat().st_size else "empty file (0 bytes)"
        raise InputError(found, where=path, fix="expected one record; copy or unpack it again") from error
    except (tf.errors.OpError, DecodeError) as error:
        raise InputError("damaged or truncated record", where=path, fix="copy or unpack it again") from error


def _array(path: Path, name: str, values: Sequence[bytes]) -> NDArray[np.float32]:
    expected = 4 * int(np.prod(SHAPE))
    if [len(value) for value in values] != [expected]:
        found = f"{len(values[0])} bytes" if values else "missing"
        raise InputError(
            f"{name} is {found}", where=path, fix=f"expected {expected} bytes of float32; copy or unpack it again"
        )
    return np.frombuffer(values[0], "<f4").reshape(SHAPE)


def checked_image(image: NDArray, path: Path) -> NDArray[np.float32]:
    """An image as float32.

    Raises:
        InputError: NaN or infinite values.
    """
    with np.errstate(over="ignore"):
        image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():
        raise InputError(
            "NaN or infinite values in the image", where=path, fix="expected finite ones; copy or unpack it again"
        )
    return image


def checked_label(label: NDArray, path: Path) -> NDArray[np.uint8]:
    """A class map as uint8.

    Raises:
        InputError: A value that is no whole number, or none of 0 to `OUTSIDE`.
    """
    values = as_labels(label, path)
    if values.min() < 0 or values.max() > OUTSIDE:
        raise InputError(
            f"label values {values.min()} to {values.max()}",
            where=path,
            fix=f"expected 0 to {OUTSIDE}; use the authors' released files",
        )
    return values.astype(np.uint8)


def without_outside(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class map with background in the place of `OUTSIDE`."""
    return np.where(label == OUTSIDE, 0, label).astype(np.uint8)
