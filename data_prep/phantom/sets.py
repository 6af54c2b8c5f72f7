"""Whole sets of phantom scans."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data_prep.phantom.layouts import write_btcv, write_chaos, write_mmwhs
from data_prep.phantom.patient import GLITCHES, PhantomCase
from data_prep.phantom.scanner import PhantomOptions
from data_prep.phantom.templates import ABDOMEN, CARDIAC, Template
from data_prep.sources import btcv, chaos, mmwhs
from data_prep.sources.table import PHANTOM
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.progress import progress

VERSION = 1  # of the generator: raise it whenever the same seed gives other bytes


def write_abdomen(
    out_dir: str | Path,
    *,
    num_ct: int,
    num_mr: int,
    seed: int,
    size: int = 128,
    t1: bool = False,
    anticorrelated_mr: bool = False,
    low_resolution_mr: float = 1.0,
    outlier_ct: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes BTCV-like CT to `out_dir/btcv` and CHAOS-like MR to `out_dir/chaos/Train_Sets/MR`.

    The set appears whole or not at all. The same arguments give the same bytes (with the same library versions and
    processor type); a case depends on `seed`, its modality and its id only, not on how many there are. In CT, liver
    and spleen have the same mean intensity.

    Args:
        out_dir: Folder to make.
        num_ct: CT cases: the first ones of `btcv.IDS`.
        num_mr: MR cases: the first ones of `chaos.IDS`.
        seed: Not negative.
        size: Rows and columns of a slice; 256 gives the 1.2–1.7 mm of the real sets. The slice distance is theirs
            (3 or 5 mm in CT, 6–8 mm in MR) at any size.
        t1: Write CHAOS's T1DUAL beside T2SPIR.
        anticorrelated_mr: MR means are CT's turned upside down (paper Sec. V).
        low_resolution_mr: Width of the MR's point spread in pixels; 1 is sharp (paper Sec. V).
        outlier_ct: One CT more, with streaks around metal (Table VI); `phantom.json` names it.
        overwrite: Replace an earlier phantom in `out_dir`.

    Raises:
        InputError: An argument out of its range, `out_dir` not empty, or not writable.
    """
    _write_set(
        Path(out_dir).resolve(),
        ABDOMEN,
        {"ct": (num_ct, btcv.IDS, write_btcv), "mr": (num_mr, chaos.IDS, write_chaos)},
        seed=seed,
        options=PhantomOptions(size, t1, anticorrelated_mr, low_resolution_mr),
        outlier_ct=outlier_ct,
        overwrite=overwrite,
    )


