"""A page to go through the slices of scans and their class maps, in one file that is opened from disk.

Our choice instead of NiiVue, whose bundle of 2.9 MB would be in every page and needs WebGL 2: a canvas and 150 lines.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.image import imsave
from numpy.typing import NDArray

from ummkd_tf.common.files import write_whole
from ummkd_tf.data.reduction import reduce_image, reduce_label
from ummkd_tf.output.pages import asset, document, escaped
from ummkd_tf.output.pictures import busiest_slice, check_classes, gray_range, planes, rgb
from ummkd_tf.tasks import Task

# A voxel takes half a character of the page (phantoms) to two characters (pure noise). Browsers on phones draw pictures
# of up to 16 million pixels.
VOXELS_OF_A_PAGE = 20_000_000
VOXELS_OF_A_CASE = 12_000_000


class SliceViewer:
    """Collects scans, each packed at once, and makes their page.

    Args:
        task: Names, colours and axes.
        maps: Names of the class maps of each scan: one, or two of which the second is drawn dashed.
        cases: How many scans will be added; rows and columns of large ones are made coarser, so that the page stays
            within 10 to 40 MB.
    """

    def __init__(self, task: Task, maps: Sequence[str] = ("label",), *, cases: int) -> None:
        assert len(maps) in (1, 2)
        self.task, self.maps = task, tuple(maps)
        self._voxels = min(VOXELS_OF_A_PAGE // max(cases, 1), VOXELS_OF_A_CASE)
        self._cases: list[dict[str, Any]] = []

    def add(
        self, case_id: str, image: NDArray[np.float32], maps: Sequence[NDArray], *, spacing_mm: Sequence[float],
        words: str = "",
    ) -> None:  # fmt: skip
        """Packs a scan.

        Args:
            case_id: `page#<case_id>` opens the page at this scan.
            image: Any intensities [rows, columns, slices] on axes as `task.axes`; shown in 8 bits, see
                `gray_range`.
            maps: Class maps 0..C-1 of the same shape, in the order of their names.
            spacing_mm: Of rows, columns and slices.
            words: What the list of scans says beside the id.

        Raises:
            InputError: Shapes differ, or a label is no class of the task.
        """
        for name, classes in zip(self.maps, maps, strict=True):
            check_classes(name, classes, image, self.task)
        factor = self._factor(image.shape)
        image = reduce_image(image, factor)
        maps = [reduce_label(m.astype(np.uint8), factor) for m in maps]
        low, high = gray_range(image, *maps)
        gray = np.clip((image - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)
        across = math.ceil(math.sqrt(image.shape[2]))
        self._cases.append(
            {
                "id": case_id,
                "title": f"{case_id} {words}".strip(),
                "shape": image.shape,
                "spacing_mm": [spacing_mm[0] * factor, spacing_mm[1] * factor, spacing_mm[2]],
                "start": [busiest_slice(maps, axis, self.task.num_classes) for axis in range(3)],
                "across": across,
                "png": _png(_side_by_side([gray, *maps], across)),
            }
        )

    def _factor(self, shape: Sequence[int]) -> int:
        for factor in (1, 2, 4):
            if math.prod(shape) <= self._voxels * factor**2 or any(n % (2 * factor) for n in shape[:2]):
                return factor
        return 8

    def html(self) -> str:
        """The viewer, for the body of a page with the style and script "viewer"."""
        data = {
            "classes": [
                [name.replace("_", " "), to_hex(color), rgb(color)]
                for name, color in ((name, self.task.class_colors[name]) for name in self.task.class_names[1:])
            ],
            "maps": self.maps,
            "planes": [asdict(plane) for plane in planes(self.task.axes)],
            "cases": self._cases,
        }
        # "<" would end the script that holds the data.
        packed = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        return Template(asset("viewer.html")).substitute(data=packed)

    def write(self, path: str | Path, title: str) -> None:
        """Writes a page that holds nothing else.

        Raises:
            InputError: The file cannot be written.
        """
        write_whole(path, document(title, f"<h1>{escaped(title)}</h1>\n{self.html()}", kind="viewer"))


def _side_by_side(volumes: Sequence[NDArray[np.uint8]], across: int) -> NDArray[np.uint8]:
    """Volumes [rows, columns, slices] as the channels of one picture, `across` slices in a row of it."""
    rows, columns, slices = volumes[0].shape
    picture = np.zeros((math.ceil(slices / across) * rows, across * columns, 3), np.uint8)
    for channel, volume in enumerate(volumes):
        for number in range(slices):
            top, left = number // across * rows, number % across * columns
            picture[top : top + rows, left : left + columns, channel] = volume[:, :, number]
    return picture


def _png(picture: NDArray[np.uint8]) -> str:
    """Without loss, in base64; without matplotlib's version, so that the same scan gives the same page."""
    stream = io.BytesIO()
    imsave(stream, picture, format="png", metadata=dict[str, Any](Software=None))
    return base64.b64encode(stream.getvalue()).decode("ascii")
