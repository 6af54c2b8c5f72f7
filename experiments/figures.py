"""The paper's figures from recorded runs, as PDF and PNG.

    python -m experiments.figures --runs_dir=runs/paper --figure=fig8 --out_dir=results/paper
    python -m experiments.figures --runs_dir=runs/paper --figure=fig5 --folds=1

Rows and panels are the runs' modalities: CT and MRI in the paper. Fig. 6 to 8 read recorded numbers only. Fig. 4, 5 and
9 show segmentations, so they load the runs' checkpoints and predict the cases shown: of each modality the test case
whose Dice by Ours is the median, at the slice with the most foreground. Fig. 6 and 7 show every seed and fold; the
others show one run of each kind, all of the same seed and fold. What was not run is an empty panel that says so.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.number_lists import define_whole_numbers
from experiments.plans import TARGETS, RunSpec
from experiments.results.captions import counts, provenance
from experiments.results.records import Record, load_folder, modalities_of, of_spec, seeds_and_folds, select
from experiments.results.table import class_title, modality_title
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.evaluation.metrics import summarize
from ummkd_tf.output import pictures
from ummkd_tf.runs.config import Selection
from ummkd_tf.runs.folder import config_of
from ummkd_tf.runs.loading import load_run, open_run_data
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import Task

if TYPE_CHECKING:
    from ummkd_tf.data.cases import Case

COLUMN, PAGE = 3.5, 7.16  # inches, of IEEE's two-column page
FIGURES = tuple(name for name, target in TARGETS.items() if target.is_figure)
# Okabe and Ito's, which colour-blind readers tell apart
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
STYLES = ("-", "--", "-.", ":", (0, (1, 1)))
EVERY_RUN = ("fig6", "fig7")  # the others show one run of each kind
Q_STEPS = 5  # columns of Fig. 8
AMPLIFIED = 5  # "five-times scaling" of the difference (Fig. 8)
NORMAL_CASES = 3  # beside the outlier in Fig. 9
_STYLE: Any = {
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.titlesize": 7,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # text stays text
    "legend.frameon": False,
}

Predict = Callable[[Record, str], NDArray[np.integer]]
"""Class map of one case of a run's data, as that run segments it."""


def draw(target: str, records: Sequence[Record], out_dir: Path) -> None:
    """Writes `<target>.pdf` and `<target>.png`.

    Args:
        target: One of `FIGURES`.
        records: Its runs, as far as there are any; unfinished ones do not count.
        out_dir: Where to.

    Raises:
        InputError: No such figure, nothing to draw, or a file that cannot be read or written.
    """
    if target not in FIGURES:
        raise InputError(f"no figure {target!r}: expected one of {', '.join(FIGURES)}")
    records = [record for record in records if record.finished]
    if not records:
        raise InputError(
            "none of its runs is finished",
            where=target,
            fix=f"expected at least one with a name of the paper's experiments, e.g. {TARGETS[target].runs()[0].name}; "
            f"`make {target}` trains them",
        )
    if target not in EVERY_RUN:
        records = same_split(records)
    with rc_context(_STYLE):
        figure = _DRAW[target](TARGETS[target].specs, records)
        caption = [provenance(records)]
        if target == "fig6":  # the only one of means
            caption += counts({spec: of_spec(records, spec) for spec in TARGETS[target].specs})
        lines = textwrap.wrap(" ".join(caption), int(26 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), fontsize=5, color="0.3")
        for suffix in (".pdf", ".png"):
            pictures.save_figure(figure, out_dir / f"{target}{suffix}", dpi=220)


def same_split(records: Sequence[Record]) -> list[Record]:
    """The runs with the seed and fold of the first run of Ours.

    Otherwise a case that one network is tested on may be among those that another one was trained on.

    Args:
        records: At least one; where Ours is not among them, the first decides.
    """

    def split(record: Record) -> str:
        return record.name.rpartition("-seed")[2]

    first = _ours_or_first(records)
    return [record for record in records if split(record) == split(first)]


def _ours_or_first(records: Sequence[Record]) -> Record:
    return next((record for record in records if record.run["setting"]["name"] == "ours"), records[0])


