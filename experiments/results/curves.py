"""Learning curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from types import MappingProxyType

from experiments.results.records import Entry, Points
from experiments.results.table import modality_title
from ummkd_tf.output.pages import asset, escaped

MOST_POINTS = 100  # of a curve; more cannot be told apart at its size
# Title of a panel, and the value in the history it shows: of all modalities together, or of each.
PANELS: Mapping[str, str] = MappingProxyType(
    {
        "Total loss": "loss",
        "Dice loss": "{modality}_dice_loss",
        "Cross-entropy": "{modality}_cross_entropy",
        "KD loss": "kd_loss",
        "L2 term": "l2_loss",
        "Validation Dice": "validation_{modality}_dice",
    }
)
KINDS = ("first", "second", "third", "fourth")
"""Styles of modalities' lines, in the models' order; more modalities take them in turn."""


@dataclass(frozen=True)
class Line:
    """A curve: its style, its title, and its name in the history."""

    kind: str
    title: str
    name: str


def lines_of(panel: str, modalities: Sequence[str], shown: Sequence[str] | None = None) -> list[Line]:
    """The curves of a panel.

    Args:
        panel: Of `PANELS`.
        modalities: All on the page, so that each looks the same in every panel.
        shown: Those of the panel; None for all.
    """
    value = PANELS[panel]
    if "{" not in value:
        return [Line("all", "all together", value)]
    return [
        Line(KINDS[number % len(KINDS)], modality_title(m), value.format(modality=m))
        for number, m in enumerate(modalities)
        if shown is None or m in shown
    ]


Frame = tuple[float, float, float]  # last step, least and greatest value


def frame(entries: Iterable[Entry], names: Iterable[str]) -> Frame:
    """The axes that hold the curves of these names in all runs."""
    names = list(names)
    points = [p for entry in entries for name in names for p in _thinned(entry.curves.get(name, []))]
    steps, values = ([p[i] for p in points] or [0.0] for i in (0, 1))
    return max(steps), min(values), max(values)


def _thinned(points: Points) -> Points:
    """At most `MOST_POINTS` means of equal parts."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def panel(title: str, lines: Sequence[Line], curves: Mapping[str, Points], frame: Frame) -> str:
    """A panel as SVG: the template places it, here the curves are scaled to per cent of its frame."""
    last, low, high = frame
    drawn, words = [], []
    for line in lines:
        points = _thinned(curves.get(line.name, []))
        if points:
            places = [
                f"{100 * step / (last or 1):.1f},{50 if high == low else 100 * (high - value) / (high - low):.1f}"
                for step, value in points
            ]
            drawn.append(f'<polyline class="{line.kind}" points="{" ".join(places)}"/>')
            drawn.append(f'<path class="end {line.kind}" d="M{places[-1]}h0"/>')
            words.append(f"{line.title} from {_tick(points[0][1])} to {_tick(points[-1][1])}")
    label = escaped(f"{title}: {'; '.join(words) or 'not recorded'}")
    texts = {"label": label, "title": title, "high": _tick(high), "low": _tick(low), "last": _tick(last)}
    return Template(asset("panel.svg")).substitute(texts, curves="".join(drawn))


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
