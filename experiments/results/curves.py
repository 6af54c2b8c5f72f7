"""Learning curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from experiments.results.records import Entry, Points
from experiments.results.table import modality_title
from ummkd_tf.output.pages import escaped

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


def lines_of(panel: str, modalities: Sequence[str]) -> list[Line]:
    """The curves of a panel."""
    value = PANELS[panel]
    if "{" not in value:
        return [Line("all", "all together", value)]
    return [
        Line(KINDS[number % len(KINDS)], modality_title(m), value.format(modality=m))
        for number, m in enumerate(modalities)
    ]


_LEFT, _TOP, _WIDTH, _HEIGHT = 40, 16, 116, 62  # of a panel's frame, in its own units


Frame = tuple[float, float, float]  # last step, least and greatest value


def frame(entries: Iterable[Entry], names: Iterable[str]) -> Frame:
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
    last, low, high = frame
    drawn, words = [], []

    def place(step: float, value: float) -> str:
        x = _LEFT + _WIDTH * step / (last or 1)
        y = _TOP + _HEIGHT * (0.5 if high == low else (high - value) / (high - low))
        return f"{x:.1f},{y:.1f}"

    for line in lines:
        points = _thinned(curves.get(line.name, []))
        if points:
            places = [place(*point) for point in points]
            drawn.append(f'<polyline class="{line.kind}" points="{" ".join(places)}"/>')
            x, y = places[-1].split(",")
            drawn.append(f'<circle class="{line.kind}" cx="{x}" cy="{y}" r="1.2"/>')
            words.append(f"{line.title} from {_tick(points[0][1])} to {_tick(points[-1][1])}")
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    label = f"{title}: {'; '.join(words) or 'not recorded'}"
    return (
        f'<svg viewBox="0 0 160 92" role="img" aria-label="{escaped(label)}"><title>{escaped(label)}</title>'
        f'<text class="title" x="{_LEFT}" y="10">{title}</text>'
        f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}"/>'
        f'<text x="{_LEFT - 3}" y="{_TOP + 6}" text-anchor="end">{_tick(high)}</text>'
        f'<text x="{_LEFT - 3}" y="{bottom}" text-anchor="end">{_tick(low)}</text>'
        f'<text x="{right}" y="{bottom + 11}" text-anchor="end">{_tick(last)}</text>{"".join(drawn)}</svg>'
    )


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
