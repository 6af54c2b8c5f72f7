"""Pictures and numbers to check a prepared data set with: one picture per case and one page for the set.

    python -m data_prep.qc --data_dir=DATA                 writes DATA/qc/index.html and its pictures

The page opens from disk: no server, nothing loaded from elsewhere. A warning says where to look; it is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ummkd_tf.common.cli import run
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.common.progress import progress
from ummkd_tf.data.cases import Case
from ummkd_tf.data.dataset import PARTS, Dataset
from ummkd_tf.data.sampling import PATCH_DEPTH
from ummkd_tf.output.pages import document, escaped, facts
from ummkd_tf.output.pictures import overlay_figure, save_figure
from ummkd_tf.output.viewer import SliceViewer
from ummkd_tf.scans.geometry import bounding_box
from ummkd_tf.scans.plausibility import LONGEST_MM, SHORTEST_MM, cut_share, odd_size
from ummkd_tf.tasks import Task

SLICES = "slices.html"
UNUSED = "unused"  # the part of a case that is in no part of the split
ROBUST_Z = 3.0  # robust z-scores, i.e. multiples of 1.4826 × the median absolute deviation (MAD)
FEWEST_FOR_OUTLIERS = 5  # cases of a modality; a MAD over fewer says little
SCORE_TOLERANCE = 0.05  # of the mean and standard deviation
BLACK_TOLERANCE = 0.1  # share of an organ that may be as dark as padding; gas and vessels are
CUT_TOLERANCE = 1e-3  # standard deviations below the brightest value
VOLUME_TOLERANCE = 0.05  # relative; our choice: the most that resampling should change the smallest organ, a kidney
# Bins of 0.1 standard deviations; what lies beyond is counted in the outermost bins.
HISTOGRAM_EDGES = np.linspace(-10.0, 10.0, 201)

# (organ, direction, other organ): the first one's centre lies in that direction of the other's in every patient.
# `_side_warnings` adds every two classes whose names differ in right and left alone.
ANATOMY = (
    ("liver", "R", "spleen"),
    ("ascending_aorta", "S", "left_ventricle"),
    ("left_atrium", "P", "left_ventricle"),
)
# World axis (RAS), sign along it, and words for a direction and its opposite.
DIRECTIONS = {
    "R": (0, 1, "right of", "left of"),
    "P": (1, -1, "behind", "in front of"),
    "S": (2, 1, "above", "below"),
}


@dataclass
class CaseSummary:
    """What the page says about one case. Intensities are those of the prepared voxels that the scan covers.

    Attributes:
        case_id: Its id.
        modality: Its modality.
        part: "train", "validation", "test" or `UNUSED`.
        original_size: Voxels of the scan along its own axes.
        original_spacing_mm: Voxel spacing of the scan along its own axes.
        size: Rows, columns and slices as prepared.
        intensity: "min", "max", "mean" and "std".
        voxels: Prepared voxels by foreground class.
        milliliters: Volume of those voxels by foreground class.
        histogram: Fraction of voxels in each bin of `HISTOGRAM_EDGES`.
        warnings: One sentence each.
    """

    case_id: str
    modality: str
    part: str
    original_size: tuple[int, ...]
    original_spacing_mm: tuple[float, ...]
    size: tuple[int, ...]
    intensity: Mapping[str, float]
    voxels: Mapping[str, int]
    milliliters: Mapping[str, float]
    histogram: NDArray[np.float64]
    warnings: list[str] = field(default_factory=list)


# --- looking at the cases --------------------------------------------------------------------------------------------


def summarize_case(case: Case, original_label: NDArray, task: Task, part: str) -> CaseSummary:
    """Numbers and warnings of one case, as far as they need no other case.

    Args:
        case: As prepared.
        original_label: Class map on the scan's own grid.
        task: Row of the task table.
        part: Its part of the split.

    Raises:
        InputError: The prepared image is constant.
    """
    values = case.image[_scanned(case)]
    if not values.size:
        raise InputError(
            f"case {case.case_id}: every voxel of the prepared image has one value: expected contrast; prepare it again"
        )
    names = task.class_names
    counts = np.bincount(case.label.ravel(), minlength=len(names))
    milliliters = counts * case.grid.voxel_volume_mm3 / 1000
    before = np.bincount(original_label.ravel(), minlength=len(names)) * case.original.voxel_volume_mm3 / 1000
    inner = np.clip(values, HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    summary = CaseSummary(
        case_id=case.case_id,
        modality=case.modality,
        part=part,
        original_size=case.original.shape,
        original_spacing_mm=case.original.spacing_mm,
        size=case.image.shape,
        intensity={
            "min": float(values.min()),
            "max": float(values.max()),
            **_moments(values, float(case.image.min()), case.image.size - values.size),
        },
        voxels={names[c]: int(counts[c]) for c in range(1, len(names))},
        milliliters={names[c]: float(milliliters[c]) for c in range(1, len(names))},
        histogram=np.histogram(inner, HISTOGRAM_EDGES)[0] / values.size,
    )
    summary.warnings += [
        *_class_warnings(case, task, milliliters, before),
        *_side_warnings(case, task),
        *_image_warnings(summary),
        *odd_size(case.original),
        *_cut_warnings(values),
        *(f"when prepared: {note}" for note in case.notes),
    ]
    return summary


def _scanned(case: Case) -> tuple[slice, ...]:
    """Box of the voxels that come from the scan: padding has the darkest value."""
    return bounding_box(case.image > case.image.min()) or (slice(0),) * 3


def _moments(values: NDArray[np.float32], darkest: float, around: int) -> dict[str, float]:
    """Mean and standard deviation of the scan.

    Dark rows at the scan's edge look like padding. So of the dark voxels around the box, as many count as scan as make
    the mean 0; whether the deviation is then 1 is the check.
    """
    total, squares = float(values.sum(dtype=np.float64)), float(np.square(values, dtype=np.float64).sum())
    dark = min(max(-total / darkest, 0.0), around) if darkest < 0 else 0.0
    count = values.size + dark
    mean = (total + dark * darkest) / count
    return {"mean": mean, "std": math.sqrt((squares + dark * darkest**2) / count - mean**2)}


def _class_warnings(case: Case, task: Task, after: NDArray, before: NDArray) -> Iterable[str]:
    for c, name in enumerate(task.class_names[1:], start=1):
        if not after[c]:
            yield f"{_words(name)}: absent" + (f", although the scan has {before[c]:.1f} ml" if before[c] else "")
            continue
        rim = np.ones(case.label.shape[:2], np.bool_)
        rim[1:-1, 1:-1] = False
        if (case.label[rim] == c).any():
            yield f"{_words(name)}: cut by the edge of the prepared window"
        black = float((case.image[case.label == c] == case.image.min()).mean())
        if black > BLACK_TOLERANCE:
            share = f"{100 * black:.0f} %"
            yield f"{_words(name)}: {share} of it is black; the image may have been cut, or not fit its label"
        if abs(after[c] - before[c]) > VOLUME_TOLERANCE * before[c]:
            yield f"{_words(name)}: {after[c]:.1f} ml as prepared but {before[c]:.1f} ml in the scan"


def _side_warnings(case: Case, task: Task) -> Iterable[str]:
    names = task.class_names
    pairs = [
        (name, "R", name.replace(a, b))
        for name in names
        for a, b in (("right", "left"), ("Right", "Left"))
        if a in name
    ]
    for organ, direction, other in (*ANATOMY, *pairs):
        if organ not in names or other not in names:
            continue
        here, there = (np.argwhere(case.label == names.index(name)) for name in (organ, other))
        axis, sign, expected, found = DIRECTIONS[direction]
        if (
            here.size
            and there.size
            and sign * (case.grid.world(here.mean(0)) - case.grid.world(there.mean(0)))[axis] <= 0
        ):
            yield (
                f"{_words(organ)}: lies {found} the {_words(other)} instead of {expected} it; "
                "the orientation or the labels may be wrong"
            )


def _image_warnings(summary: CaseSummary) -> Iterable[str]:
    mean, std = summary.intensity["mean"], summary.intensity["std"]
    if abs(mean) > SCORE_TOLERANCE or abs(std - 1) > SCORE_TOLERANCE:
        yield f"intensities: mean {mean:.3f} and standard deviation {std:.3f} instead of 0 and 1"
    if summary.size[2] < PATCH_DEPTH:
        yield f"only {summary.size[2]} slices"


def _cut_warnings(values: NDArray[np.float32]) -> Iterable[str]:
    """A CT stored as HU + 1024 lies above the range of its task nearly everywhere."""
    highest = float(values.max())
    share = cut_share(values, float(values.min()), highest - CUT_TOLERANCE)
    if share:
        yield (
            f"intensities: {share:.0%} of the voxels brighter than the darkest have the brightest value (usual: a few "
            "per cent); was the scan stored with another offset, as HU + 1024?"
        )


def warn_of_outliers(summaries: Sequence[CaseSummary]) -> None:
    """Adds a warning to each case whose organ volume is far from the median of its modality."""
    for modality in {s.modality for s in summaries}:
        group = [s for s in summaries if s.modality == modality]
        for name in group[0].voxels:
            having = [s for s in group if s.voxels[name]]
            if len(having) < FEWEST_FOR_OUTLIERS:
                continue
            volumes = np.array([s.milliliters[name] for s in having])
            median = np.median(volumes)
            allowed = ROBUST_Z * 1.4826 * np.median(np.abs(volumes - median))
            for summary, volume in zip(having, volumes, strict=True):
                # The second term covers rounding where most volumes are equal.
                if abs(volume - median) > allowed + 1e-6 * median:
                    summary.warnings.append(
                        f"{_words(name)}: {volume:.1f} ml is far from the {modality} median of {median:.1f} ml "
                        f"(usual: within {allowed:.1f} ml)"
                    )


def _words(name: str) -> str:
    return name.replace("_", " ")


# --- the report ------------------------------------------------------------------------------------------------------


def write_report(data_dir: str | Path, out_dir: str | Path | None = None) -> Path:
    """Draws every case and writes the page; files of an earlier run are replaced.

    Args:
        data_dir: Prepared data set.
        out_dir: Folder for the page and its pictures; `<data_dir>/qc` by default.

    Returns:
        Path of `index.html`.

    Raises:
        InputError: No or damaged prepared data, or the folder cannot be written to.
    """
    dataset = Dataset.load(data_dir)
    out = Path(data_dir) / "qc" if out_dir is None else Path(out_dir)
    generated = "PHANTOM: " if dataset.is_phantom else ""
    part_of = {case_id: part for part in PARTS for case_id in dataset.split[part]}
    summaries = []
    order = sorted(dataset.case_modality, key=lambda c: (dataset.modalities.index(dataset.case_modality[c]), c))
    slices = SliceViewer(dataset.task, cases=len(order))
    for case_id in progress(order, desc="drawing", unit="case"):
        case, part = dataset.case(case_id, original_label=True), part_of.get(case_id, UNUSED)
        assert case.original_label is not None
        figure = overlay_figure(
            case.image,
            case.label,
            task=dataset.task,
            spacing_mm=case.grid.spacing_mm,
            title=f"{generated}{case_id} · {case.modality} · {part}",
        )
        save_figure(figure, out / _picture(case_id))
        words = f"{case.modality}, {part}"
        slices.add(case_id, case.image, [case.label], spacing_mm=case.grid.spacing_mm, words=words)
        summaries.append(summarize_case(case, case.original_label, dataset.task, part))
    warn_of_outliers(summaries)
    save_figure(histogram_figure(summaries, dataset.modalities), out / "histograms.png")
    slices.write(out / SLICES, f"{generated}Slices of the prepared data: {dataset.task.name}")
    page = out / "index.html"
    write_whole(page, render(dataset, summaries))
    return page


def _picture(case_id: str) -> str:
    return f"case_{case_id}.png"


def histogram_figure(summaries: Sequence[CaseSummary], modalities: Sequence[str]) -> Figure:
    """Intensity histograms, one plot per modality: every case thin, their mean thick."""
    figure = Figure(figsize=(8, 2.8 * len(modalities)), layout="constrained")
    centers = (HISTOGRAM_EDGES[:-1] + HISTOGRAM_EDGES[1:]) / 2
    used = np.flatnonzero(sum(s.histogram for s in summaries))
    plots = figure.subplots(len(modalities), 1, sharex=True, squeeze=False)[:, 0]
    for axes, modality in zip(plots, modalities, strict=True):
        curves = np.array([s.histogram for s in summaries if s.modality == modality])
        # Zeros would break the line of a logarithmic plot into specks.
        axes.semilogy(centers, np.where(curves.T > 0, curves.T, np.nan), color="tab:blue", alpha=0.35, linewidth=0.8)
        axes.semilogy(centers, np.where(curves.any(0), curves.mean(0), np.nan), color="black", linewidth=1.8)
        axes.set_title(f"{modality}: {len(curves)} cases (blue) and their mean (black)", fontsize=10, parse_math=False)
        axes.set_ylabel("fraction of voxels")
        axes.grid(alpha=0.3)
    plots[-1].set_xlim(centers[used[0]] - 0.2, centers[used[-1]] + 0.2)
    plots[-1].set_xlabel("prepared intensity (standard deviations from the scan's mean)")
    return figure


# --- the page --------------------------------------------------------------------------------------------------------

_RULES = (
    "A class is absent from a case.",
    f"An organ's volume is more than {ROBUST_Z:g} robust z-scores (1.4826 × the median absolute deviation) from the "
    f"median of its modality. Asked only where at least {FEWEST_FOR_OUTLIERS} cases have the organ.",
    f"An organ's volume as prepared differs by more than {VOLUME_TOLERANCE:.0%} from its volume in the scan.",
    "An organ touches the first or last row or column of the prepared window, so part of it may be cut off.",
    "An organ's centre lies on the wrong side of another's: a class called right belongs right of the one called left, "
    "the liver right of the spleen, the ascending aorta above and the left atrium behind the left ventricle.",
    f"The intensities' mean differs from 0, or their standard deviation from 1, by more than {SCORE_TOLERANCE:g}.",
    f"The scan is longer than {LONGEST_MM:.0f} mm or thinner than {SHORTEST_MM:.0f} mm, which is hardly a patient.",
    "More than half of what is not dark has one value, the brightest.",
    "The scan's files had something odd that preparation could handle.",
    f"There are fewer than {PATCH_DEPTH} slices, the depth of the 3D network's training patch.",
)

_REGION = 'tabindex="0" role="region"'  # a wide table scrolls in its box, also by keyboard
_DIRECTION_WORDS = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "feet"}


def render(dataset: Dataset, summaries: Sequence[CaseSummary]) -> str:
    """The page as HTML; whatever comes from the data is escaped."""
    title = f"Prepared data: {dataset.task.name}"
    body = (
        f"<h1>{escaped(title)}</h1>\n{_facts(dataset)}\n{_counts(dataset, summaries)}\n"
        f"<h2>Warnings</h2>\n{_warning_section(summaries)}\n"
        "<h2>Cases</h2>\n<p>A click on a column's head sorts by it. Intensities are those of the voxels that the "
        f"scan covers.</p>\n{_case_table(dataset.task, summaries)}\n"
        "<h2>Intensities</h2>\n"
        "<p>One bin is 0.1 standard deviations wide; values beyond ±10 are counted in the outermost bins.</p>\n"
        '<figure class="histogram"><img src="histograms.png" alt="Intensity histogram of each modality"></figure>\n'
        f"<h2>Pictures</h2>\n{_gallery(summaries)}"
    )
    return document(title, body, kind="qc")


def _numbers(values: Iterable[float], digits: int = 0) -> str:
    return " × ".join(f"{v:.{digits}f}" for v in values)


def _facts(dataset: Dataset) -> str:
    task = dataset.task
    directions = ", ".join(
        f"{what} run to the {_DIRECTION_WORDS[letter]}"
        for what, letter in zip(("rows", "columns", "slices"), task.axes, strict=True)
    )
    return facts(
        {
            "Task": task.name,
            "Data": dataset.source or "unknown",
            "Classes": ", ".join(f"{c} {_words(name)}" for c, name in enumerate(task.class_names)),
            "Spacing": f"{' × '.join(f'{v:.4g}' for v in task.spacing_mm)} mm (rows × columns × slices)",
            "Axes": f"{task.axes} ({directions})",
            "Split": dataset.split_name,
            "Split checksum": dataset.split_checksum,
        }
    )


def _counts(dataset: Dataset, summaries: Sequence[CaseSummary]) -> str:
    parts = (*PARTS, UNUSED)
    rows = []
    for modality in dataset.modalities:
        case_parts = [s.part for s in summaries if s.modality == modality]
        cells = "".join(f"<td>{n}</td>" for n in (*map(case_parts.count, parts), len(case_parts)))
        rows.append(f'<tr><td class="text">{escaped(modality)}</td>{cells}</tr>')
    heads = "".join(f"<th>{head}</th>" for head in (*parts, "all"))
    return (
        f'<div class="scroll fit" {_REGION} aria-label="Number of cases">\n'
        f'<table>\n<thead><tr><th class="text">cases</th>{heads}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _warning_section(summaries: Sequence[CaseSummary]) -> str:
    flagged = [(number, s) for number, s in enumerate(summaries) if s.warnings]
    total = sum(len(s.warnings) for _, s in flagged)
    found = f"{total} in {len(flagged)} of {len(summaries)} cases." if total else "None."
    items = "\n".join(
        f'<li><a href="#case-{number}">{escaped(s.case_id)}</a>{_warning_list(s)}</li>' for number, s in flagged
    )
    rules = "\n".join(f"<li>{escaped(rule)}</li>" for rule in _RULES)
    return (
        f"<p>{found} A warning says where to look; it is no verdict.</p>\n"
        + (f"<ul>\n{items}\n</ul>\n" if items else "")
        + f"<details><summary>What is looked for</summary>\n<ul>\n{rules}\n</ul>\n</details>"
    )


def _warning_list(summary: CaseSummary) -> str:
    return "<ul>" + "".join(f"<li>{escaped(w)}</li>" for w in summary.warnings) + "</ul>" if summary.warnings else ""


def _case_table(task: Task, summaries: Sequence[CaseSummary]) -> str:
    organs = task.class_names[1:]
    heads = [
        *(f'<th class="text" scope="col"><button>{head}</button></th>' for head in ("case", "modality", "part")),
        '<th scope="col"><button>warnings</button></th>',
        *(
            f'<th scope="col"><button>{escaped(head)}</button></th>'
            for head in (
                *("original size", "original spacing mm", "prepared size", "min", "max", "mean", "std"),
                *(f"{_words(organ)} {unit}" for organ in organs for unit in ("voxels", "ml")),
            )
        ),
    ]
    rows = "\n".join(_case_row(number, s) for number, s in enumerate(summaries))
    return (
        f'<div class="scroll" {_REGION} aria-label="Cases">\n'
        f'<table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _case_row(number: int, s: CaseSummary) -> str:
    # Triples sort by voxel count and voxel volume.
    cells = [
        (len(s.warnings), str(len(s.warnings) or "")),
        (np.prod(s.original_size), _numbers(s.original_size)),
        (np.prod(s.original_spacing_mm), _numbers(s.original_spacing_mm, 2)),
        (np.prod(s.size), _numbers(s.size)),
        *((value, f"{value:z.3f}") for value in s.intensity.values()),
    ]
    for organ, voxels in s.voxels.items():
        cells += [(voxels, str(voxels)), (s.milliliters[organ], f"{s.milliliters[organ]:.1f}")]
    kind = "text flagged" if s.warnings else "text"
    return (
        f'<tr><td class="{kind}"><a href="#case-{number}">{escaped(s.case_id)}</a></td>'
        f'<td class="text">{escaped(s.modality)}</td><td class="text">{escaped(s.part)}</td>'
        + "".join(f'<td data-value="{value}">{shown}</td>' for value, shown in cells)
        + "</tr>"
    )


def _gallery(summaries: Sequence[CaseSummary]) -> str:
    cards = []
    for number, s in enumerate(summaries):
        link = escaped(quote(_picture(s.case_id)))
        cards.append(
            f'<figure id="case-{number}"><a href="{link}"><img src="{link}" loading="lazy" '
            f'alt="{escaped(s.case_id)} in three planes with its labels"></a>'
            f"<figcaption><strong>{escaped(s.case_id)}</strong> {escaped(s.modality)}, {escaped(s.part)}, "
            f'<a href="{SLICES}#{escaped(quote(s.case_id))}">its slices</a>'
            f"{_warning_list(s)}</figcaption></figure>"
        )
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


# --- program ---------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    """Writes the page of the data set in --data_dir."""
    print(write_report(flags.FLAGS.data_dir, flags.FLAGS.out_dir))


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "Folder of the prepared data set.", required=True)
    flags.DEFINE_string("out_dir", None, "Folder for the report; <data_dir>/qc by default.")
    run(main)