# --- Fig. 4, 5, 9: segmentations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """One slice of a case, cropped to what is labelled.

    Attributes:
        case: The case, whole.
        plane: How the slice is shown.
        index: Of the slice.
        window: Rows and columns shown.
    """

    case: Case
    plane: pictures.Plane
    index: int
    window: tuple[slice, slice]

    @classmethod
    def of(cls, case: Case, task: Task, margin_mm: float = 20.0) -> Slice:
        """The slice with the most foreground."""
        plane = pictures.planes(task.axes)[0]
        index = pictures.busiest_slice([case.label], plane.through, task.num_classes)
        rows, columns = np.nonzero(plane.cut(case.label, index))
        spacing = case.grid.spacing_mm
        window = []
        for found, axis in ((rows, plane.down), (columns, plane.right)):
            margin = math.ceil(margin_mm / spacing[axis])
            first, last = (found.min(), found.max()) if found.size else (0, case.label.shape[axis])
            window.append(slice(max(0, int(first) - margin), int(last) + 1 + margin))
        return cls(case, plane, index, (window[0], window[1]))

    @property
    def aspect(self) -> float:
        """Height of a voxel divided by its width."""
        return self.plane.aspect(self.case.grid.spacing_mm)

    @property
    def height(self) -> float:
        """Height of the picture divided by its width."""
        rows, columns = self.plane.cut(self.case.label, self.index)[self.window].shape
        return self.aspect * rows / columns

    def show(
        self, axes: Axes, task: Task, classes: NDArray, *, dashed: NDArray | None = None, numbered: bool = False
    ) -> None:
        """Draws the slice with the contours of a class map, and on request the class numbers, as the legend does."""
        image = self.plane.cut(self.case.image, self.index)[self.window]
        low, high = pictures.gray_range(self.case.image, self.case.label)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=self.aspect)
        for volume, style in ((classes, False), (dashed, True)):
            if volume is None:
                continue
            shown = self.plane.cut(volume, self.index)[self.window]
            for c, name in enumerate(task.class_names[1:], start=1):
                number = c if numbered and not style else None
                pictures.draw_contour(
                    axes, shown == c, task.class_colors[name], number=number, dashed=style, linewidth=0.8
                )


def _segmentations(specs: Sequence[RunSpec], records: Sequence[Record], predict: Predict | None = None) -> Figure:
    """Fig. 4 and 5: the reference and the seven settings; a row for each modality, in the paper CT above and MRI."""
    predict = predict or Predictions()
    reference = _reference_run(records)
    task, modalities = reference.task, reference.modalities
    case_ids = [median_cases(reference, modality, 1)[0] for modality in modalities]
    slices = [Slice.of(read_case(reference, case_id), task) for case_id in case_ids]
    figure, panels = _pictures([shown.height for shown in slices], 1 + len(specs))
    for row, modality, case_id, shown in zip(panels, modalities, case_ids, slices, strict=True):
        shown.show(row[0], task, shown.case.label, numbered=True)
        row[0].set_ylabel(f"{modality_title(modality)}, {case_id}")
        for axes, spec in zip(row[1:], specs, strict=True):
            found = of_spec(records, spec)
            if found:
                shown.show(axes, task, predict(found[0], case_id))
            else:
                axes.set_box_aspect(shown.height)
                _not_run(axes)
    for axes, title in zip(panels[0], ("Reference", *(SETTINGS[s.setting].title for s in specs)), strict=True):
        axes.set_title(title)
    _bare(panels)
    _organ_legend(figure, task)
    return figure


def _outlier_slices(specs: Sequence[RunSpec], records: Sequence[Record], predict: Predict | None = None) -> Figure:
    """Fig. 9: slices of general cases and of the outlier, a CT in the paper, by Ours and (dashed) the reference."""
    predict = predict or Predictions()
    record = records[0]
    task, outliers = record.task, record.cases("outlier")
    modality = next((case["modality"] for case in outliers.values()), record.modalities[0])
    general = median_cases(record, modality, NORMAL_CASES)
    slices = {case_id: Slice.of(read_case(record, case_id), task) for case_id in (*general, *outliers)}
    height = max(shown.height for shown in slices.values())
    figure, (panels,) = _pictures([height], len(general) + max(1, len(outliers)))
    for axes, (case_id, shown) in zip(panels, slices.items(), strict=False):
        shown.show(axes, task, predict(record, case_id), dashed=shown.case.label, numbered=True)
        axes.set_title(f"{'outlier' if case_id in outliers else 'general case'} {case_id}")
    if not outliers:
        _not_run(panels[-1], "no outlier case evaluated")
    _bare(panels)
    _organ_legend(figure, task, {"Ours": "-", "reference": (0, (3, 3))})
    return figure


def _reference_run(records: Sequence[Record]) -> Record:
    """The run that decides which case is shown: Ours, if it is there."""
    evaluated = [record for record in records if record.evaluation]
    if not evaluated:
        raise InputError("no run of this figure is evaluated: expected evaluation_test.json; run ummkd evaluate")
    return _ours_or_first(evaluated)


def median_cases(record: Record, modality: str, number: int) -> list[str]:
    """The test cases of a modality nearest to the median of the mean Dice, as many as there are, by name."""
    dice = {case_id: _mean_dice(case) for case_id, case in record.cases().items() if case["modality"] == modality}
    if not dice:
        raise InputError(
            f"no {modality} case in evaluation_test.json", where=record.run_dir, fix="evaluate the run again"
        )
    ordered = sorted(dice, key=lambda case_id: (dice[case_id], case_id))
    first = max(0, (len(ordered) - number + 1) // 2)
    return sorted(ordered[first : first + number])


def _mean_dice(case: Mapping[str, Any]) -> float:
    """Of an evaluated case, over its classes; NaN where prediction and reference have none."""
    return summarize(metrics["dice"] for metrics in case["classes"].values()).mean


def read_case(record: Record, case_id: str) -> Case:
    """A case of a run's data, on the task's grid."""
    return open_run_data(record.run).case(case_id)


class Predictions:
    """Segments cases as a run's evaluation did; each checkpoint is loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, Selection | None], tuple] = {}

    def __call__(self, record: Record, case_id: str) -> NDArray[np.integer]:
        start_tensorflow()
        # Here, to start without TensorFlow.
        from ummkd_tf.evaluation.inference import Predictor, largest_components

        evaluation = next((e for e in (record.evaluation, record.outlier) if e and case_id in e["cases"]), {})
        checkpoint = record.run_dir, evaluation.get("selection")
        if checkpoint not in self._loaded:
            model, _, _ = load_run(*checkpoint)
            self._loaded[checkpoint] = Predictor(model), open_run_data(record.run)
        predictor, dataset = self._loaded[checkpoint]
        factor = config_of(record.run).factor(dataset.task)
        case = dataset.case(case_id, factor)
        overlap = evaluation.get("overlap", 0.0)
        predicted = predictor.probabilities(case.image, case.modality, factor, overlap=overlap).argmax(-1)
        return largest_components(predicted) if evaluation.get("largest_component") else predicted


