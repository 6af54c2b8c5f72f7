"""BTCV abdominal CT ("Multi-Atlas Labeling Beyond the Cranial Vault"): `img/img0001.nii.gz`, `label/label0001.nii.gz`.

The label files hold 13 organs; the task uses four of them (docs/reproduction.md#btcv).
"""

from __future__ import annotations

from pathlib import Path

from data_prep.sources.raw_case import Found, RawCase, first_folder, numbered, pair

MODALITY = "ct"
ORGANS = range(1, 14)  # of the data set; 0 is background
CLASSES = dict.fromkeys((0, *ORGANS), 0) | {6: 1, 2: 2, 3: 3, 1: 4}  # liver, right kidney, left kidney, spleen
TREE = "img/img0001.nii.gz … and label/label0001.nii.gz … (also below RawData/Training or Training)"


def find(raw: Path) -> Found:
    """Cases of a BTCV folder.

    Raises:
        InputError: Not a BTCV folder.
    """
    root = first_folder(
        [top / below for top in (raw, raw / "btcv") for below in (".", "RawData/Training", "Training")],
        lambda folder: (folder / "img").is_dir() and (folder / "label").is_dir(),
        "BTCV cases",
        TREE,
    )
    images = numbered(root / "img", r"img(\d{4})\.nii(?:\.gz)?")
    labels = numbered(root / "label", r"label(\d{4})\.nii(?:\.gz)?")
    ids, problems = pair(images, labels)
    cases = [RawCase(f"{MODALITY}_{i}", MODALITY, images[i][0], labels[i][0], CLASSES) for i in ids]
    return Found(cases, problems)
