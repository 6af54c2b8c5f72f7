"""What the folder of an exported model holds; read without TensorFlow.

<folder>/model.json       arguments of the model, the whole task, how scans are prepared, labels and colours, and where
                          the model comes from: data, cases trained on, split, commit, seed, steps, validation Dice
<folder>/weights.npz      every weight and statistic by its path; plain arrays, no pickle
<folder>/MODEL_CARD.md    intended use, limits, results
<folder>/SHA256SUMS       checked when the folder is read
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import file_checksum
from ummkd_tf.data.intensities import check_intensities

FORMAT = 1
MODEL, WEIGHTS, CARD, CHECKSUMS = "model.json", "weights.npz", "MODEL_CARD.md", "SHA256SUMS"
_FIELDS: dict[str, type] = {"model": dict, "task": dict, "preparation": int, "factor": int, "training": dict}


def check_new(folder: Path) -> None:
    """Refuses to write into a folder that exists.

    Raises:
        InputError: It is there.
    """
    if folder.exists():
        raise InputError(
            "is there already", where=folder, fix="expected a new folder; choose another --out, or remove it"
        )


def read_description(folder: Path) -> dict[str, Any]:
    """Content of `model.json`, once every file has the checksum that `SHA256SUMS` says.

    Raises:
        InputError: No model folder, or one that was damaged or edited.
    """
    if not (folder / MODEL).is_file():
        raise InputError("no exported model", where=folder, fix="expected a folder that ummkd export has written")
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise InputError("missing or damaged", where=folder / CHECKSUMS, fix="copy the whole folder again") from error
    for name in (MODEL, WEIGHTS, CARD):
        if not (folder / name).is_file() or file_checksum(folder / name) != sums.get(name):
            raise InputError(
                f"missing, damaged or edited (its checksum is not that in {CHECKSUMS})",
                where=folder / name,
                fix="copy the whole folder again",
            )
    try:
        content = read_json(folder / MODEL)
        if content.get("format") != FORMAT:
            raise InputError(
                f"format {content.get('format')}, expected {FORMAT}", where=folder, fix="use the ummkd_tf it names"
            )
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(content.get(name), kind)]
        if wrong:
            raise ValueError(f"no {wrong[0]}")
        check_intensities(content["training"].get("intensities", {}))
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(f"damaged ({error})", where=folder / MODEL, fix="export the model again") from error
    return content
