"""Learning curves as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from experiments.results.records import Entry, Points
from experiments.results.table import MODALITIES
from ummkd_tf.output.pages import escaped

MOST_POINTS = 100  # of a curve; more cannot be told apart at its size
# Title of a panel, and its curves: kind of line → value in the history.
PANELS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Total loss": {"both": "loss"},
        "Dice loss": {"ct": "ct_dice_loss", "mr": "mr_dice_loss"},
        "Cross-entropy": {"ct": "ct_cross_entropy", "mr": "mr_cross_entropy"},
        "KD loss": {"both": "kd_loss"},
        "L2 term": {"both": "l2_loss"},
        "Validation Dice": {"ct": "validation_ct_dice", "mr": "validation_mr_dice"},
    }
)
LINES = MappingProxyType({**MODALITIES, "both": "both together"})


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


def panel(title: str, names: Mapping[str, str], curves: Mapping[str, Points], frame: Frame) -> str:
    last, low, high = frame
    lines, words = [], []

    def place(step: float, value: float) -> str:
        x = _LEFT + _WIDTH * step / (last or 1)
        y = _TOP + _HEIGHT * (0.5 if high == low else (high - value) / (high - low))
        return f"{x:.1f},{y:.1f}"

    for kind, name in names.items():
        points = _thinned(curves.get(name, []))
        if points:
            places = [place(*point) for point in points]
            lines.append(f'<polyline class="{kind}" points="{" ".join(places)}"/>')
            x, y = places[-1].split(",")
            lines.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="1.2"/>')
            words.append(f"{LINES[kind]} from {_tick(points[0][1])} to {_tick(points[-1][1])}")
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    label = f"{title}: {'; '.join(words) or 'not recorded'}"
    return (
        f'<svg viewBox="0 0 160 92" role="img" aria-label="{escaped(label)}"><title>{escaped(label)}</title>'
        f'<text class="title" x="{_LEFT}" y="10">{title}</text>'
        f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}"/>'
        f'<text x="{_LEFT - 3}" y="{_TOP + 6}" text-anchor="end">{_tick(high)}</text>'
        f'<text x="{_LEFT - 3}" y="{bottom}" text-anchor="end">{_tick(low)}</text>'
        f'<text x="{right}" y="{bottom + 11}" text-anchor="end">{_tick(last)}</text>{"".join(lines)}</svg>'
    )


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
