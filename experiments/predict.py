"""Segments one scan with a trained run.

    python -m experiments.predict --run_dir=runs/ours --modality=ct --input=scan.nii.gz --output=labels.nii.gz
    python -m experiments.predict --run_dir=runs/ours --modality=mr --input=dicom_folder --output=labels.nii.gz

The label map has the shape, orientation and place of the scan itself; that of a scan with tilted slices (a CT's gantry)
lies on an upright grid that covers it, because NIfTI readers such as ITK take no tilted one.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of a trained run.")
flags.DEFINE_string("input", None, "NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.")
flags.DEFINE_string("modality", None, "The scan's modality, as the run names it, e.g. ct or mr.")
flags.DEFINE_string("output", None, "Label map to write, .nii or .nii.gz.")
flags.DEFINE_string(
    "overlay", None, "Picture to write (.png or .pdf): the scan with the label's contours in three planes."
)
flags.DEFINE_enum("selection", None, ["best", "last"], "Checkpoint; by default what the run was started with.")
for _name in ("run_dir", "input", "modality", "output"):
    flags.mark_flag_as_required(_name)


def main(_: list[str]) -> None:
    import numpy as np

    from ummkd_tf.data.reduction import reduce_image
    from ummkd_tf.runs.folder import read_run, task_of
    from ummkd_tf.runs.loading import load_model
    from ummkd_tf.scans.geometry import Volume, straightened
    from ummkd_tf.scans.nifti import write_nifti
    from ummkd_tf.scans.preprocessing import prepare, restore
    from ummkd_tf.scans.reading import read_volume

    output = Path(FLAGS.output)
    if not output.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"--output={output}: expected a name that ends in .nii or .nii.gz")
    if FLAGS.overlay and Path(FLAGS.overlay).suffix not in (".png", ".pdf"):
        raise InputError(f"--overlay={FLAGS.overlay}: expected a name that ends in .png or .pdf")
    if output.exists() and Path(FLAGS.input).exists() and output.samefile(FLAGS.input):
        raise InputError(f"--output={output}: is the scan itself: expected another file; choose another name")
    record = read_run(FLAGS.run_dir)
    modality = FLAGS.modality if FLAGS.modality in record["model"]["modalities"] else FLAGS.modality.lower()
    if modality not in record["model"]["modalities"]:
        known = ", ".join(record["model"]["modalities"])
        raise InputError(f"--modality={FLAGS.modality}: the run knows {known}; give the scan's modality")
    task = task_of(record)
    scan = read_volume(FLAGS.input)
    try:
        prepared = prepare(scan, None, task, modality)
    except InputError as error:
        raise InputError(f"{FLAGS.input}: {error}") from error
    start_tensorflow()
    model, record, step = load_model(FLAGS.run_dir, FLAGS.selection)

    from ummkd_tf.evaluation.inference import Predictor

    factor = task.size[0] // record["flags"]["size"]
    probabilities = Predictor(model).probabilities(reduce_image(prepared.image, factor), modality, factor)
    grid = straightened(prepared.original)
    if prepared.original.is_tilted:
        print(f"{FLAGS.input}: the slices are tilted: the label map lies on an upright grid that covers the scan")
    labels = restore(probabilities, prepared.grid, grid)
    write_nifti(output, Volume(labels, grid.affine))
    milliliters = np.bincount(labels.ravel(), minlength=task.num_classes) * grid.voxel_volume_mm3 / 1000
    print(f"{output}: {model.setting.title}, step {step}; shape {labels.shape}, orientation {grid.axes}")
    print("; ".join(f"{c} {task.class_names[c]} {milliliters[c]:.0f} ml" for c in range(1, task.num_classes)))
    if FLAGS.overlay:
        from ummkd_tf.output.pictures import overlay_figure, save_figure

        figure = overlay_figure(
            prepared.image,
            probabilities.argmax(-1),
            task=task,
            spacing_mm=prepared.grid.spacing_mm,
            title=f"{_scan_name(Path(FLAGS.input))}: {model.setting.title}",
        )
        save_figure(figure, FLAGS.overlay)
        print(f"picture: {FLAGS.overlay}")


def _scan_name(path: Path) -> str:
    """A file's name, or the end of a folder's path: DICOM folders are often called alike, and the patient is above."""
    return "/".join(path.resolve().parts[-3:]) if path.is_dir() else path.name


if __name__ == "__main__":
    run(main)