def write_cardiac(
    out_dir: str | Path,
    *,
    num_ct: int,
    num_mr: int,
    seed: int,
    size: int = 128,
    anticorrelated_mr: bool = False,
    low_resolution_mr: float = 1.0,
    outlier_ct: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes MM-WHS-like scans to `out_dir/ct_train` and `out_dir/mr_train`, in any axis order and direction.

    As `write_abdomen`. In CT, left atrium and left ventricle have the same mean intensity; the ascending aorta has
    that of the (unlabelled) descending one in both modalities.

    Args:
        out_dir: Folder to make.
        num_ct: CT cases: the first ones of `mmwhs.IDS`.
        num_mr: MR cases: the first ones of `mmwhs.IDS`; 1001 has a few voxels of label 421.
        seed: Not negative.
        size: Pixels of the first two axes over about 200 mm (CT) or 300 mm (MR); 512 is a real CT's. The third axis
            follows, with voxels up to 1.5 times as long.
        anticorrelated_mr: As in `write_abdomen`.
        low_resolution_mr: As in `write_abdomen`.
        outlier_ct: As in `write_abdomen`.
        overwrite: Replace an earlier phantom in `out_dir`.

    Raises:
        InputError: An argument out of its range, `out_dir` not empty, or not writable.
    """
    _write_set(
        Path(out_dir).resolve(),
        CARDIAC,
        {"ct": (num_ct, mmwhs.IDS, write_mmwhs), "mr": (num_mr, mmwhs.IDS, write_mmwhs)},
        seed=seed,
        options=PhantomOptions(size, False, anticorrelated_mr, low_resolution_mr),
        outlier_ct=outlier_ct,
        overwrite=overwrite,
    )


_CaseWriter = Callable[[Path, PhantomCase, PhantomOptions], None]


def _write_set(
    out_dir: Path,
    template: Template,
    plan: Mapping[str, tuple[int, Sequence[str], _CaseWriter]],
    *,
    seed: int,
    options: PhantomOptions,
    outlier_ct: bool,
    overwrite: bool,
) -> None:
    _check_numbers(seed, options)
    cases = {
        modality: _take_ids(ids, number, modality, extra=outlier_ct and modality == "ct")
        for modality, (number, ids, _) in plan.items()
    }
    outlier = cases["ct"][-1] if outlier_ct else None
    _check_out_dir(out_dir, overwrite)
    manifest = _manifest(template, cases, outlier, seed, options)
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}-", dir=out_dir.parent) as workspace:
            whole = Path(workspace, "new")
            whole.mkdir()
            for modality, case_id in progress([(m, c) for m in plan for c in cases[m]], desc="phantom", unit="case"):
                streaks = modality == "ct" and case_id == outlier
                write = plan[modality][-1]
                write(whole, PhantomCase(seed, template.name, modality, case_id), replace(options, streaks=streaks))
            (whole / PHANTOM).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if out_dir.exists():
                out_dir.rename(Path(workspace, "old"))
            whole.rename(out_dir)
    except OSError as error:
        raise InputError(
            f"phantom not written ({error.strerror or error})",
            where=out_dir,
            fix="make room or check permissions; the folder is as before",
        ) from error


def _check_numbers(seed: int, options: PhantomOptions) -> None:
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if not 16 <= options.size <= 512:
        raise InputError(f"size {options.size}: expected 16 to 512 pixels")
    if not 1 <= options.low_resolution_mr <= 32:
        raise InputError(f"low_resolution_mr {options.low_resolution_mr:g}: expected 1 (sharp) to 32 pixels")


def _take_ids(ids: Sequence[str], number: int, modality: str, extra: bool) -> list[str]:
    if not 0 <= number <= len(ids) - extra:
        outlier = " beside the outlier" if extra else ""
        raise InputError(f"{number} {modality} cases: expected 0 to {len(ids) - extra}{outlier}, as the real set has")
    return list(ids[: number + extra])


def _check_out_dir(out_dir: Path, overwrite: bool) -> None:
    """Refuses to mix with, or to delete, what is there."""
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError("is a file", where=out_dir, fix="expected a folder to make; give another --out")
    if not out_dir.is_dir() or not any(out_dir.iterdir()):
        return
    if not overwrite:
        raise InputError(
            "not empty", where=out_dir, fix="expected a new or empty folder; give another --out or --overwrite"
        )
    if not (out_dir / PHANTOM).is_file():
        raise InputError(f"holds no {PHANTOM}, so it is not a phantom's to replace; give another --out", where=out_dir)


def _manifest(
    template: Template, cases: Mapping[str, list[str]], outlier: str | None, seed: int, options: PhantomOptions
) -> dict[str, object]:
    sequences = next(iter(template.signals.values()))
    return {
        "generator": "data_prep.phantom",
        "version": VERSION,
        "task": template.name,
        "seed": seed,
        "options": {name: value for name, value in asdict(options).items() if name != "streaks"},
        "cases": cases,
        "outlier_ct": outlier,
        "shared_intensities": {
            sequence: template.shared_intensities(sequence, anticorrelated_mr=options.anticorrelated_mr)
            for sequence in sequences
        },
        "glitches": {
            glitch: {modality: case_id}
            for glitch, (task, modality, case_id) in GLITCHES.items()
            if task == template.name and case_id in cases[modality]
        },
    }
