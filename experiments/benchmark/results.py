"""What a part of the benchmark returns, and how all of it becomes one Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.benchmark.timing import Timing
from ummkd_tf.output.text_tables import markdown

OURS = "ours"
OURS_BFLOAT16 = "ours, bfloat16"


@dataclass(frozen=True)
class Measurement:
    """One contender on one case.

    Attributes:
        case: What had to be done.
        contender: Who did it; `OURS` for this project.
        timing: Seconds.
        values: Further numbers by title, with their unit.
    """

    case: str
    contender: str
    timing: Timing
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """What was aimed at.

    Attributes:
        text: The aim.
        measured: The same in numbers, with where it was measured.
        met: None where it could not be measured.
    """

    text: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Part:
    """Result of one part.

    Attributes:
        name: As in --parts.
        title: Heading.
        rows: In order; rows of one case follow each other.
        aims: In order.
        notes: Sentences below the table.
        pictures: File name beside the page → caption.
    """

    name: str
    title: str
    rows: Sequence[Measurement] = ()
    aims: Sequence[Aim] = ()
    notes: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


def ratio_aim(text: str, pairs: Mapping[str, tuple[float, float]], least: float) -> Aim:
    """An aim that a quotient reaches `least` in every case.

    Args:
        text: The aim.
        pairs: Case → (numerator, denominator); empty where it was not measured.
        least: What every quotient has to reach.
    """
    quotients = {case: numerator / denominator for case, (numerator, denominator) in pairs.items()}
    measured = "; ".join(f"{case}: {value:.2f}" for case, value in quotients.items())
    return Aim(text, measured or "not measured", all(v >= least for v in quotients.values()) if quotients else None)


def as_json(part: Part) -> dict[str, Any]:
    """A part as JSON takes it, with the medians that readers want."""
    content = asdict(part)
    for row, entry in zip(part.rows, content["rows"], strict=True):
        seconds = row.timing.seconds
        entry["timing"] |= {
            "median": row.timing.median,
            "min": min(seconds),
            "max": max(seconds),
            "deviation": row.timing.deviation,
            "rounds": len(seconds),
        }
    return content


def page(parts: Sequence[Part], facts: Mapping[str, Any]) -> str:
    """The whole result in Markdown.

    Args:
        parts: In order.
        facts: Date, commit, machine, versions.
    """
    blocks = ["# Benchmark", "\n".join(f"- {name}: {_fact(value)}" for name, value in facts.items())]
    aims = [aim for part in parts for aim in part.aims]
    if aims:
        mark = {True: "✔ met", False: "✘ missed", None: "– not measured"}
        blocks += [
            "## Aims",
            markdown(["aim", "", "measured"], [[aim.text, mark[aim.met], aim.measured] for aim in aims]),
        ]
    for part in parts:
        blocks += [f"## {part.title}"]
        if part.rows:
            blocks.append(table(part.rows))
        if part.notes:
            blocks.append("\n".join(f"- {note}" for note in part.notes))
        blocks += [f"![{caption}]({name})" for name, caption in part.pictures.items()]
    return "\n\n".join(blocks) + "\n"


def table(rows: Sequence[Measurement]) -> str:
    """Seconds of every row, the ratio to ours of the same case, and all further values."""
    titles = list(dict.fromkeys(title for row in rows for title in row.values))
    ours = {row.case: row.timing.median for row in rows if row.contender == OURS}
    header = ["case", "contender", "median s", "min", "max", "±", "rounds", "by ours", *titles]
    body = []
    for row in rows:
        seconds = row.timing.seconds
        numbers = [row.timing.median, min(seconds), max(seconds), row.timing.deviation]
        ratio = f"{row.timing.median / ours[row.case]:.2f}" if ours.get(row.case) else "–"
        extra = [number(row.values[title]) if title in row.values else "" for title in titles]
        body.append([row.case, row.contender, *map(number, numbers), str(len(seconds)), ratio, *extra])
    return markdown(header, body)


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _fact(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
