"""Segments scans with trained runs.

    python -m experiments.predict --run_dir=runs/ours --modality=ct --input=scan.nii.gz  --output=labels.nii.gz
    python -m experiments.predict --run_dir=runs/ours --modality=mr --input=dicom_folder --output=labels.nii.gz
    python -m experiments.predict --run_dir=runs/ours --modality=ct --input=folder       --output=predictions/
    python -m experiments.predict --run_dir=runs/ours               --input=scans.csv    --output=predictions/
    python -m experiments.predict --model=model      --modality=ct --input=scan.nii.gz  --output=labels.nii.gz
    python -m experiments.predict --run_dir=runs/ours-seed0,runs/ours-seed1 …            the mean of several runs

A folder is one DICOM series, or holds scans: NIfTI, NRRD and MetaImage files, and folders with one DICOM series each. A
CSV has the columns case, modality and image (paths relative to it); others are ignored.

With a file as --output, the label map is written there. With a folder: NAME.nii.gz for each scan, volumes.csv and
volumes.json (voxels and millilitres; a second call with the same model and options, as for the other modality, adds its
scans), labels.label for ITK-SNAP and labels.ctbl for 3D Slicer.

The label map has the shape, orientation and place of the scan itself; that of a scan with tilted slices (a CT's gantry)
lies on an upright grid that covers it, because NIfTI readers such as ITK take no tilted one. A scan larger than the
task's window is covered with windows.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from absl import flags
from tqdm import tqdm

from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.documents import MALFORMED, plain_name, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import files_in_order, replacing, write_json
from ummkd_tf.common.notes import note_aside
from ummkd_tf.evaluation.overlap import check_overlap
from ummkd_tf.output.label_files import check_highdicom, write_dicom_seg, write_label_files
from ummkd_tf.output.pictures import overlay_figure, save_figure
from ummkd_tf.output.viewer import SliceViewer
from ummkd_tf.runs.config import Selection
from ummkd_tf.runs.loading import load_scan_predictor, read_agreeing_runs
from ummkd_tf.runs.model_folder import read_description
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.scans.nifti import write_nifti
from ummkd_tf.scans.reading import VOLUME_SUFFIXES, is_dicom_scan

if TYPE_CHECKING:
    from ummkd_tf.evaluation.scan_prediction import ScanPredictor, Segmentation

FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "run_dir", None, "Folder of a trained run; several, repeated or with commas between, are averaged."
)
flags.DEFINE_string("model", None, "Exported model, a folder that experiments.export has written, instead of a run.")
flags.DEFINE_string("input", None, "A scan, a folder with one DICOM series, a folder of scans, or a CSV of scans.")
flags.DEFINE_string("modality", None, "The scans' modality, as the run names it, e.g. ct or mr; a CSV has its own.")
flags.DEFINE_string("output", None, "Label map to write, .nii or .nii.gz; or a folder, for one scan or many.")
flags.DEFINE_string(
    "overlay",
    None,
    "Picture to write (.png or .pdf): the scan with the label's contours in three planes; or a folder for pictures.",
)
flags.DEFINE_string("viewer", None, "Page (.html) to go through the slices of all scans with the label's contours.")
flags.DEFINE_enum("selection", None, list(get_args(Selection)), "Checkpoint; by default what the run was started with.")
flags.DEFINE_float("overlap", 0.0, "Share of a 3D chunk that the next one sees again, 0 to 0.875; 0.5 smooths seams.")
flags.DEFINE_bool("largest_component", False, "Keep the largest connected part of each class alone.")
flags.DEFINE_bool("probabilities", False, "Also write NAME_probabilities.nii.gz, float32, one volume per class.")
flags.DEFINE_bool("dicom_seg", False, "Also write NAME.dcm, a DICOM segmentation, for DICOM series (needs highdicom).")
for _name in ("input", "output"):
    flags.mark_flag_as_required(_name)

_COLUMNS = ("case", "modality", "image")


@dataclass(frozen=True)
class ScanToSegment:
    """One scan to segment: its name, which its files take, its place and its modality."""

    name: str
    path: Path
    modality: str


def main(_: list[str]) -> None:
    run_dirs = [name.strip() for given in FLAGS.run_dir or () for name in given.split(",") if name.strip()]
    if bool(run_dirs) == bool(FLAGS.model):
        raise InputError("--run_dir, --model: expected one of them: a trained run, or a model exported from one")
    if FLAGS.model and FLAGS.selection:
        raise InputError("--selection: an exported model has one checkpoint: leave it out")
    output = Path(FLAGS.output)
    one_file = output.name.endswith((".nii", ".nii.gz"))
    if not one_file and output.suffix and not output.is_dir():
        raise InputError(f"--output={output}: expected a name that ends in .nii or .nii.gz, or a folder")
    if FLAGS.overlay and one_file and Path(FLAGS.overlay).suffix not in (".png", ".pdf"):
        raise InputError(f"--overlay={FLAGS.overlay}: expected a name that ends in .png or .pdf")
    check_overlap(FLAGS.overlap)
    if FLAGS.dicom_seg:
        check_highdicom()
    record = read_description(Path(FLAGS.model)) if FLAGS.model else read_agreeing_runs(run_dirs)[0]
    scans = _scans(Path(FLAGS.input), record["model"]["modalities"])
    if one_file and (len(scans) > 1 or FLAGS.input.endswith(".csv")):
        raise InputError(f"--output={output}: a file, but {FLAGS.input} lists scans: give a folder to write to")
    targets = {scan.name: output if one_file else output / f"{scan.name}.nii.gz" for scan in scans}
    _check_not_overwriting(scans, targets)
    if not one_file:
        _check_names_are_free(scans, output)
    start_tensorflow()
    # Here, to start without TensorFlow.
    from ummkd_tf.runs.exported import load_model

    options = {"overlap": FLAGS.overlap, "largest_component": FLAGS.largest_component}
    predictor = (
        load_model(FLAGS.model).scan_predictor(**options)
        if FLAGS.model
        else load_scan_predictor(run_dirs, FLAGS.selection, **options)
    )
    viewer = SliceViewer(predictor.task, ("prediction",), cases=len(scans)) if FLAGS.viewer else None
    failed, volumes = [], {}
    for number, scan in enumerate(scans, start=1):
        count = f"{number}/{len(scans)} " if len(scans) > 1 else ""
        try:
            result = _segment(scan, predictor, f"{count}{scan.name}")
            write_nifti(targets[scan.name], Volume(result.labels, result.affine))
            volumes[scan.name] = _volumes(result, scan)
            _write(result, scan, targets[scan.name], predictor, one_file)
        except InputError as error:
            if len(scans) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(scan.name)
            continue
        if viewer:
            maps, spacing_mm = [result.prepared_labels], result.prepared_grid.spacing_mm
            viewer.add(scan.name, result.prepared_image, maps, spacing_mm=spacing_mm, words=scan.modality)
    if not one_file and volumes:
        _write_tables(output, volumes, predictor, run_dirs or [FLAGS.model])
    if viewer and volumes:
        viewer.write(FLAGS.viewer, predictor.title)
        print(f"slices: {FLAGS.viewer}")
    if failed:
        raise InputError(f"{len(failed)} of {len(scans)} scans have an error, see above: {', '.join(failed)}")


def _scans(given: Path, modalities: Sequence[str]) -> list[ScanToSegment]:
    """What --input means, checked for modalities and names."""

    def stem(path: Path) -> str:
        suffix = next((s for s in VOLUME_SUFFIXES if path.name.lower().endswith(s)), path.suffix * path.is_file())
        return path.name[: len(path.name) - len(suffix)]

    if given.suffix.lower() == ".csv":
        scans = _csv_scans(given)
    else:
        if FLAGS.modality is None:
            raise InputError("--modality: missing: expected the scan's modality, one of " + ", ".join(modalities))
        if given.is_dir():
            files_in_order(given)  # refuses broken links
        visible = [p for p in sorted(given.iterdir()) if not p.name.startswith(".")] if given.is_dir() else []
        several = [p for p in visible if p.is_dir() or p.name.lower().endswith(VOLUME_SUFFIXES)]
        loose = [p for p in visible if p.is_file() and p not in several]
        # A folder whose files are no volumes is one DICOM series, whatever folders lie beside them.
        is_list = several and (not loose or any(p.is_file() for p in several))
        paths = several if is_list else [given]
        if is_list and loose:
            note_aside(f"{given}: left out, no scans: {', '.join(p.name for p in loose)}")
        scans = [ScanToSegment(plain_name(stem(path.absolute())), path, FLAGS.modality) for path in paths]
    scans = [  # "CT" is accepted for "ct"
        scan if scan.modality in modalities else replace(scan, modality=scan.modality.lower()) for scan in scans
    ]
    where = given if given.suffix.lower() == ".csv" else f"--modality={FLAGS.modality}"
    for scan in scans:
        if scan.modality not in modalities:
            told = f"{where}: {scan.name} is {scan.modality!r}, and" if isinstance(where, Path) else f"{where}:"
            raise InputError(f"{told} the run knows {', '.join(modalities)}; give the scan's modality")
        if not scan.path.exists():
            raise InputError("no such file or folder", where=scan.path, fix="check the path")
    names = [scan.name for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"several scans called {', '.join(twice)}", where=given, fix="rename them, or list them in a CSV"
        )
    return scans


def _csv_scans(path: Path) -> list[ScanToSegment]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"no column {', '.join(missing)}", where=path, fix=f"expected {','.join(_COLUMNS)}")
            rows = [(reader.line_num, [(row[c] or "").strip() for c in _COLUMNS]) for row in reader]
            rows = [(line, values) for line, values in rows if any(values)]  # spreadsheets leave empty rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"not a readable CSV file ({error})", where=path, fix="check the path and that it is UTF-8"
        ) from error
    for line, values in rows:
        if not all(values):
            raise InputError(f"{path} line {line}: an empty field: expected {', '.join(_COLUMNS)}; correct the line")
    if not rows:
        raise InputError("lists no scan", where=path, fix=f"expected one a line under {','.join(_COLUMNS)}")
    return [ScanToSegment(plain_name(case), path.parent / image, modality) for _, (case, modality, image) in rows]


def _check_not_overwriting(scans: Sequence[ScanToSegment], targets: dict[str, Path]) -> None:
    inputs = {scan.path.resolve() for scan in scans}
    for target in targets.values():
        if target.resolve() in inputs or any(target.exists() and target.samefile(path) for path in inputs):
            told = f"--output={FLAGS.output}"
            raise InputError("is the scan itself", where=told, fix="expected another file; choose another name")


def _check_names_are_free(scans: Sequence[ScanToSegment], output: Path) -> None:
    """Refuses to replace what the folder holds of another scan with the same name, e.g. of the other modality."""
    try:
        earlier = read_json(output / "volumes.json")["scans"]
        found = {scan.name: earlier[scan.name] for scan in scans if scan.name in earlier}
        known = {name: (entry["modality"], Path(entry["image"])) for name, entry in found.items()}
    except MALFORMED:  # none yet, or a damaged one
        return
    for scan in scans:
        modality, image = known.get(scan.name, (scan.modality, scan.path))
        if modality != scan.modality or (image.exists() and not image.samefile(scan.path)):
            raise InputError(
                f"{scan.name}: holds the label map of another scan of that name ({modality} {image})",
                where=output,
                fix="choose another --output, or give the scans other names in a CSV",
            )


def _segment(scan: ScanToSegment, predictor: ScanPredictor, title: str) -> Segmentation:
    def progress(batches: Sequence[int]) -> Any:
        return tqdm(batches, desc=title, unit="batch", disable=None, leave=False)  # None: quiet in a file or pipe

    return predictor.predict_scan(scan.path, scan.modality, progress=progress)


def _volumes(result: Segmentation, scan: ScanToSegment) -> dict[str, Any]:
    """A scan's entry in volumes.json."""
    classes = {
        name: {"label": result.task.class_names.index(name), "voxels": n, "ml": result.milliliters[name]}
        for name, n in result.voxels.items()
    }
    return {"modality": scan.modality, "image": str(scan.path), "windows": result.windows, "classes": classes}


