"""Overlay pictures: orientation, aspect, colours, files."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgba

from ummkd_tf.common.errors import InputError
from ummkd_tf.output.pictures import (
    batch_figure,
    gray_range,
    overlay_figure,
    planes,
    save_figure,
    validation_figure,
)
from ummkd_tf.tasks import TASKS, get_task

ROOT = Path(__file__).parents[1]
TASK = get_task("abdomen")
SHAPE = (20, 30, 9)


def _example(shape=SHAPE):
    """Image and label map with class 1 in a box around [5, 12, 6] and class 4 in the corner voxel."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    label[3:8, 10:15, 5:8] = 1
    label[5, 12, 4] = 1  # a smaller slice
    label[0, 0, 6] = 4
    return image, label


def _figure(**options):
    image, label = _example()
    return overlay_figure(image, label, task=TASK, spacing_mm=TASK.spacing_mm, **options)


@pytest.mark.parametrize("axes", [*(task.axes for task in TASKS.values()), "RAS", "ALI", "SPR"])
def test_each_edge_letter_names_the_patient_side_shown_there(axes):
    sides = {"top": 0, "bottom": 1, "left": 2, "right": 3}
    shown = planes(axes)
    assert sorted(plane.name for plane in shown) == ["axial", "coronal", "sagittal"]
    for direction in "RLAPSI":
        # A volume that is bright in the half of the patient that lies in this direction.
        pair = next(pair for pair in ("RL", "AP", "SI") if direction in pair)
        axis = next(a for a, letter in enumerate(axes) if letter in pair)
        bright = np.zeros((6, 6, 6))
        half = [slice(None)] * 3
        half[axis] = slice(3, 6) if axes[axis] == direction else slice(0, 3)
        bright[tuple(half)] = 1
        seen = 0
        for plane in shown:
            if plane.through == axis:
                continue
            seen += 1
            picture = plane.cut(bright, 1)
            halves = {"top": picture[:3], "bottom": picture[3:], "left": picture[:, :3], "right": picture[:, 3:]}
            brightest = max(halves, key=lambda side: halves[side].mean())
            assert plane.edges[sides[brightest]] == direction
        assert seen == 2


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_superior_is_up_left_is_on_the_right_and_the_task_plane_comes_first(task):
    edges = {plane.name: plane.edges for plane in planes(task.axes)}
    assert edges == {"axial": tuple("APRL"), "coronal": tuple("SIRL"), "sagittal": tuple("SIAP")}
    assert next(iter(edges)) == {"cardiac": "coronal", "abdomen": "axial"}[task.name]
    # The task's axes are chosen so that its own plane is shown as it is stored.
    volume = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(planes(task.axes)[0].cut(volume, 1), volume[:, :, 1])


def test_figure_has_three_planes_with_physical_aspect_through_the_fullest_slices():
    figure = _figure()
    axial, coronal, sagittal = figure.axes
    assert [axes.get_aspect() for axes in figure.axes] == [1.0, pytest.approx(8 / 1.5), pytest.approx(8 / 1.5)]
    # Class 1 fills slices 5..7 equally; the voxel of class 4 in slice 6 decides.
    assert axial.get_title() == "axial, 7 of 9"
    # Row 0 and column 0 hold all of class 4, row 5 and column 12 the most of class 1: equal scores, the first wins.
    assert coronal.get_title() == "coronal, 1 of 20"
    assert sagittal.get_title() == "sagittal, 1 of 30"
    image, _ = _example()
    np.testing.assert_array_equal(axial.images[0].get_array(), image[:, :, 6])
    np.testing.assert_array_equal(coronal.images[0].get_array(), image[0, :, ::-1].T)  # [feet last, left last]
    np.testing.assert_array_equal(sagittal.images[0].get_array(), image[:, 0, ::-1].T)
    assert (axial.get_xlim(), axial.get_ylim()) == ((-0.5, 29.5), (19.5, -0.5))
    letters = [{t.get_text(): t.get_position() for t in axes.texts if t.get_gid() == "edge"} for axes in figure.axes]
    assert [set(found) for found in letters] == [set("APRL"), set("SIRL"), set("SIAP")]
    assert letters[1]["S"][1] > 0.9 > 0.1 > letters[1]["I"][1]
    assert letters[1]["L"][0] > 0.9 > 0.1 > letters[1]["R"][0]


def test_contours_have_the_papers_colours_and_close_at_the_edge():
    axial = _figure().axes[0]
    assert [tuple(c.get_edgecolor()[0]) for c in axial.collections] == [to_rgba("red"), to_rgba("yellow")]
    liver, spleen = (c.get_paths()[0].get_extents().extents for c in axial.collections)
    np.testing.assert_allclose(liver, [9.5, 2.5, 14.5, 7.5])  # columns 10..14, rows 3..7
    np.testing.assert_allclose(spleen, [-0.5, -0.5, 0.5, 0.5])  # the corner voxel, its outer sides included
    numbers = {t.get_text(): t.get_position() for t in axial.texts if t.get_gid() != "edge"}
    assert numbers == {"1": (12.0, 5.0), "4": (0.0, 0.0)}


