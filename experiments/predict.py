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
volumes.json (voxels, millilitres, whether each scan is done or failed, and notes; a second call with the same model and
options, as for the other modality, adds its scans), labels.label for ITK-SNAP and labels.ctbl for 3D Slicer.

A scan of several that fails ends no other; the exit code is then 1. The tables are written after each scan, and a
prediction that was stopped goes on with --skip_existing.

The label map has the shape, orientation and place of the scan itself; that of a scan with tilted slices (a CT's gantry)
lies on an upright grid that covers it, because NIfTI readers such as ITK take no tilted one. A scan larger than the
task's window is covered with windows; where the task's region is label_centroid, they search it, and one window around
the most that was found is segmented.
"""

from __future__ import annotations

import contextlib
import csv
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

from absl import flags
from tqdm import tqdm

from experiments.volume_tables import VOLUMES, ScanToSegment, VolumeTables, check_names_are_free, state_of
from ummkd_tf.common.cli import message_for_user, run, start_tensorflow
from ummkd_tf.common.documents import plain_name
from ummkd_tf.common.errors import InputError, Stopped, one_line
from ummkd_tf.common.files import check_exists
from ummkd_tf.common.notes import note_aside, warnings_to
from ummkd_tf.evaluation.overlap import check_overlap
from ummkd_tf.output.label_files import check_highdicom, write_dicom_seg
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
flags.DEFINE_string("model", None, "Exported model, a folder that ummkd export has written, instead of a run.")
flags.DEFINE_string(
    "input", None, "A scan, a folder with one DICOM series, a folder of scans, or a CSV of scans.", required=True
)
flags.DEFINE_string("modality", None, "The scans' modality, as the run names it, e.g. ct or mr; a CSV has its own.")
flags.DEFINE_string(
    "output", None, "Label map to write, .nii or .nii.gz; or a folder, for one scan or many.", required=True
)
flags.DEFINE_bool(
    "skip_existing",
    False,
    "Keep what the same model and options have made of the same scans in the folder --output, and segment the others.",
)
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

_COLUMNS = ("case", "modality", "image")


def main(_: list[str]) -> None:
    run_dirs = [name.strip() for given in FLAGS.run_dir or () for name in given.split(",") if name.strip()]
    if bool(run_dirs) == bool(FLAGS.model):
        raise InputError("--run_dir, --model: expected one of them: a trained run, or a model exported from one")
    if FLAGS.model and FLAGS.selection:
        raise InputError("--selection: an exported model has one checkpoint: leave it out")
    output = Path(FLAGS.output)
    one_file = output.name.lower().endswith((".nii", ".nii.gz"))
    if not one_file and output.suffix and not output.is_dir():
        raise InputError(f"--output={output}: expected a name that ends in .nii or .nii.gz, or a folder")
    if FLAGS.overlay and one_file and Path(FLAGS.overlay).suffix not in (".png", ".pdf"):
        raise InputError(f"--overlay={FLAGS.overlay}: expected a name that ends in .png or .pdf")
    check_overlap(FLAGS.overlap)
    if FLAGS.dicom_seg:
        check_highdicom()
    record = read_description(Path(FLAGS.model)) if FLAGS.model else read_agreeing_runs(run_dirs)[0]
    scans = _scans(Path(FLAGS.input), record["model"]["modalities"])
    if FLAGS.skip_existing and (one_file or FLAGS.viewer):
        raise InputError(
            "--skip_existing: goes with a folder as --output, and without --viewer, whose page has all scans"
        )
    if one_file and (len(scans) > 1 or _is_csv(Path(FLAGS.input))):
        raise InputError(f"--output={output}: a file, but {FLAGS.input} lists scans: give a folder to write to")
    places = {scan.name: _places(scan.name, output, one_file) for scan in scans}
    _check_not_overwriting(scans, [path for files in places.values() for path in files.values()])
    if not one_file:
        check_names_are_free(scans, output, places)
    start_tensorflow()
    # Here, to start without TensorFlow.
    from ummkd_tf.runs.exported import load_model

    options = {"overlap": FLAGS.overlap, "largest_component": FLAGS.largest_component}
    predictor = (
        load_model(FLAGS.model).scan_predictor(**options)
        if FLAGS.model
        else load_scan_predictor(run_dirs, FLAGS.selection, **options)
    )
    tables = None if one_file else VolumeTables(output, scans, predictor, run_dirs or [FLAGS.model])
    _segment_all(scans, predictor, places, tables)


def _segment_all(
    scans: Sequence[ScanToSegment],
    predictor: ScanPredictor,
    places: Mapping[str, Mapping[str, Path]],
    tables: VolumeTables | None,
) -> None:
    """Segments the scans, of which one that fails ends no other.

    Raises:
        InputError: At the end: some have failed.
        Stopped: Ctrl-C or SIGTERM.
    """
    kept = tables.kept(places) if tables and FLAGS.skip_existing else []
    if kept:
        print(f"{FLAGS.output}: {len(kept)} of {len(scans)} scans are kept, segmented before")
    todo = [scan for scan in scans if scan.name not in kept]
    viewer = SliceViewer(predictor.task, ("prediction",), cases=len(scans)) if FLAGS.viewer else None
    done, failed = len(kept), []
    try:
        with _sigterm_like_ctrl_c():
            for number, scan in enumerate(todo, start=1):
                title = f"{number}/{len(todo)} {scan.name}" if len(todo) > 1 else scan.name
                entry: dict[str, Any] = {"modality": scan.modality, "image": str(scan.path.absolute())}
                entry |= {"image_state": state_of(scan.path), "windows": 0}
                entry |= {"classes": {}, "status": "failed", "notes": []}
                try:
                    _segment(scan, predictor, places[scan.name], title, entry, viewer)
                except BrokenPipeError:  # nobody reads the output any more
                    raise
                except Exception as error:  # of whatever kind, e.g. too little memory
                    if len(scans) == 1:
                        raise
                    text = _without_path(message_for_user(error) or one_line(repr(error)), scan)
                    print(f"error: {one_line(str(scan.path))}: {text}", file=sys.stderr)
                    entry["notes"].append(text)
                    failed.append(scan.name)
                if tables:
                    tables.add(scan.name, entry)
                done += entry["status"] == "done"
            if viewer and done:
                viewer.write(FLAGS.viewer, predictor.title)
                print(f"slices: {FLAGS.viewer}")
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        message = f"stopped by {signal.Signals(number).name}: {done} of {len(scans)} scans are segmented"
        if tables and (tables.files or kept):
            message += f", and listed in {FLAGS.output}/{VOLUMES}; the same command with --skip_existing goes on"
        raise Stopped(message, 128 + number) from None
    if tables and todo:
        print(f"{FLAGS.output}: scans segmented: {done - len(kept)}; {', '.join(tables.files)}")
    if failed:
        raise InputError(f"{len(failed)} of {len(scans)} scans have an error, see above: {', '.join(failed)}")


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM, by which a cluster or `timeout` stops a program, raise KeyboardInterrupt with its number."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_csv(given: Path) -> bool:
    return given.suffix.lower() == ".csv"


def _scans(given: Path, modalities: Sequence[str]) -> list[ScanToSegment]:
    """What --input means, checked for modalities and names."""

    def stem(path: Path) -> str:
        suffix = next((s for s in VOLUME_SUFFIXES if path.name.lower().endswith(s)), path.suffix * path.is_file())
        return path.name[: len(path.name) - len(suffix)]

    listed = _is_csv(given)
    if listed:
        scans = _csv_scans(given)
    else:
        if FLAGS.modality is None:
            raise InputError("--modality: missing: expected the scan's modality, one of " + ", ".join(modalities))
        visible = [p for p in sorted(given.iterdir()) if not p.name.startswith(".")] if given.is_dir() else []
        # A link to nothing may have been any scan; as one of several it fails alone.
        several = [p for p in visible if not p.is_file() or p.name.lower().endswith(VOLUME_SUFFIXES)]
        loose = [p for p in visible if p not in several]
        # A folder whose files are no volumes is one DICOM series, whatever folders lie beside them.
        is_list = several and (
            not loose or any(p.name.lower().endswith(VOLUME_SUFFIXES) and not p.is_dir() for p in several)
        )
        paths = several if is_list else [given]
        if is_list and loose:
            note_aside(f"{given}: left out, no scans: {', '.join(p.name for p in loose)}")
        scans = [ScanToSegment(plain_name(stem(path.absolute())), path, FLAGS.modality) for path in paths]
    scans = [  # "CT" is accepted for "ct"
        scan if scan.modality in modalities else replace(scan, modality=scan.modality.lower()) for scan in scans
    ]
    for scan in scans:
        if scan.modality not in modalities:
            start = f"{given}: {scan.name} is {scan.modality!r}, and" if listed else f"--modality={FLAGS.modality}:"
            raise InputError(f"{start} the run knows {', '.join(modalities)}; give the scan's modality")
    if not any(scan.path.exists() for scan in scans):
        check_exists(scans[0].path)
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
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in _COLUMNS if column not in reader.fieldnames]
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


def _places(name: str, output: Path, one_file: bool) -> dict[str, Path]:
    """Every file that is to be written of a scan alone, by what it is."""
    labels = output if one_file else output / f"{name}.nii.gz"
    base = labels.name.removesuffix(".gz").removesuffix(".nii")
    places = {"labels": labels}
    if FLAGS.probabilities:
        places["probabilities"] = labels.with_name(f"{base}_probabilities.nii.gz")
    if FLAGS.dicom_seg:
        places["dicom_seg"] = labels.with_name(f"{base}.dcm")
    if FLAGS.overlay:
        places["overlay"] = Path(FLAGS.overlay) if one_file else Path(FLAGS.overlay) / f"{name}.png"
    return places


def _check_not_overwriting(scans: Sequence[ScanToSegment], targets: Sequence[Path]) -> None:
    """Refuses to write a file onto a scan, or onto another scan's file."""
    inputs = {scan.path.resolve() for scan in scans}
    seen: set[str] = set()
    for target in targets:
        place = target.resolve()
        # A hard link or another spelling is told by its file, if there is one.
        if place in inputs or (place.exists() and any(place.samefile(path) for path in inputs if path.exists())):
            raise InputError(
                "is the scan itself", where=target, fix="expected another file; choose another --output or --overlay"
            )
        name = str(target).casefold()  # macOS's disks take "A" and "a" for one name
        if name in seen:
            raise InputError("would be written for two scans", where=target, fix="rename one of them in a CSV")
        seen.add(name)


def _segment(
    scan: ScanToSegment,
    predictor: ScanPredictor,
    places: Mapping[str, Path],
    title: str,
    entry: dict[str, Any],
    viewer: SliceViewer | None,
) -> None:
    """Segments a scan and writes its files; its entry in volumes.json gets what is found, and the notes."""

    def progress(batches: Sequence[int]) -> Any:
        return tqdm(batches, desc=title, unit="batch", disable=None, leave=False)  # None: quiet in a file or pipe

    def take(note: str) -> None:
        note_aside(note)
        entry["notes"].append(_without_path(note, scan))

    with warnings_to(take):
        result = predictor.predict_scan(scan.path, scan.modality, progress=progress)
        write_nifti(places["labels"], Volume(result.labels, result.affine))
        entry["windows"] = result.windows
        entry["classes"] = {
            name: {"label": result.task.class_names.index(name), "voxels": n, "ml": result.milliliters[name]}
            for name, n in result.voxels.items()
        }
        _write(result, scan, places, predictor.title)
        if viewer:
            maps, spacing_mm = [result.prepared_labels], result.prepared_grid.spacing_mm
            viewer.add(scan.name, result.prepared_image, maps, spacing_mm=spacing_mm, words=scan.modality)
    entry["status"] = "done"


def _without_path(text: str, scan: ScanToSegment) -> str:
    """A message without the scan's path before it."""
    return text.removeprefix(one_line(f"{scan.path}: "))


def _write(result: Segmentation, scan: ScanToSegment, places: Mapping[str, Path], title: str) -> None:
    """What there is to say and to write of a scan beside its label map."""
    labels = Volume(result.labels, result.affine)
    if "probabilities" in places:
        write_nifti(places["probabilities"], Volume(result.probabilities, result.affine))
    if "dicom_seg" in places:
        if not is_dicom_scan(scan.path):
            raise InputError("no DICOM series, which --dicom_seg needs", where=scan.path, fix="leave --dicom_seg out")
        if labels.array.any():
            write_dicom_seg(places["dicom_seg"], labels, DicomSeries.open(scan.path), result.task, title)
        else:
            print(f"{scan.path}: nothing was found, and a DICOM segmentation cannot be empty: none was written")
    print(f"{places['labels']}: {title}; shape {result.labels.shape}, orientation {result.grid.axes}")
    if result.windows > 1:
        one = result.task.region == "label_centroid"
        how = "searched with {} windows; one, around what was found, is segmented" if one else "covered with {} windows"
        print(f"{scan.path}: larger than the task's window, and {how.format(result.windows)}")
    print("; ".join(f"{number} {name} {ml:.0f} ml" for number, (name, ml) in enumerate(result.milliliters.items(), 1)))
    if "overlay" in places:
        figure = overlay_figure(
            result.prepared_image,
            result.prepared_labels,
            task=result.task,
            spacing_mm=result.prepared_grid.spacing_mm,
            title=f"{_scan_name(scan.path)}: {title}",
        )
        save_figure(figure, places["overlay"])
        print(f"picture: {places['overlay']}")


def _scan_name(path: Path) -> str:
    """A file's name, or the end of a folder's path: DICOM folders are often called alike, and the patient is above."""
    return "/".join(path.resolve().parts[-3:]) if path.is_dir() else path.name


if __name__ == "__main__":
    run(main)
