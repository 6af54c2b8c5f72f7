"""Own scans as a user might have them: CT, T1 and T2 of two made-up organs, no two alike in size and orientation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

PARTS = ("train", "train", "validation", "test")
AXES = ("LPS", "RAS", "PSR", "SAL")
# Air, body, organ 1, organ 2; CT in Hounsfield units.
SIGNALS = {"ct": (-1000, 20, 80, 140), "mr": (0, 300, 200, 700), "t1": (0, 300, 500, 900), "t2": (0, 300, 200, 700)}


def write_scan(folder: Path, case_id: str, modality: str, number: int, values: Sequence[int] = (1, 2)) -> None:
    """An elliptic body with two ellipsoids, 3 mm voxels or larger; organ 1 on the patient's right."""
    rng = np.random.default_rng([number, len(modality), ord(modality[-1])])
    spacing = np.array([3.0, 3.0, 5.0]) + 0.25 * number
    shape = np.array([68, 60, 12]) + 2 * number
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) for n in shape], indexing="ij"), -1) * spacing

    def ellipsoid(center: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        return (((grid - center) / radii) ** 2).sum(-1) < 1

    label = np.zeros(shape, np.uint8)  # axes R, A, S: the first index grows towards the patient's right
    label[ellipsoid((40, 0, 0), (22, 18, 16))] = values[0]
    label[ellipsoid((-35, 5, 4), (15, 20, 14))] = values[1]
    body = ellipsoid((0, 0, 0), (90, 75, 500))
    air, tissue, first, second = SIGNALS[modality]
    image = np.select([label == values[0], label == values[1], body], [first, second, tissue], air).astype(np.float32)
    image += rng.normal(0, 10, image.shape)
    if modality != "ct":
        image = np.abs(image)  # a magnitude, as in MR
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (shape - 1) / 2  # the middle of the scan is the origin of the world
    for name, array in (("image", image.astype(np.int16)), ("label", label)):
        scan = nib.Nifti1Image(array, affine)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(AXES[number % 4])
        )
        nib.save(scan.as_reoriented(turn), folder / f"{case_id}_{name}.nii.gz")


def write_own_data(
    folder: Path, modalities: Sequence[str] = ("ct", "t1", "t2"), values: Sequence[int] = (1, 2)
) -> Path:
    """Four scans of each modality and their CSV."""
    folder.mkdir(exist_ok=True)
    path = folder / "own.csv"
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["case", "modality", "image", "label", "split"])
        for modality in modalities:
            for number, part in enumerate(PARTS):
                case_id = f"{modality}_{number}"
                write_scan(folder, case_id, modality, number, values)
                table.writerow([case_id, modality, f"{case_id}_image.nii.gz", f"{case_id}_label.nii.gz", part])
    return path