def test_black_and_white_leave_no_organ_out():
    """Of 0 … 1000 the 1st and 99th percentile are 10 and 990; an organ of the values 996 … 1000 needs nearly 1000."""
    image = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    assert gray_range(image) == gray_range(image, np.zeros(image.shape, np.uint8)) == (10, 990)
    assert gray_range(image, (image > 995).astype(np.uint8)) == pytest.approx((10, 999.96))
    assert gray_range(image, (image < 5).astype(np.uint8), image > 995) == pytest.approx((0.04, 999.96))


@pytest.mark.parametrize("classes", [1, 4, 14])
def test_the_legend_stays_in_the_picture(classes):
    names = ["background", *(f"a_rather_long_organ_{c}" for c in range(1, classes + 1))]
    task = dataclasses.replace(
        TASKS["abdomen"],
        class_names=tuple(names),
        table_classes=tuple(names[1:]),
        class_colors=dict.fromkeys(names[1:], "#ff0000"),
    )
    image, label = np.zeros((16, 16, 4), np.float32), np.zeros((16, 16, 4), np.uint8)
    for figure in (
        overlay_figure(image, label, task=task, spacing_mm=(1, 1, 4), reference=label),
        batch_figure({"ct": image[None, ..., None]}, {"ct": label[None]}, task),
        validation_figure({"ct_1": (image, label, label)}, task),
    ):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width
        assert all(axes.get_window_extent().y0 >= box.y1 for axes in figure.axes)


def test_dollars_in_names_are_no_mathematics(tmp_path):
    names = ("background", r"b $\frac$ c")
    task = dataclasses.replace(
        TASKS["abdomen"], class_names=names, table_classes=names[1:], class_colors={names[1]: "#ff0000"}
    )
    image, label = np.zeros((16, 16, 4), np.float32), np.zeros((16, 16, 4), np.uint8)
    save_figure(overlay_figure(image, label, task=task, spacing_mm=(1, 1, 4)), tmp_path / "a.png")
    save_figure(validation_figure({r"$\frac$": (image, label, label)}, task), tmp_path / "b.png")


def test_reference_is_dashed_and_named_in_the_legend():
    _, label = _example()
    plain, compared = _figure(), _figure(reference=np.roll(label, 1, axis=0))
    classes = ["1 liver", "2 right kidney", "3 left kidney", "4 spleen"]
    assert [t.get_text() for t in plain.legends[0].get_texts()] == classes
    assert [t.get_text() for t in compared.legends[0].get_texts()] == [
        *classes,
        "prediction (solid)",
        "reference (dashed)",
    ]
    dashes = [c.get_linestyle()[0][1] for c in compared.axes[0].collections]
    assert [d is None for d in dashes] == [True, False, True, False]
    # The dashed contour is the reference, one row further down.
    np.testing.assert_allclose(
        compared.axes[0].collections[1].get_paths()[0].get_extents().extents, [9.5, 3.5, 14.5, 8.5]
    )


def test_without_foreground_the_middle_slices_are_shown():
    image = np.zeros(SHAPE, np.float32)
    figure = overlay_figure(image, np.zeros(SHAPE, np.uint8), task=TASK, spacing_mm=TASK.spacing_mm)
    assert [axes.get_title() for axes in figure.axes] == ["axial, 5 of 9", "coronal, 11 of 20", "sagittal, 16 of 30"]
    assert not any(len(axes.collections) for axes in figure.axes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((20, 30, 8), np.uint8), r"label has shape \(20, 30, 8\) and the image \(20, 30, 9\)"),
        (np.full(SHAPE, 5, np.uint8), r"label has values 5\.\.5: expected the classes 0\.\.4 of the abdomen task"),
        (np.full(SHAPE, -1, np.int32), r"values -1\.\.-1"),
    ],
)
def test_a_label_that_does_not_fit_is_refused(label, message):
    with pytest.raises(InputError, match=message):
        overlay_figure(_example()[0], label, task=TASK, spacing_mm=TASK.spacing_mm)


def test_files_are_whole_repeatable_and_titles_are_literal(tmp_path):
    figure = _figure(title="$\\frac{$ <b> 100 %")
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        save_figure(figure, first)
        save_figure(figure, second)
        assert first.read_bytes().startswith(start)
        assert first.read_bytes() == second.read_bytes()
    width, height = (figure.get_size_inches() * 110).astype(int)
    assert sitk.ReadImage(str(tmp_path / "a.png")).GetSize() == (width, height)
    with pytest.raises(InputError, match=r"format '\.gif': expected \.png, \.pdf, \.svg"):
        save_figure(figure, tmp_path / "a.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg", "b.pdf", "b.png", "b.svg"]


def test_drawing_needs_neither_pyplot_nor_tensorflow():
    code = (
        "import sys, ummkd_tf.output.pictures;"
        "print([m for m in ('matplotlib.pyplot', 'tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
