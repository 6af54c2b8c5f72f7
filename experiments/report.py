"""One HTML page with every table, figure, learning curve, case and run, opened from disk.

    python -m experiments.report --runs_dir=runs/paper --out=results/paper/report.html

Tables are those of `experiments.tables`; figures are the fig4.png … fig9.png beside the page. The same inputs give the
same bytes. A run whose files can be read but do not hold what they should is named as damaged and left out.
"""

from __future__ import annotations

import base64
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from absl import flags

from experiments.plans import TARGETS
from experiments.results import builders, captions
from experiments.results.builders import TABLES
from experiments.results.curves import MOST_POINTS, PANELS, Frame, frame, lines_of, panel
from experiments.results.paper import paper_numbers
from experiments.results.records import Entry, Points, Record, load_folder, modalities_of, read_json
from experiments.results.table import MODALITIES, UNDEFINED, Cell, Table, modality_title, parameter_text
from ummkd_tf.common.cli import run
from ummkd_tf.common.documents import MALFORMED
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import write_whole
from ummkd_tf.evaluation.summary import METRICS
from ummkd_tf.output.pages import document, escaped, facts
from ummkd_tf.runs.history import HISTORY, read_history
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS

CASE_METRICS = ("dice", "hausdorff95_mm", "average_mm")
PHANTOM = '<strong class="phantom">PHANTOM</strong>'


def load(runs_dir: str | Path) -> list[Entry]:
    """Every run in a folder.

    Raises:
        InputError: No such folder, or a file that is no JSON.
    """
    return [_entry(record) for record in load_folder(runs_dir)]


def _entry(record: Record) -> Entry:
    """Reads a run, and tries everything that the page shows of it, so that a damaged run is found by itself."""
    try:
        entry = Entry(record, read_curves(record.run_dir / HISTORY))
        for target in TABLES:
            builders.build(target, [record])
        _cases([entry], Path())
        for section in (_parameters, _is_phantom, _curves):
            section([entry])
    except (InputError, *MALFORMED) as error:
        return Entry(record, {}, f"{type(error).__name__}: {error}")
    return entry


def read_curves(path: Path) -> dict[str, Points]:
    """Finite values of a history by name; {} where there is none."""
    by_name: dict[str, dict[float, float]] = {}
    for values in read_history(path):
        step = values.pop("step")
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                by_name.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in by_name.items()}


def render(entries: Sequence[Entry], figures_dir: Path, benchmark_dir: Path) -> str:
    """The page as HTML; whatever comes from data is escaped.

    Args:
        entries: The runs.
        figures_dir: Where fig4.png … are, those that are drawn.
        benchmark_dir: Where benchmark.json and its pictures are, if it was run.

    Raises:
        InputError: benchmark.json is damaged.
    """
    sound = [entry for entry in entries if not entry.flaw]
    own = builders.own_tables(entry.record for entry in sound)
    sections = [
        ("overview", "Overview", _overview(entries)),
        *((name, _short(name), _table_section(name, sound)) for name in TABLES if _is_run(name, sound)),
        *((table.name, table.title, _own_section(table, sound)) for table in own),
        ("figures", "Figures", _figures(sound, figures_dir)),
        ("curves", "Curves", _curves(sound)),
        ("parameters", "Parameters", _parameters(sound)),
        ("cases", "Cases", _cases(sound, figures_dir)),
        ("runs", "Runs", _runs(entries)),
        ("cost", "Cost", _cost(benchmark_dir)),
        ("not-run", "Not run", _not_run(sound)),
    ]
    sections = [section for section in sections if section[2]]
    links = "\n".join(f'<a href="#{name}">{escaped(title)}</a>' for name, title, _ in sections)
    body = "\n".join(f'<section id="{name}">\n{content}\n</section>' for name, _, content in sections)
    title = "Unpaired multi-modal segmentation via knowledge distillation: results"
    header = f'<header><h1>{title}</h1></header>\n<nav aria-label="Sections">\n{links}\n</nav>'
    return document(title, f"{header}\n<main>\n{body}\n</main>", kind="report")


def _short(target: str) -> str:
    kind, _, name = target.partition("_")
    return f"Claim: {name.replace('_', ' ')}" if name else f"Table {kind.removeprefix('table')}"


def _own_section(table: Table, entries: Iterable[Entry]) -> str:
    rows = {row.key for block in table.blocks for row in block.rows}
    return _shown(table, [entry for entry in entries if entry.record.name in rows])


