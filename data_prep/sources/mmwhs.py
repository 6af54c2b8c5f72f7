"""MM-WHS 2017 cardiac CT and MR: `ct_train/ct_train_1001_image.nii.gz` with `…_label.nii.gz`, `mr_train/…` alike.

Only the labelled training cases are used; the labels of the challenge's test cases are encrypted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.sources.raw_case import Found, Note, RawCase, find_root, numbered, pair, unmatched
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.reading import Scan, read_label

CLASSES = {0: 0, 205: 1, 420: 2, 500: 3, 820: 4, 550: 0, 600: 0, 850: 0}  # RA, RV and PA are background
SLIP, MEANT = 421, 420  # occurs in a label map of the MR
TREE = "{ct,mr}_train/{ct,mr}_train_1001_{image,label}.nii.gz …"
IDS = tuple(str(n) for n in range(1001, 1021))  # of each modality's labelled scans


def find(raw: Path, modality: str) -> Found:
    """Cases of one modality, "ct" or "mr", in a folder or below it.

    Raises:
        InputError: As `find_root`.
    """
    name = f"{modality}_train"
    root = find_root(raw, lambda folder: any(folder.glob(f"{name}_*.nii*")), f"MM-WHS {modality} cases", TREE)
    images = numbered(root, rf"{name}_(\d{{4}})_image\.nii(?:\.gz)?")
    labels = numbered(root, rf"{name}_(\d{{4}})_label\.nii(?:\.gz)?")
    ids, problems = pair(images, labels)
    cases = [RawCase(f"{modality}_{i}", modality, images[i][0], labels[i][0], CLASSES, read_mended) for i in ids]
    return Found(cases, problems, notes=unmatched(root, (*images.values(), *labels.values()), f"{name}_"))


def read_mended(case: RawCase, scan: Scan | None, note: Note) -> Volume:
    """Reads a label map with 421, a known slip, as the 420 that was meant."""
    label = read_label(case.label)
    slips = label.array == SLIP
    if not slips.any():
        return label
    note(f"{case.case_id}: {slips.sum()} voxels of {SLIP}, a known slip, read as {MEANT} ({case.label})")
    return Volume(np.where(slips, MEANT, label.array), label.affine)
