"""Writes the committed split files, so that each can be made again and none is edited by hand.

python -m data_prep.make_splits
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data_prep import splits
from data_prep.sources import btcv, chaos, mmwhs
from ummkd_tf.common.cli import run
from ummkd_tf.common.files import write_whole
from ummkd_tf.data.dataset import PARTS

SEED = 0
PAPER_NUM_CASES = {"ct": 29, "mr": 9}
ABDOMEN = {"ct": [f"ct_{n}" for n in btcv.IDS], "mr": [f"mr_{n}" for n in chaos.IDS]}
NOT_AT_HAND = {*(f"ct_{n:04d}" for n in (3, 8, 22, 28, 34, 39)), *(f"mr_{n}" for n in (5, 13, 22, 33, 38))}
"""Cases of BTCV and CHAOS that the runs in docs/results do without."""
MMWHS = {m: [f"{m}_{n}" for n in mmwhs.IDS] for m in ("ct", "mr")}
SIFA_MMWHS_TEST = {"ct": ("1003", "1008", "1014", "1019"), "mr": ("1007", "1009", "1018", "1019")}
SIFA_ABDOMEN_TEST = {"ct": ("0001", "0009", "0030", "0032", "0033", "0039"), "mr": ("1", "13", "32", "38")}
"""Test cases of SIFA as its author published them: in its data and cchen-cc/SIFA#6; in cchen-cc/SIFA#34."""


def contents() -> dict[str, dict[str, Any]]:
    """Every committed split file by name."""
    drawn = f"in the seeded order of seed {SEED}"
    paper_sized = {m: splits.shuffled(ids, SEED)[: PAPER_NUM_CASES[m]] for m, ids in ABDOMEN.items()}
    at_hand = {m: [c for c in ids if c not in NOT_AT_HAND] for m, ids in ABDOMEN.items()}
    result: dict[str, dict[str, Any]] = {
        "mmwhs_sifa": {
            "description": "MM-WHS: the test cases published by the same group (SIFA). Which two cases per modality "
            f"validate is our choice: the first of the rest {drawn}.",
            "split": {m: _tested(MMWHS[m], SIFA_MMWHS_TEST[m], m, validated=2) for m in MMWHS},
        },
        "abdomen_sifa": {
            "description": "BTCV and CHAOS: the test cases published by the same group (SIFA), which trained on all "
            f"others. That a tenth of all cases validates is our choice: the first of the others {drawn}.",
            "split": {m: _tested(ids, SIFA_ABDOMEN_TEST[m], m, validated=len(ids) // 10) for m, ids in ABDOMEN.items()},
        },
        "abdomen_paper_size": {
            "description": "BTCV and CHAOS sized as in the paper: 29 CT and 9 MR. The paper's own ids, and the CT it "
            f"excluded, are unpublished; these are our choice: the first 29 and 9 {drawn}, which claims nothing about "
            "any case.",
            "split": splits.seeded(paper_sized, SEED),
        },
        "abdomen_39": {
            "description": "The 24 CT of BTCV and 15 MR of CHAOS of the runs in docs/results (the others were not at "
            f"hand), in three folds {drawn}: each case is tested in one of them.",
            "folds": [splits.k_fold(at_hand, SEED, 3, fold) for fold in range(3)],
        },
    }
    return {name: {"name": name, **content} for name, content in result.items()}


def text(content: Mapping[str, Any]) -> str:
    """A split file's text."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _tested(ids: Sequence[str], numbers: Sequence[str], modality: str, validated: int) -> dict[str, Sequence[str]]:
    """A split with given test cases, of which the first others validate."""
    test = [f"{modality}_{n}" for n in numbers]
    rest = splits.shuffled([c for c in ids if c not in test], SEED)
    return dict(zip(PARTS, (sorted(rest[validated:]), sorted(rest[:validated]), test), strict=True))


def main(argv: list[str]) -> None:
    """Writes every split file into --dir."""
    for name, content in contents().items():
        path = Path(flags.FLAGS.dir or splits.COMMITTED) / f"{name}.json"
        write_whole(path, text(content))
        print(path)


if __name__ == "__main__":
    flags.DEFINE_string("dir", None, "Folder of the split files; default: the committed ones, data_prep/splits.")
    run(main)
