"""The QC report: numbers, warnings and the page."""

import dataclasses
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
from programs import program

from data_prep import qc
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import Case, write_case
from ummkd_tf.data.dataset import Dataset, write_dataset
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.tasks import get_task

ROOT = Path(__file__).parents[1]
TASK = get_task("abdomen")
SHAPE = (40, 40, 10)
# Rows run to the back (-y), columns to the left (-x), slices to the head (+z): "PLS".
AFFINE = np.array([[0, -1.5, 0, 30], [-1.5, 0, 0, 20], [0, 0, 8, -40], [0, 0, 0, 1]], np.float64)
GRID = Grid(AFFINE, SHAPE)
VOXEL_ML = 1.5 * 1.5 * 8 / 1000
EVIL = "<img src=x onerror=alert(1)>&\"'#%41?$\\frac{$"


def _label(liver_width=10):
    label = np.zeros(SHAPE, np.uint8)
    label[8:20, 4 : 4 + liver_width, 2:8] = 1  # low columns are the patient's right
    label[24:32, 8:14, 2:6] = 2
    label[24:32, 26:32, 2:6] = 3
    label[8:18, 28:34, 3:7] = 4
    return label


def _image(seed, shape=SHAPE):
    image = np.random.default_rng(seed).normal(size=shape)
    return ((image - image.mean()) / image.std()).astype(np.float32)


def _case(case_id="a", modality="ct", seed=0, label=None, **changes):
    label = _label() if label is None else label
    return Case(
        **{
            "case_id": case_id,
            "modality": modality,
            "image": _image(seed),
            "label": label,
            "grid": GRID,
            "original": GRID,
            **changes,
        }
    )


def _summary(case, original_label=None):
    return qc.summarize_case(case, case.label if original_label is None else original_label, TASK, "train")


def test_numbers_are_those_of_numpy():
    case = _case()
    summary = _summary(case)
    assert summary.voxels == {"liver": 720, "right_kidney": 192, "left_kidney": 192, "spleen": 240}
    assert summary.milliliters == pytest.approx({k: v * VOXEL_ML for k, v in summary.voxels.items()})
    wide = case.image.astype(np.float64)
    assert summary.intensity == pytest.approx(
        {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "std": wide.std()}, abs=1e-9
    )
    assert summary.histogram.sum() == pytest.approx(1)
    assert summary.histogram[100] == pytest.approx(((wide >= 0) & (wide < 0.1)).mean())  # the bin 0..0.1
    assert summary.warnings == []


def test_voxels_beyond_the_scan_do_not_count():
    # The scan [i, j, k] = "LAS" covers prepared rows 5..24 (as j from back to front), all columns and slices 1..8.
    to_scan = np.array([[0, 1, 0, 0], [-1, 0, 0, 24], [0, 0, 1, -1], [0, 0, 0, 1]], np.float64)
    scan = Grid(AFFINE @ np.linalg.inv(to_scan), (40, 20, 8))
    assert scan.axes == "LAS"
    inner = _image(1, (20, 40, 8))
    image = np.full(SHAPE, inner.min(), np.float32)  # padding has the darkest value
    image[5:25, :, 1:9] = inner
    summary = _summary(_case(image=image, original=scan))
    assert summary.original_size == (40, 20, 8)
    assert summary.original_spacing_mm == pytest.approx((1.5, 1.5, 8))
    assert summary.intensity["mean"] == pytest.approx(inner.mean(dtype=np.float64), abs=1e-6)
    assert summary.intensity["min"] == inner.min()
    assert summary.warnings == [  # rows 24–31 of both lie beyond the scan, but for the first
        f"{side} kidney: 88 % of it is black; the image may have been cut, or not fit its label"
        for side in ("right", "left")
    ]


def test_a_constant_image_is_an_error():
    with pytest.raises(InputError, match="case a: every voxel of the prepared image has one value"):
        _summary(_case(image=np.zeros(SHAPE, np.float32)))


def _without(label, c):
    return np.where(label == c, 0, label).astype(np.uint8)


def _black_at_the_edge():
    """A z-score of rows 0 to 33, of which the first six are black; the last six rows are padding."""
    image = _image(0)
    image[:6] = image[34:] = image.min() - 0.1
    return (image - image[:34].mean()) / image[:34].std()