def _heading(title: str, entries: Iterable[Entry]) -> str:
    return f"<h2>{escaped(title)} {PHANTOM if _is_phantom(entries) else ''}</h2>"


def _is_phantom(entries: Iterable[Entry]) -> bool:
    return any(captions.is_phantom(entry.record) for entry in entries)


def _of(target: str, entries: Sequence[Entry]) -> list[Entry]:
    """The finished runs that a target is made of, whatever their seeds and folds."""
    return [e for e in entries if e.record.finished and e.record.stem in TARGETS[target].stems]


def _is_run(target: str, entries: Sequence[Entry]) -> bool:
    """Whether a target has a run on each of its data sets; the outlier is one more."""
    asked = TARGETS[target]
    found = {entry.record.name.partition("-")[0] for entry in _of(target, entries)}
    return found == {spec.data for spec in asked.specs} and (
        not asked.outlier or any(entry.record.outlier for entry in _of(target, entries))
    )


def _scroll(table: str, label: str, more: str = "") -> str:
    """A box in which a wide table scrolls, also by keyboard."""
    return f'<div class="scroll {more}" tabindex="0" role="region" aria-label="{escaped(label)}">{table}</div>'


def _overview(entries: Sequence[Entry]) -> str:
    runs = [entry.record.run for entry in entries]

    def each(values: Iterable[object]) -> str:
        return ", ".join(sorted({str(value) for value in values})) or UNDEFINED

    states = ["damaged" if entry.flaw else str(entry.record.run.get("status", "unknown")) for entry in entries]
    phantoms = sum(_is_phantom([entry]) for entry in entries if not entry.flaw)
    notice = (
        f'<p class="notice" role="note">{PHANTOM} data in {phantoms} of {len(runs)} runs: generated, not scanned. '
        "Their numbers show that everything works, not how well the method segments patients.</p>"
    )
    flags_of = [run["flags"] for run in runs if isinstance(run["flags"], Mapping)]
    return (
        "<p>A reproduction in TensorFlow 2 of “Unpaired Multi-modal Segmentation via Knowledge Distillation”: its "
        "tables and figures from recorded runs, and what the runs were. A click on a column's heading sorts by "
        "it.</p>\n"
        + (f"{notice}\n" if phantoms else "")
        + facts(
            {
                "Data": each(run.get("source") or "unknown" for run in runs),
                "Preset": each(values.get("preset", "unknown") for values in flags_of),
                "Steps": each(values.get("steps", "unknown") for values in flags_of),
                "Seeds": each(run["seed"] for run in runs),
                "Runs": f"{len(runs)}"
                + "".join(f", {states.count(state)} {state}" for state in sorted(set(states)))
                + f"; {sum(entry.record.evaluation is not None for entry in entries)} evaluated",
            }
        )
    )


def _not_run(entries: Sequence[Entry]) -> str:
    """The tables without a run, folded: what they will look like."""
    parts = [
        f'<details id="{name}">\n<summary>{_short(name)}</summary>\n{_table_section(name, entries)}\n</details>'
        for name in TABLES
        if not _is_run(name, entries)
    ]
    return "\n".join([_heading("Tables that have not been run", ()), *(parts or ["<p>None.</p>"])])


def _table_section(target: str, entries: Sequence[Entry]) -> str:
    records = [entry.record for entry in entries]
    try:
        table, compared = (builders.build(target, records, compare=compare) for compare in (False, True))
    except (InputError, *MALFORMED) as error:  # runs that do not fit together
        return f"{_heading(_short(target), ())}\n<p>Cannot be made: {escaped(error)}</p>"
    beside = (
        f"<details>\n<summary>Beside the paper's numbers</summary>\n{_result_table(compared)}\n</details>"
        if compared != table
        else ""
    )
    return f"{_shown(table, _of(target, entries))}\n{beside}"


def _shown(table: Table, entries: Sequence[Entry]) -> str:
    return (
        f"{_heading(table.title, entries)}\n<p>{escaped(table.provenance)}</p>\n"
        f'{_result_table(table)}\n<p class="quiet">{escaped(" ".join(table.notes))}</p>'
    )


