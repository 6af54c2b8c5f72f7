"""Turns a checkpoint of the authors' TensorFlow 1 code into a model folder, as ummkd export writes it.

    python -m experiments.import_tf1 --checkpoint=net_only_model.cpkt --out=model               2D, cardiac
    python -m experiments.import_tf1 --checkpoint=sifn_model.cpkt-9000 --out=model              3D, abdomen

Network, width and number of classes are read from the checkpoint's shapes. Their code keeps neither the task nor the
preparation of scans: the folder takes those of this project, so check a few results by eye.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.runs.model_folder import check_new
from ummkd_tf.tasks import get_task

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "checkpoint", None, "TF 1 Saver checkpoint: the path without '.index' and '.data-…'.", required=True
)
flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
flags.DEFINE_enum("setting", "ours", ["ours", "chilopod"], "How it was trained: with the distillation loss or without.")
flags.DEFINE_string("task", None, "Its task, or a task file; by default cardiac for the 2D network and abdomen for 3D.")


def main(_: list[str]) -> None:
    check_new(Path(FLAGS.out))
    start_tensorflow()
    # Here, to start without TensorFlow.
    from ummkd_tf.model.segmenter import UnpairedSegmenter
    from ummkd_tf.released.weights import load_released_weights, model_arguments, read_tf1_checkpoint
    from ummkd_tf.runs.exported import write_model

    values = read_tf1_checkpoint(FLAGS.checkpoint)
    arguments = {**model_arguments(values, FLAGS.checkpoint), "setting": FLAGS.setting}
    task = get_task(FLAGS.task or ("cardiac" if arguments["network"] == "dilated2d" else "abdomen"))
    if task.num_classes != arguments["num_classes"]:
        raise InputError(
            f"has {arguments['num_classes']} classes, and task {task.name} has {task.num_classes}, background included",
            where=FLAGS.checkpoint,
            fix="give the checkpoint's own task with --task",
        )
    model = UnpairedSegmenter(**arguments)
    load_released_weights(model, values)
    origin = {"imported_from": f"TensorFlow 1 checkpoint {Path(FLAGS.checkpoint).name}", "data": ""}
    out = write_model(Path(FLAGS.out), model, arguments, task, 1, origin)
    print(
        f"{out}: {arguments['network']}, width {arguments['width']}, {arguments['num_classes']} classes; in Python: "
        f"ummkd_tf.load_model({str(out)!r})"
    )


if __name__ == "__main__":
    run(main)