def _write(result: Segmentation, scan: ScanToSegment, target: Path, predictor: ScanPredictor, one_file: bool) -> None:
    """What there is to say and to write of a scan beside its label map."""
    base = target.with_name(target.name.removesuffix(".gz").removesuffix(".nii"))
    labels = Volume(result.labels, result.affine)
    if FLAGS.probabilities:
        write_nifti(base.with_name(f"{base.name}_probabilities.nii.gz"), Volume(result.probabilities, result.affine))
    if FLAGS.dicom_seg:
        if not is_dicom_scan(scan.path):
            raise InputError("no DICOM series, which --dicom_seg needs", where=scan.path, fix="leave --dicom_seg out")
        if labels.array.any():
            path, series = base.with_name(f"{base.name}.dcm"), DicomSeries.open(scan.path)
            write_dicom_seg(path, labels, series, result.task, predictor.title)
        else:
            print(f"{scan.path}: nothing was found, and a DICOM segmentation cannot be empty: none was written")
    print(f"{target}: {predictor.title}; shape {result.labels.shape}, orientation {result.grid.axes}")
    if result.windows > 1:
        print(f"{scan.path}: larger than the task's window, and covered with {result.windows} windows")
    print("; ".join(f"{number} {name} {ml:.0f} ml" for number, (name, ml) in enumerate(result.milliliters.items(), 1)))
    if FLAGS.overlay:
        figure = overlay_figure(
            result.prepared_image,
            result.prepared_labels,
            task=result.task,
            spacing_mm=result.prepared_grid.spacing_mm,
            title=f"{_scan_name(scan.path)}: {predictor.title}",
        )
        picture = Path(FLAGS.overlay) if one_file else Path(FLAGS.overlay) / f"{scan.name}.png"
        save_figure(figure, picture)
        print(f"picture: {picture}")