def _result_table(table: Table) -> str:
    """Two rows of headings, then a body for each block."""
    groups = "".join(f'<th colspan="{span}" scope="colgroup">{escaped(text)}</th>' for text, span in table.groups)
    columns = "".join(f'<th scope="col"><button>{escaped(column)}</button></th>' for column in table.columns)
    bodies = []
    for block in table.blocks:
        seen: set[str] = set()
        rows = []
        for row in block.rows:
            kind = ' class="beside"' if row.key in seen else ""
            seen.add(row.key)
            cells = "".join(_result_cell(cell) for cell in row.cells)
            rows.append(f'<tr{kind}><th class="text" scope="row">{escaped(row.title)}</th>{cells}</tr>')
        title = f'<th colspan="{len(table.columns) + 1}" scope="rowgroup"><span>{escaped(block.title)}</span></th>'
        bodies.append("\n".join([f'<tbody>\n<tr class="block">{title}</tr>', *rows, "</tbody>"]))
    return _scroll(
        f'<table class="results sortable">\n<thead>\n<tr><th></th>{groups}</tr>\n'
        f'<tr><th class="text" scope="col"><button>{table.stub}</button></th>{columns}</tr>\n</thead>\n'
        f"{chr(10).join(bodies)}\n</table>",
        table.title,
    )


def _result_cell(cell: Cell) -> str:
    """Sorts by its number; one without comes last, except a text such as a number of parameters."""
    value = "" if cell.value is None else cell.value
    sorts_by = "" if cell.value is None and cell.text not in ("", UNDEFINED) else f' data-value="{value}"'
    return f"<td{sorts_by}>{escaped(cell.text)}</td>"


def _figures(entries: Sequence[Entry], folder: Path) -> str:
    parts = [_heading("Figures", ())]
    for name, target in TARGETS.items():
        if not target.is_figure:
            continue
        title = f"Fig. {name.removeprefix('fig')}. {target.title}"
        badge = PHANTOM if _is_phantom(_of(name, entries)) else ""
        path = folder / f"{name}.png"
        if path.is_file():
            parts.append(_figure(path, title, badge))
        elif _of(name, entries):
            parts.append(f"<p>{escaped(title)}: not drawn yet: <code>make {name}</code></p>")
    return "\n".join(parts) if len(parts) > 1 else ""


def _figure(path: Path, title: str, badge: str = "") -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    picture = f'<img src="data:image/png;base64,{content}" alt="{escaped(title)}">'
    return f"<figure>{picture}<figcaption>{escaped(title)} {badge}</figcaption></figure>"


def _cost(folder: Path) -> str:
    """How cost grows with the work, as `experiments.benchmark` measured it."""
    heading, path = _heading("Cost as work grows", ()), folder / "benchmark.json"
    measured = read_json(path)
    if measured is None:
        return f"{heading}\n<p>Not measured yet: <code>make benchmark</code></p>"
    try:
        about = {name: _words(measured[name]) for name in ("date", "commit", "sizes", "rounds", "machine")}
        pictures = [p for part in measured["parts"] for p in part["pictures"].items()]
        figures = [_figure(folder / Path(name).name, caption) for name, caption in pictures]
    except MALFORMED as error:
        raise InputError("not what ummkd benchmark writes", where=path, fix=f"{error!r}; run it again") from error
    note = "" if figures else '<p>Part "scaling" was not run.</p>'
    return "\n".join([heading, facts(about), note, f'<div class="grid">{"".join(figures)}</div>'])


def _curves(entries: Sequence[Entry]) -> str:
    modalities = modalities_of(entry.record for entry in entries) or tuple(MODALITIES)
    shown = dict.fromkeys((line.kind, line.title) for title in PANELS for line in lines_of(title, modalities))
    key = " ".join(
        f'<svg class="key" viewBox="0 0 32 8" aria-hidden="true"><path class="{kind}" d="M0,4H32"/></svg> {title}'
        for kind, title in ((kind, escaped(text)) for kind, text in shown)
    )
    parts = [
        _heading("Learning curves", entries),
        f"<p>{key}. Over optimizer steps; the runs of a data set share their axes. Losses are of training batches. "
        f"A curve of more than {MOST_POINTS} points shows the means of equal parts.</p>",
    ]
    for data in sorted({entry.record.data for entry in entries}):
        members = [entry for entry in entries if entry.record.data == data]
        present = modalities_of(entry.record for entry in members)
        frames = {
            title: frame(members, (line.name for line in lines_of(title, modalities, present))) for title in PANELS
        }
        parts.append(f"<h3>{escaped(data)} {PHANTOM if _is_phantom(members) else ''}</h3>")
        parts += [_curves_of(entry, frames, modalities) for entry in members]
    return "\n".join(parts)


def _curves_of(entry: Entry, frames: Mapping[str, Frame], modalities: Sequence[str]) -> str:
    name, status = escaped(entry.record.name), escaped(entry.record.run.get("status", "unknown"))
    panels = "\n".join(
        panel(title, lines_of(title, modalities, entry.record.modalities), entry.curves, frames[title])
        for title in PANELS
    )
    content = f'<div class="panels">\n{panels}\n</div>' if entry.curves else f"<p>No {HISTORY} yet.</p>"
    return f"<figure><figcaption>{name} <small>{status}</small></figcaption>{content}</figure>"


