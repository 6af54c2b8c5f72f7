"""What TensorBoard shows of a run besides curves: a picture at each validation."""

from __future__ import annotations

import io

import tensorflow as tf
from numpy.typing import NDArray

from ummkd_tf.data.cases import Case
from ummkd_tf.output.pictures import validation_figure
from ummkd_tf.tasks import Task

_DPI = 80  # 100 kB a picture


class ValidationPicture:
    """The first case of each modality that a validation goes through, with prediction and reference.

    Args:
        task: Names, colours and axes.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._seen: dict[str, tuple[Case, NDArray]] = {}

    def watch(self, case: Case, predicted: NDArray) -> None:
        """Keeps a case if it is the first of its modality."""
        self._seen.setdefault(case.modality, (case, predicted))

    def write(self, step: int) -> None:
        """Writes the pictures of the last validation, if there are any, to the current summary writer."""
        if not self._seen:
            return
        cases = {case.case_id: (case.image, predicted, case.label) for case, predicted in self._seen.values()}
        stream = io.BytesIO()
        validation_figure(cases, self._task).savefig(stream, format="png", dpi=_DPI)
        picture = tf.io.decode_png(stream.getvalue(), channels=3)
        tf.summary.image("validation/prediction", picture[tf.newaxis], step=step)
        self._seen.clear()
