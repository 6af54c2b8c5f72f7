"""BTCV abdominal CT ("Multi-Atlas Labeling Beyond the Cranial Vault"): `img/img0001.nii.gz`, `label/label0001.nii.gz`.

The label files hold 13 organs; the task uses four of them (docs/reproduction.md#btcv).
"""

from __future__ import annotations

from pathlib import Path

from data_prep.sources.raw_case import Found, RawCase, find_root, numbered, pair, unmatched

MODALITY = "ct"
ORGANS = range(1, 14)  # of the data set; 0 is background
CLASSES = dict.fromkeys((0, *ORGANS), 0) | {6: 1, 2: 2, 3: 3, 1: 4}  # liver, right kidney, left kidney, spleen
TREE = "img/img0001.nii.gz … and label/label0001.nii.gz …"
IDS = tuple(f"{n:04d}" for n in (*range(1, 11), *range(21, 41)))  # of the 30 labelled scans


def find(raw: Path) -> Found:
    """Cases of BTCV in a folder or below it.

    Raises:
        InputError: As `find_root`.
    """
    root = find_root(raw, lambda folder: (folder / "img").is_dir() and (folder / "label").is_dir(), "BTCV cases", TREE)
    images = numbered(root / "img", r"img(\d{4})\.nii(?:\.gz)?")
    labels = numbered(root / "label", r"label(\d{4})\.nii(?:\.gz)?")
    ids, problems = pair(images, labels)
    cases = [RawCase(f"{MODALITY}_{i}", MODALITY, images[i][0], labels[i][0], CLASSES) for i in ids]
    notes = [*unmatched(root / "img", images.values()), *unmatched(root / "label", labels.values())]
    return Found(cases, problems, notes=notes)