# --- Fig. 6, 7, 8: recorded numbers ----------------------------------------------------------------------------------


def _dice_over_alpha(specs: Sequence[RunSpec], records: Sequence[Record]) -> Figure:
    """Fig. 6: for each alpha a box of the test cases' Dice, averaged over structures; a panel for each modality."""
    modalities = modalities_of(records)
    figure = Figure(figsize=(COLUMN, 1.6 * len(modalities)), layout="constrained")
    panels = figure.subplots(len(modalities), 1, sharex=True, squeeze=False)[:, 0]
    places = range(len(specs))
    for number, (axes, modality) in enumerate(zip(panels, modalities, strict=True), start=1):
        dice = [_case_dice(of_spec(records, spec), modality) for spec in specs]
        boxes = axes.boxplot(
            dice,
            positions=places,
            widths=0.6,
            showmeans=True,
            patch_artist=True,
            medianprops={"color": "black"},
            meanprops={"marker": "D", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black"},
            flierprops={"marker": ".", "markersize": 3},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=COLORS[number % len(COLORS)], alpha=0.5)
        for place, values in zip(places, dice, strict=True):
            if not values:
                axes.text(place, 0.5, "not run", transform=axes.get_xaxis_transform(), ha="center", rotation=90)
        axes.set_ylabel(f"{modality_title(modality)} Dice (%)")
        axes.grid(axis="y", linewidth=0.3)
    panels[-1].set_xticks(places, [f"{spec.alpha:g}" for spec in specs])
    panels[-1].set_xlabel("α")
    return figure


def _case_dice(records: Sequence[Record], modality: str) -> list[float]:
    """Mean Dice over structures in %, of each test case of each run."""
    cases = [case for record in records for case in record.cases().values()]
    values = [_mean_dice(case) for case in cases if case["modality"] == modality]
    return [100 * value for value in values if not math.isnan(value)]


def _kd_loss(specs: Sequence[RunSpec], records: Sequence[Record]) -> Figure:
    """Fig. 7: the distillation loss on test data along training, a line for each alpha and run."""
    figure = Figure(figsize=(COLUMN, 2.4), layout="constrained")
    axes = figure.subplots()
    for spec, color, style in zip(specs, COLORS, STYLES, strict=False):
        runs = [record for record in of_spec(records, spec) if record.knowledge]
        label = f"α = {spec.alpha:g}" + ("" if runs else " (not run)")
        if not runs:
            axes.plot([], [], color=color, linestyle=style, label=label)
        for number, record in enumerate(runs):
            steps, losses = zip(*((line["step"], line["kd_loss"]) for line in record.knowledge), strict=True)
            axes.plot(steps, losses, color=color, linestyle=style, label=None if number else label)
    axes.set(xlabel="step", ylabel="KD loss on test cases", ylim=(0, None))
    axes.grid(linewidth=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def _matrices(specs: Sequence[RunSpec], records: Sequence[Record]) -> Figure:
    """Fig. 8: q of each modality, and 5 × the absolute difference of each two, from first to last step."""
    modalities = modalities_of(records)
    pairs = list(itertools.combinations(modalities, 2))
    titles = [modality_title(m) for m in modalities]
    # With two modalities, as in the paper, the title need not name them.
    titles += [
        f"{AMPLIFIED} × |{'difference' if len(pairs) == 1 else ' − '.join(map(modality_title, pair))}|"
        for pair in pairs
    ]
    names = ["bg", *(class_title(name) for name in records[0].task.class_names[1:])]
    figure = Figure(figsize=(PAGE, 1.2 * len(titles) * len(specs)), layout="compressed")
    panels = figure.subplots(len(titles) * len(specs), Q_STEPS, squeeze=False)
    shown = None
    for number, spec in enumerate(specs):
        rows = panels[len(titles) * number : len(titles) * (number + 1)]
        record = next((r for r in of_spec(records, spec) if r.knowledge), None)
        if record is None:
            for axes in rows.flat:
                _not_run(axes)
            lines = []
        else:
            lines = spread(record.knowledge, Q_STEPS)
        for row, title in zip(rows, titles, strict=True):
            row[0].set_ylabel(title)
        for column, line in zip(rows.T, lines, strict=False):
            q = {m: np.array(line["q"][m]) for m in modalities}
            differences = [AMPLIFIED * abs(q[a] - q[b]) for a, b in pairs]
            for axes, matrix in zip(column, (*q.values(), *differences), strict=True):
                shown = axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
            column[0].set_title(f"α = {spec.alpha:g}, step {line['step']}")
        for axes in rows[:, len(lines) :].flat:
            axes.set_frame_on(record is None)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for axes in panels[-1]:
        if axes.images:
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    for axes in panels[:, 0]:
        if axes.images:
            axes.set_yticks(range(len(names)), names, fontsize=5)
    if shown is not None:
        figure.colorbar(shown, ax=panels, shrink=0.4, aspect=40, label="q: row true class, column predicted class")
    return figure


def spread(lines: Sequence[Mapping], number: int) -> list[Mapping]:
    """At most `number` of the lines, evenly chosen, with the first and the last."""
    if len(lines) <= number:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (number - 1))] for i in range(number)]