def _flat_table(columns: Mapping[str, str], rows: Iterable[str], label: str, *, sortable: bool = False) -> str:
    """One row of headings; `columns`: heading → class of its column."""
    heads = "".join(
        f'<th class="{kind}" scope="col">{f"<button>{head}</button>" if sortable else head}</th>'
        for head, kind in columns.items()
    )
    table = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table>"
    kind, box = ("sortable", "tall") if sortable else ("", "fit")
    return _scroll(f'<table class="{kind}">\n{table}', label, box)


def _texts(*values: object) -> str:
    return "".join(f'<td class="text">{escaped(value)}</td>' for value in values)


def _parameters(entries: Sequence[Entry]) -> str:
    counted: dict[tuple[str, str], dict[int | str, int]] = {}
    for entry in entries:
        model, evaluation = entry.record.run["model"], entry.record.evaluation
        usual = (entry.record.task.network, "batch", "paper", 2)
        found = (model["network"], model.get("normalization"), model.get("decoder", "paper"))
        if evaluation and (*found, len(entry.record.modalities)) == usual:
            by_width = counted.setdefault((entry.record.task.name, model["setting"]), {})
            by_width[model.get("width", "unknown")] = evaluation["parameters"]
    rows = []
    for table, task in (("table1", TASKS["cardiac"]), ("table2", TASKS["abdomen"])):
        for name, setting in SETTINGS.items() if task.name in {name for name, _ in counted} else ():
            paper = paper_numbers()[table]["blocks"]["dice"][name][0]
            ours = [
                (str(w), f"{n:,}", parameter_text(task.name, n)) for w, n in counted.get((task.name, name), {}).items()
            ]
            for cells in sorted(ours) or [("", "", "")]:
                numbers = "".join(f"<td>{escaped(text)}</td>" for text in (*cells, paper))
                rows.append(f"<tr>{_texts(setting.title, task.network)}{numbers}</tr>")
    columns = {"setting": "text", "network": "text"}
    columns |= dict.fromkeys(("width", "trainable parameters", "rounded", "paper (width 16)"), "")
    if not rows:
        return ""
    return (
        f"{_heading('Parameters', ())}\n<p>Of runs with batch normalization; a smaller preset has a smaller width. "
        "Without a run, <code>python -m experiments.train --describe</code> counts those of any network.</p>\n"
        f"{_flat_table(columns, rows, 'Parameters')}"
    )


def _cases(entries: Sequence[Entry], page_dir: Path) -> str:
    evaluated = [e for e in entries if e.record.finished and (e.record.evaluation or e.record.outlier)]
    options = "\n".join(f"<option>{escaped(entry.record.name)}</option>" for entry in evaluated)
    rows = [row for entry in evaluated for row in _case_rows(entry.record, page_dir)]
    columns = {
        **dict.fromkeys(("case", "modality", "structure"), "text"),
        **dict.fromkeys((METRICS[metric].short for metric in CASE_METRICS), ""),
        **dict.fromkeys(("status", "part", "data", "run"), "text"),
    }
    return (
        f"{_heading('Cases', entries)}\n<p>Every structure of every case the finished runs were tested on: "
        f"{len(rows)} rows. A click on a column's head sorts by it. A case's name leads to its slices or picture, with "
        "prediction and reference, where <code>ummkd evaluate --viewer=… --pictures=…</code> made them.</p>\n"
        f'<label hidden>Run <select id="run" autocomplete="off">\n<option value="">all</option>\n{options}\n</select>'
        f"</label>\n{_flat_table(columns, rows, 'Cases', sortable=True)}"
    )


def _case_rows(record: Record, page_dir: Path) -> Iterable[str]:
    for part, kind in (("test", "evaluation"), ("outlier", "outlier")):
        for case_id, case in record.cases(kind).items():
            shown = _link(record.run_dir, getattr(record, kind), case_id, page_dir)
            for name, metrics in case["classes"].items():
                numbers = "".join(_number_cell(metrics[metric], metric) for metric in CASE_METRICS)
                before = _texts(modality_title(case["modality"]), name.replace("_", " "))
                after = _texts(metrics["status"], part, record.run.get("source", "unknown"), record.name)
                yield f'<tr><td class="text">{shown}</td>{before}{numbers}{after}</tr>'