def _two_values():
    image = np.full(SHAPE, 0.5, np.float32)
    image.flat[np.flatnonzero(_label() == 0)[::4][:3200]] = -2  # a fifth, no organ: mean 0, standard deviation 1
    return image


@pytest.mark.parametrize(
    ("changes", "before", "expected"),
    [
        ({"label": _without(_label(), 4)}, None, ["spleen: absent"]),
        ({"label": _without(_label(), 4)}, _label(), ["spleen: absent, although the scan has 4.3 ml"]),
        (
            {"label": _label()[:, ::-1]},
            None,
            [
                "liver: lies left of the spleen instead of right of it; the orientation or the labels may be wrong",
                "right kidney: lies left of the left kidney instead of right of it; "
                "the orientation or the labels may be wrong",
            ],
        ),
        ({"label": np.roll(_label(), -8, axis=0)}, None, [
            "liver: cut by the edge of the prepared window", "spleen: cut by the edge of the prepared window"]),
        ({"label": np.roll(_label(), 6, axis=1)}, None, ["spleen: cut by the edge of the prepared window"]),
        # One row or column from the edge.
        ({"label": np.roll(_label(), (-7, 5), axis=(0, 1))}, None, []),
        # Reaching the first and last slice is the scan's end, not the window's.
        ({"label": np.repeat(_label()[:, :, 4:5], 10, axis=2)}, None, []),
        ({}, _label(liver_width=11), ["liver: 13.0 ml as prepared but 14.3 ml in the scan"]),
        ({"image": _image(0) * 1.5 + 0.25}, None, [
            "intensities: mean 0.250 and standard deviation 1.500 instead of 0 and 1"]),
        # The scan's own black rows look like padding; with them the mean is 0 and the standard deviation 1.
        ({"image": _black_at_the_edge()}, None, []),
        ({"image": _image(0, (40, 40, 7)), "label": _label()[:, :, 1:8], "grid": Grid(AFFINE, (40, 40, 7))}, None, [
            "only 7 slices"]),
        # All but the dark fifth of the rows at one value, as a CT stored as HU + 1024.
        ({"image": _two_values()}, None, [
            "intensities: 100% of the voxels brighter than the darkest have the brightest value (usual: a few per "
            "cent); was the scan stored with another offset, as HU + 1024?"]),
    ],
)  # fmt: skip
def test_warnings_of_one_case(changes, before, expected):
    assert _summary(_case(**changes), before).warnings == expected


@pytest.mark.parametrize(("mirrored", "warned"), [(False, False), (True, True)])
def test_sides_of_own_classes(mirrored, warned):
    """Any two classes that are called alike but for right and left, as the kidneys are here."""
    names = ("background", "liver", "hip (right)", "hip (left)", "spleen")
    task = dataclasses.replace(TASK, class_names=names, table_classes=names[1:], class_colors={})
    case = _case(label=_label()[:, ::-1] if mirrored else _label())
    warnings = list(qc._side_warnings(case, task))
    assert any("hip (right): lies left of the hip (left)" in warning for warning in warnings) == warned


def test_an_odd_extent_is_a_warning():
    """A scan of 40 × 40 × 10 voxels, its spacing a tenth or 50 times what it was."""
    for factor, words in ((0.1, "6 × 6 × 8 mm large: are distances in cm"), (50, "3000 × 3000 × 4000 mm large, more")):
        original = Grid(np.diag([1.5 * factor, 1.5 * factor, 8 * factor, 1]), SHAPE)
        assert any(words in warning for warning in _summary(_case(original=original)).warnings)