_DRAW: Mapping[str, Callable[[Sequence[RunSpec], Sequence[Record]], Figure]] = MappingProxyType(
    {
        "fig4": _segmentations,
        "fig5": _segmentations,
        "fig6": _dice_over_alpha,
        "fig7": _kd_loss,
        "fig8": _matrices,
        "fig9": _outlier_slices,
    }
)


# --- panels ----------------------------------------------------------------------------------------------------------


def _not_run(axes: Axes, text: str = "not run") -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _pictures(heights: Sequence[float], columns: int) -> tuple[Figure, NDArray]:
    """A figure of the page's width and its panels: one row for each of `heights`, relative to a picture's width."""
    figure = Figure(figsize=(PAGE, 0.8 + sum(heights) * PAGE / columns), layout="constrained")
    return figure, figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)


def _bare(panels: NDArray) -> None:
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])


def _organ_legend(figure: Figure, task: Task, lines: Mapping[str, Any] = MappingProxyType({})) -> None:
    numbers = {name: c for c, name in enumerate(task.class_names)}  # for readers who do not tell the colours apart
    handles = [
        Line2D([], [], color=task.class_colors[n], label=f"{numbers[n]} {class_title(n)}") for n in task.table_classes
    ]
    handles += [Line2D([], [], color="black", linestyle=style, label=name) for name, style in lines.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


# --- program ---------------------------------------------------------------------------------------------------------


def _define_flags() -> None:
    flags.DEFINE_string("runs_dir", "runs", "Folder of runs, as ummkd reproduce writes it.")
    flags.DEFINE_enum("figure", None, list(FIGURES), "Which one.", required=True)
    flags.DEFINE_string("out_dir", "results", "Folder for the figure.")
    define_whole_numbers("seeds", None, "Seeds that belong in it; default: all that are there.")
    define_whole_numbers("folds", None, "Folds that belong in it; default: all that are there.")


def main(_: list[str]) -> None:
    """Draws the figures that the flags ask for."""
    values = flags.FLAGS
    records = load_folder(values.runs_dir)
    seeds, folds = seeds_and_folds(records, values.figure, values.seeds, values.folds)
    wanted = select(records, TARGETS[values.figure].runs(seeds, folds))
    draw(values.figure, wanted, Path(values.out_dir))
    print(f"{Path(values.out_dir) / values.figure}.pdf and .png")


if __name__ == "__main__":
    _define_flags()
    run(main)