def _link(run_dir: Path, evaluation: Mapping[str, Any], case_id: str, page_dir: Path) -> str:
    """A case's name, as a link to what evaluation drew of it: its slices, else its picture."""
    viewer, pictures = (run_dir / str(evaluation.get(name) or "missing") for name in ("viewer", "pictures"))
    target, there = (viewer, f"#{quote(case_id)}") if viewer.is_file() else (pictures / f"{case_id}.png", "")
    if not target.is_file():
        return escaped(case_id)
    path = quote(os.path.relpath(target, page_dir))
    return f'<a href="{escaped(path + there)}">{escaped(case_id)}</a>'


def _number_cell(value: float | None, metric: str) -> str:
    """The number as recorded for sorting, and as printed in tables."""
    if value is None:
        return f'<td data-value="">{UNDEFINED}</td>'
    return f'<td data-value="{float(value)!r}">{METRICS[metric].text(value)}</td>'


def _runs(entries: Sequence[Entry]) -> str:
    parts = [_heading("Runs", ()), "<p>What each run was, and the commands that make it again.</p>"]
    for data in sorted({entry.record.data for entry in entries}):
        parts.append(f"<h3>{escaped(data)}</h3>")
        parts += [_run(entry) for entry in entries if entry.record.data == data]
    return "\n".join(parts)


def _run(entry: Entry) -> str:
    """The section of a run. Damaged runs are shown too, so any value may be missing."""
    run = entry.record.run
    environment = run["environment"] if isinstance(run["environment"], Mapping) else {}
    rows = {
        "Status": run.get("status", "unknown"),
        "Data": run.get("source", "unknown"),
        "Split": run["split_name"],
        "Split checksum": run["split_sha256"],
        "Seed": run["seed"],
        "Seconds": run["seconds"],
        "Commit": environment.get("commit", "unknown"),
        "Versions": environment.get("versions", "unknown"),
        "Device": environment.get("gpus") or environment.get("devices", "unknown"),
        "Processor": environment.get("processor", "unknown"),
        "Platform": environment.get("platform", "unknown"),
        "Model": run["model"],
        "Flags": run["flags"],
    }
    rows |= {"Damaged": entry.flaw} if entry.flaw else {}
    rows |= {"Changed since its start": run["changes"]} if "changes" in run else {}
    rows |= {"Continued": run["continued"]} if "continued" in run else {}
    badge = PHANTOM if not entry.flaw and _is_phantom([entry]) else ""
    state = "damaged" if entry.flaw else rows["Status"]
    return (
        f"<details>\n<summary>{escaped(entry.record.name)} <small>{escaped(state)}</small> {badge}</summary>\n"
        f"{facts({name: _words(value) for name, value in rows.items()})}\n"
        f"<pre><code>{escaped(_commands(entry.record))}</code></pre>\n</details>"
    )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(of)}" for name, of in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _commands(record: Record) -> str:
    evaluate = shlex.join(["ummkd", "evaluate", f"--run_dir={record.run_dir}"])
    command = record.run.get("command")
    if not isinstance(command, list) or not command:
        return f"(the command was not recorded)\n{evaluate}"
    program, *arguments = map(str, command)
    if Path(program).stem != "train":
        return f"(trained by {program})\n{evaluate}"
    return f"{shlex.join(['ummkd', 'train', *arguments])}\n{evaluate}"


def write_report(runs_dir: str | Path, out: str | Path, benchmark_dir: str | Path = "results/benchmark") -> Path:
    """Writes the page.

    Args:
        runs_dir: Folder of runs.
        out: The page; figures are looked for beside it.
        benchmark_dir: Where `experiments.benchmark` wrote, if it was run.

    Returns:
        `out`.

    Raises:
        InputError: No such folder of runs, a file in it that is no JSON, or the page cannot be written.
    """
    out = Path(out)
    text = render(load(runs_dir), out.parent, Path(benchmark_dir))
    write_whole(out, text)
    return out


def main(_: list[str]) -> None:
    """Writes the page that the flags ask for."""
    print(write_report(flags.FLAGS.runs_dir, flags.FLAGS.out, flags.FLAGS.benchmark_dir))


if __name__ == "__main__":
    flags.DEFINE_string("runs_dir", "runs", "Folder of runs, as ummkd reproduce writes it.")
    flags.DEFINE_string("out", "results/report.html", "The page; figures are looked for beside it.")
    flags.DEFINE_string("benchmark_dir", "results/benchmark", "Folder of ummkd benchmark, if it was run.")
    run(main)
