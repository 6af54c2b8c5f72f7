"""A table as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from experiments.results.table import Table
from ummkd_tf.output.text_tables import markdown


def to_markdown(table: Table) -> str:
    """Markdown: title, one table a block, caption."""
    parts = [f"### {table.title}"]
    for block in table.blocks:
        rows = [[row.title, *(cell.text for cell in row.cells)] for row in block.rows]
        parts.append(markdown([block.title, *table.headings], rows))
    return "\n\n".join([*parts, " ".join([table.provenance, *table.notes])]) + "\n"


def to_csv(table: Table) -> str:
    """CSV: one line per row, with block and caption in every line, so that a line can be understood on its own."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["block", table.stub.lower(), *table.headings, "caption"])
    for block in table.blocks:
        for row in block.rows:
            writer.writerow([block.title, row.title, *(cell.text for cell in row.cells), table.caption])
    return stream.getvalue()


_LATEX = MappingProxyType(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "α": r"$\alpha$",
        "“": "``",
        "”": "''",
        "|": r"\textbar{}",
        "²": "$^2$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(_LATEX.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """A LaTeX table for `graphicx`, in the paper's layout: two header rows, then the blocks."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    width = len(table.columns) + 1
    groups = [rf"\multicolumn{{{span}}}{{c}}{{{latex_text(heading)}}}" for heading, span in table.groups]
    columns = [latex_text(column) for column in table.columns]
    grouped = any(heading for heading, _ in table.groups)
    header = [line([table.stub, *groups]), line(["", *columns])] if grouped else [line([table.stub, *columns])]
    body = []
    for block in table.blocks:
        body += [r"\hline", rf"\multicolumn{{{width}}}{{c}}{{{latex_text(block.title)}}} \\", r"\hline"]
        body += [line([latex_text(row.title), *(latex_text(cell.text) for cell in row.cells)]) for row in block.rows]
    return "\n".join(
        [
            r"\begin{table*}",
            rf"\caption{{{latex_text(table.caption)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
            r"\hline",
            *header,
            *body,
            r"\hline",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


FORMATS: Mapping[str, tuple[str, Callable[[Table], str]]] = MappingProxyType(
    {"md": (".md", to_markdown), "csv": (".csv", to_csv), "latex": (".tex", to_latex)}
)