def _write_tables(output: Path, volumes: dict[str, Any], predictor: ScanPredictor, run_dirs: Sequence[str]) -> None:
    """Writes the tables of a folder: also of scans that the same model and options have segmented there before."""
    about = {
        "model": predictor.title,
        "run_dirs": list(run_dirs),
        "task": predictor.task.name,
        "overlap": predictor.overlap,
        "largest_component": predictor.largest_component,
    }
    new = len(volumes)
    try:
        before = read_json(output / "volumes.json")
        earlier = dict(before.pop("scans"))
    except MALFORMED:  # none yet, or a damaged one, which is written anew
        before, earlier = about, {}
    if before == about:
        volumes = {**earlier, **volumes}
    elif left := [name for name in earlier if name not in volumes]:
        print(f"{output}: segmented otherwise, so no longer in volumes.csv: {', '.join(left)}")
    rows = [
        (name, scan["modality"], class_name, entry["label"], entry["voxels"], f"{entry['ml']:.3f}")
        for name, scan in volumes.items()
        for class_name, entry in scan["classes"].items()
    ]
    with replacing(output / "volumes.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("scan", "modality", "class", "label", "voxels", "ml"))
        writer.writerows(rows)
    write_json(output / "volumes.json", {**about, "scans": volumes})
    files = write_label_files(output, predictor.task)
    print(f"{output}: {new} scans; volumes.csv, volumes.json, {', '.join(path.name for path in files)}")


def _scan_name(path: Path) -> str:
    """A file's name, or the end of a folder's path: DICOM folders are often called alike, and the patient is above."""
    return "/".join(path.resolve().parts[-3:]) if path.is_dir() else path.name


if __name__ == "__main__":
    run(main)