def test_cardiac_anatomy():
    task = get_task("cardiac")
    affine = np.array([[0, -2, 0, 0], [0, 0, -2, 0], [-2, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    grid = Grid(affine, (30, 30, 30))
    assert grid.axes == task.axes
    label = np.zeros(grid.shape, np.uint8)
    label[15:20, 10:20, 5:10] = 3  # left ventricle: low and in front
    label[14, 10:20, 5:10] = 1
    label[10:15, 10:20, 20:25] = 2  # left atrium: behind
    label[3:10, 10:20, 5:10] = 4  # aorta: above

    def warnings(label):
        case = _case(image=_image(0, grid.shape), label=label, grid=grid, original=grid)
        return qc.summarize_case(case, label, task, "test").warnings

    assert warnings(label) == []
    assert [w.split(";")[0] for w in warnings(label[::-1, :, ::-1])] == [
        "ascending aorta: lies below the left ventricle instead of above it",
        "left atrium: lies in front of the left ventricle instead of behind it",
    ]


def _group(widths, modality="ct"):
    return [_summary(_case(f"{modality}_{n}", modality, label=_label(w))) for n, w in enumerate(widths)]


def test_an_outlying_volume_is_seen_within_its_modality_only():
    # Widths 9 10 10 11 12 20: median 10.5, deviations 1.5 .5 .5 .5 1.5 9.5, MAD 1: usual is ±3 × 1.4826 columns.
    summaries = _group([9, 10, 10, 11, 12, 20]) + _group([20, 20, 20, 20, 20], "mr")
    qc.warn_of_outliers(summaries)
    assert {s.case_id: s.warnings for s in summaries if s.warnings} == {
        "ct_5": ["liver: 25.9 ml is far from the ct median of 13.6 ml (usual: within 5.8 ml)"]
    }


@pytest.mark.parametrize("widths", [[9, 10, 10, 11, 14], [10, 10, 10, 20]])
def test_usual_spread_and_few_cases_are_no_outliers(widths):
    summaries = _group(widths)  # 14: 4 columns from the median, 4.4 are usual
    qc.warn_of_outliers(summaries)
    assert not any(s.warnings for s in summaries)


# --- the page --------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Checks that every tag is closed in order; collects what the tests ask for."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.rows = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append([dict(attributes).get("data-value"), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1][1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A small data set with hostile names, its report, and the parsed page."""
    folder = tmp_path_factory.mktemp("prepared")
    modality = dict.fromkeys((EVIL, "ct_2", "ct_3", "ct_4"), "ct")
    modality |= dict.fromkeys(("mr_1", "mr_2", "mr_3"), "mr")
    for seed, (case_id, of) in enumerate(modality.items()):
        label = _without(_label(), 3) if case_id == "mr_2" else _label()
        prepared = Prepared(_image(seed), label, GRID, GRID, label)
        write_case(folder / "cases" / f"{case_id}.h5", prepared, case_id=case_id, modality=of, task=TASK, source={})
    split = {"train": [EVIL, "mr_1"], "validation": ["ct_2", "mr_2"], "test": ["ct_3", "mr_3"]}
    write_dataset(folder, task=TASK, case_modality=modality, split=split, split_name="</dd><script>alert(1)</script>")
    page = qc.write_report(folder)
    return folder, page, _Page(page.read_text(encoding="utf-8"))


def test_page_stands_alone_and_every_file_exists(report):
    folder, page, parsed = report
    assert page == folder / "qc" / "index.html"
    files = [a["src"] for a in parsed.all("img")]
    links = [a["href"] for a in parsed.all("a")]
    assert not parsed.all("link")
    assert len(files) == 8  # seven cases and the histograms
    named = {unquote(f.partition("#")[0]) for f in [*files, *(link for link in links if not link.startswith("#"))]}
    assert named == {p.name for p in page.parent.iterdir()} - {"index.html"}
    anchors = {a["id"] for a in parsed.all("figure") if "id" in a}
    assert {link[1:] for link in links if link.startswith("#")} == anchors
    assert len(anchors) == 7


def test_hostile_names_are_shown_as_text(report):
    _, _, parsed = report
    assert len(parsed.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    for name in (EVIL, "mr", "</dd><script>alert(1)</script>"):
        assert any(name in text for text in parsed.text)


def test_table_shows_the_data(report):
    folder, _, parsed = report
    dataset = Dataset.load(folder)
    counts, cases = parsed.rows[:3], parsed.rows[3:]
    assert [[text for _, text in row] for row in counts] == [
        ["cases", "train", "validation", "test", "unused", "all"],
        ["ct", "1", "1", "1", "1", "4"],
        ["mr", "1", "1", "1", "0", "3"],
    ]
    heads = [text for _, text in cases[0]]
    assert len(parsed.all("button")) == len(heads)
    assert len(cases) == 1 + 7
    for row in cases[1:]:
        values = dict(zip(heads, row, strict=True))
        case_id = values["case"][1]
        with h5py.File(dataset.path(case_id)) as file:
            image, label = file["image"][()].astype(np.float64), file["label"][()]
        assert values["modality"][1] == dataset.case_modality[case_id]
        assert values["original size"][1] == values["prepared size"][1] == "40 × 40 × 10"
        assert values["original spacing mm"][1] == "1.50 × 1.50 × 8.00"
        for head, expected in (
            ("min", image.min()),
            ("max", image.max()),
            ("mean", image.mean()),
            ("std", image.std()),
        ):
            assert float(values[head][0]) == pytest.approx(expected, abs=1e-9)
            assert float(values[head][1]) == pytest.approx(expected, abs=5.1e-4)
        for c, name in enumerate(TASK.class_names[1:], start=1):
            voxels = int((label == c).sum())
            assert values[f"{name.replace('_', ' ')} voxels"][1] == str(voxels)
            assert float(values[f"{name.replace('_', ' ')} ml"][0]) == pytest.approx(voxels * VOXEL_ML)
        assert values["warnings"] == (["1", "1"] if case_id == "mr_2" else ["0", ""])
        part = next((p for p in ("train", "validation", "test") if case_id in dataset.split[p]), "unused")
        assert values["part"][1] == part


def test_page_says_what_the_set_is(report):
    folder, _, parsed = report
    for fact in ("abdomen", "1.5 × 1.5 × 8 mm (rows × columns × slices)", Dataset.load(folder).split_checksum,
                 "PLS (rows run to the back, columns run to the left, slices run to the head)"):  # fmt: skip
        assert fact in parsed.text
    assert any(text.startswith("1 in 1 of 7 cases.") for text in parsed.text)


def test_page_of_a_clean_set_has_no_warning(report):
    folder, _, _ = report
    page = qc.render(Dataset.load(folder), [_summary(_case("ct_2"))])
    assert "<p>None. A warning" in page
    assert 'data-value="0"></td>' in page


def test_histogram_draws_every_case_and_the_mean():
    summaries = [*_group([10, 10, 10]), *_group([10, 10], "mr")]
    summaries[0] = dataclasses.replace(summaries[0], histogram=np.eye(200)[100])
    top, bottom = qc.histogram_figure(summaries, ["ct", "mr"]).axes
    assert (len(top.lines), len(bottom.lines)) == (3 + 1, 2 + 1)
    center, mean = top.lines[-1].get_data()
    assert center[100] == pytest.approx(0.05)
    assert mean[100] == pytest.approx((1 + 2 * summaries[1].histogram[100]) / 3)


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.qc", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_a_second_run_replaces_the_files_and_gives_the_same(report):
    folder, page, _ = report
    before = {p: p.read_bytes() for p in page.parent.iterdir()}
    for path in before:
        os.truncate(path, 3)
    done = _run(f"--data_dir={folder}")
    assert (done.returncode, done.stdout.strip()) == (0, str(page)), done.stderr
    assert {p: p.read_bytes() for p in page.parent.iterdir()} == before


def test_program_says_what_is_missing(tmp_path):
    done = program("data_prep.qc", f"--data_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/dataset.json: no prepared data set")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_organs_cut_by_the_last_row_and_the_first_column_are_told():
    cut = "cut by the edge of the prepared window"
    lowest = _summary(_case(label=np.roll(_label(), 8, axis=0)))
    assert lowest.warnings == [f"right kidney: {cut}", f"left kidney: {cut}"]
    assert _summary(_case(label=np.roll(_label(), -4, axis=1))).warnings == [f"liver: {cut}"]


def test_volumes_in_the_scan_are_of_the_scans_own_voxels():
    """Four voxels of a quarter's size for each of the prepared grid."""
    fine = Grid(AFFINE @ np.diag([0.5, 0.5, 1, 1]), (80, 80, 10))
    assert _summary(_case(original=fine), _label().repeat(2, 0).repeat(2, 1)).warnings == []


def test_an_absent_organ_is_no_volume_to_compare():
    summaries = [*_group([10] * 5), _summary(_case("x", label=_without(_label(), 1)))]
    qc.warn_of_outliers(summaries)
    assert [summary.warnings for summary in summaries] == [[]] * 5 + [["liver: absent"]]
