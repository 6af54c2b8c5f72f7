"""Writes a trained run's model as one folder that others can use without the run, its data or a flag.

    python -m experiments.export --run_dir=runs/ours --out=model

The folder holds the weights, the task, how scans are prepared, where the model comes from (data, cases, split, commit,
seed), a model card and checksums. In Python:

    model = ummkd_tf.load_model("model")
    result = model.predict_scan("scan.nii.gz", modality="mr")
    result.labels, result.probabilities, result.affine
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from absl import flags

from experiments.results.captions import how_evaluated
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.documents import MALFORMED, read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.output.text_tables import counts_line, evaluation_table
from ummkd_tf.runs.config import Selection
from ummkd_tf.runs.folder import evaluation_name, is_of_selected, read_run, task_of
from ummkd_tf.runs.model_folder import check_new

FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "Folder of a trained run.", required=True)
flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
flags.DEFINE_string("data_dir", None, "Prepared data that the run was trained on, where they have moved since.")
flags.DEFINE_enum("selection", None, list(get_args(Selection)), "Checkpoint; by default what the run was started with.")


def results_of(run_dir: Path, selection: str | None) -> dict[int, str]:
    """Text of the model card's results, by the checkpoint's step: the run's evaluation on its test part, if any.

    On the prepared grid, or where there is no such evaluation, on the scans' own.

    Raises:
        InputError: A damaged evaluation.
    """
    paths = [run_dir / evaluation_name("test", original_grid=original) for original in (False, True)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    record = read_run(run_dir)
    try:
        evaluation = read_json(path)
        if not is_of_selected(evaluation, record, selection):
            return {}
        step = int(evaluation["step"])
        table = evaluation_table(evaluation, task_of(record))
        counts = counts_line(evaluation, task_of(record))
    except MALFORMED as error:
        raise InputError(
            f"damaged ({error!r})", where=path, fix="evaluate the run again, or remove the file"
        ) from error
    how = "".join(f"; {text}" for text in how_evaluated([evaluation]))
    grid = "prepared grid, " if evaluation["grid"] == "prepared" else ""  # else `how` says it
    about = f"{evaluation['split_name']}, {grid}step {step} ({evaluation['selection']}){how}"
    return {step: f"Test part of {about}:\n\n{table}\n\n{counts}"}


def main(_: list[str]) -> None:
    check_new(Path(FLAGS.out))
    start_tensorflow()
    # Here, to start without TensorFlow.
    from ummkd_tf.runs.exported import export_run

    run_dir = Path(FLAGS.run_dir)
    results = results_of(run_dir, FLAGS.selection)
    out = export_run(run_dir, FLAGS.out, FLAGS.selection, data_dir=FLAGS.data_dir, results=results)
    print(f"{out}: read MODEL_CARD.md; in Python: ummkd_tf.load_model({str(out)!r})")


if __name__ == "__main__":
    run(main)
