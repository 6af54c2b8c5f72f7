"""The report: every number on the page is that of the tables' CSV, the evaluations and the runs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import BROWSER, in_browser
from programs import program
from recorded_runs import absent, evaluation_cases, write_run

from experiments import report
from experiments.plans import TARGETS, RunSpec, runs_for
from experiments.results import builders, rendering
from experiments.results import curves as drawing
from experiments.results.paper import paper_numbers
from experiments.results.records import load_records
from ummkd_tf.common.errors import InputError
from ummkd_tf.settings import SETTINGS

EVIL = "<script>alert(1)</script>&\"'"
PNG = b"\x89PNG\r\n\x1a\n not really"
FIGURES = [name for name, target in TARGETS.items() if target.is_figure]


class Page(HTMLParser):
    """Checks that every tag is closed in order; collects tags, text, and tables by section."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.section = ""
        self.tables: dict[str, list[list[list[tuple[str | None, str]]]]] = {}  # section → tables → rows → cells
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append((values.get("data-value"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            row = self.tables[self.section][-1][-1]
            row[-1] = (row[-1][0], row[-1][1] + data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_modality_looks_the_same_in_the_key_and_in_every_panel():
    """Also of runs that have it alone, or others before it."""
    title = next(title for title, value in drawing.PANELS.items() if "{" in value)
    everyone = drawing.lines_of(title, ("ct", "mr", "t1"))
    assert [line.title for line in everyone] == ["CT", "MRI", "t1"] and len({line.kind for line in everyone}) == 3
    assert drawing.lines_of(title, ("ct", "mr", "t1"), ("t1", "mr")) == everyone[1:]


def test_printed_commands_are_those_of_the_program(tmp_path):
    run_dir = write_run(tmp_path, RunSpec("abdomen", "abdomen", "ours"), None)
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    for command, told in (
        (["/x/train.py", "--seed=1", "--run_dir", "a b"], "ummkd train --seed=1 --run_dir 'a b'"),
        (["/x/growing.py", "--work_dir=w"], "(trained by /x/growing.py)"),
        (None, "(the command was not recorded)"),
    ):
        (run_dir / "run.json").write_text(json.dumps(record | {"command": command}), encoding="utf-8")
        (loaded,) = load_records(tmp_path)
        assert report._commands(loaded).splitlines() == [told, f"ummkd evaluate --run_dir={run_dir}"]


def history(rng, steps=40, every=10, validate_every=20):
    names = [line.name for title in drawing.PANELS for line in drawing.lines_of(title, ("ct", "mr"))]
    lines = []
    for step in range(every, steps + 1, every):
        lines.append({"step": step} | {n: float(rng.normal()) for n in names if not n.startswith("validation")})
        if step % validate_every == 0:
            lines.append({"step": step, "validation_ct_dice": float(rng.uniform()), "validation_mr_dice": None})
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs of all tables and one with hostile names, but: one missing, one running, one not to be used."""
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    missing, running, damaged, *specs = runs_for(builders.TABLES)
    for number, spec in enumerate([running, damaged, *specs]):
        rng = np.random.default_rng(number)
        cases = evaluation_cases(spec.task, rng, range(2))
        outlier = {"ct_0031": evaluation_cases(spec.task, rng, range(1))["ct_0"]} if spec.data == "abdomen" else None
        q = {m: np.eye(5).tolist() for m in ("ct", "mr")}
        lines = [{"step": step, "kd_loss": 0.5, "q": q} for step in (0, 40)] if spec.knowledge else None
        if spec == specs[0]:
            cases["ct_0"]["classes"]["left_atrium"] = absent()
        if spec == damaged:
            del cases["mr_1"]["classes"]["left_atrium"]["dice"]
        status = "running" if spec == running else "finished"
        run_dir = write_run(runs, spec, cases, outlier=outlier, knowledge=lines, status=status)
        (run_dir / "history.jsonl").write_text(history(rng), encoding="utf-8")
    spec = specs[-1]
    hostile = {EVIL: next(iter(evaluation_cases(spec.task, np.random.default_rng(99), range(1)).values()))}
    write_run(folder / "other", spec, hostile, source=EVIL, data_dir=EVIL)
    record = json.loads((folder / "other" / spec.name / "run.json").read_text(encoding="utf-8"))
    record["command"] = ["train.py", f"--run_dir={EVIL}"]
    (folder / "other" / spec.name / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "other" / spec.name).rename(runs / "<script>alert(2)<")
    assert not (runs / missing.name).exists()
    (folder / "results").mkdir()
    (folder / "results" / "fig6.png").write_bytes(PNG)
    return folder


@pytest.fixture(scope="module")
def path(folder):
    return report.write_report(folder / "runs", folder / "results" / "report.html")


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sound(folder):
    return [e.record for e in report.load(folder / "runs") if not e.flaw]


@pytest.mark.parametrize("target", builders.TABLES)
def test_tables_are_those_of_the_csv_cell_by_cell(target, page, sound):
    plain, *beside = page.tables[target]
    assert len(beside) == (target in paper_numbers())
    for compare, found in zip((False, True), (plain, *beside), strict=False):
        table = builders.build(target, sound, compare=compare)
        lines = list(csv.reader(io.StringIO(rendering.to_csv(table))))
        groups, columns, *rows = ([text for _, text in row] for row in found)
        assert columns[0].lower() == lines[0][1] and len(columns) == len(lines[0]) - 2
        assert all(head.endswith(column) for head, column in zip(lines[0][2:-1], columns[1:], strict=True))
        assert all(group in " ".join(lines[0]) for group in groups)
        block, cells = "", []
        for row in rows:
            if len(row) == 1:
                (block,) = row
            else:
                cells.append([block, *row])
        assert cells == [line[:-1] for line in lines[1:]]
        assert lines[1][-1] == table.caption and "PHANTOM data" in table.caption
        told = [text.strip() for text in page.texts]
        assert all(part in told for part in (table.title, table.provenance, " ".join(table.notes)))


def test_cases_are_those_of_the_evaluations(page, sound):
    heads, *rows = page.tables["cases"][0]
    assert [text for _, text in heads][:3] == ["case", "modality", "structure"]
    found = {}
    for row in rows:
        case, modality, structure, dice, hd95, assd, status, part, _, run = (text for _, text in row)
        found[run, part, case, structure] = (modality, status, [v for v, _ in row[3:6]], [dice, hd95, assd])
    assert len(found) == len(rows)
    expected = 0
    for record in sound:
        if record.run["status"] != "finished":
            continue
        for part in ("test", "outlier"):
            file = record.run_dir / f"evaluation_{part}.json"
            cases = json.loads(file.read_text(encoding="utf-8"))["cases"] if file.is_file() else {}
            for case_id, case in cases.items():
                for name, of in case["classes"].items():
                    expected += 1
                    modality, status, values, texts = found[record.name, part, case_id, name.replace("_", " ")]
                    assert (modality, status) == ({"ct": "CT", "mr": "MRI"}[case["modality"]], of["status"])
                    numbers = [of[metric] for metric in ("dice", "hausdorff95_mm", "average_mm")]
                    assert [float(v) if v else None for v in values] == numbers
                    if numbers[0] is None:
                        assert texts == ["–"] * 3
                    else:
                        assert texts == [f"{100 * numbers[0]:.1f}", f"{numbers[1]:.2f}", f"{numbers[2]:.2f}"]
    assert expected == len(rows) > 500


def test_a_case_leads_to_its_slices_or_picture(tmp_path):
    """Found from the run's folder, and linked from where the page lies; a name without either stays text."""
    spec, run_dir = runs_for(["table2"])[0], tmp_path / "runs" / "a run"
    write_run(tmp_path / "runs", spec, evaluation_cases(spec.task, np.random.default_rng(0), range(1)))
    (tmp_path / "runs" / spec.name).rename(run_dir)
    file = run_dir / "evaluation_test.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(written | {"viewer": "slices.html", "pictures": "pictures"}), encoding="utf-8")

    def links():
        text = report.write_report(tmp_path / "runs", tmp_path / "results" / "report.html").read_text(encoding="utf-8")
        return {link["href"] for link in Page(text).all("a") if not link["href"].startswith("#")}

    assert links() == set()
    (run_dir / "pictures").mkdir()
    (run_dir / "pictures" / "ct_0.png").write_bytes(PNG)
    assert links() == {"../runs/a%20run/pictures/ct_0.png"}
    (run_dir / "slices.html").touch()
    assert links() == {"../runs/a%20run/slices.html#ct_0", "../runs/a%20run/slices.html#mr_0"}


def test_parameters_stand_beside_the_papers(page):
    _, *rows = ([text for _, text in row] for row in page.tables["parameters"][0])
    numbers = paper_numbers()
    for network, table in (("dilated2d", "table1"), ("unet3d", "table2")):
        printed = {setting: paper for setting, of, *_, paper in rows if of == network}
        assert printed == {s.title: numbers[table]["blocks"]["dice"][name][0] for name, s in SETTINGS.items()}
    assert ["Ours", "unet3d", "unknown", "1,918,741", "1919K", "1919K"] in rows
    assert ["Individual", "dilated2d", "", "", "", "78.64M"] in rows  # the run that is missing


def test_figures_are_embedded_and_missing_ones_named(page):
    (image,) = page.all("img")
    kind, content = image["src"].split(",")
    assert (kind, base64.b64decode(content)) == ("data:image/png;base64", PNG)
    assert image["alt"] == f"Fig. 6. {TARGETS['fig6'].title}"
    assert [text.removeprefix("make ") for text in page.texts if text.startswith("make fig")] == [
        name for name in FIGURES if name != "fig6"
    ]


def test_nothing_is_loaded_from_elsewhere(path, page):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|fetch\(", text)
    for _, attributes in page.tags:
        assert all(attributes.get(name, "#").startswith(("#", "data:")) for name in ("src", "href", "srcset", "action"))
    assert {a["href"][1:] for a in page.all("a")} == {a["id"] for a in page.all("section")}


def test_hostile_names_are_shown_as_text(page):
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    told = [text for text in page.texts if "alert" in text]
    for name in (EVIL, "<script>alert(2)<"):
        assert any(name in text for text in told)
    names = [text for _, text in (row[0] for row in page.tables["cases"][0])]
    assert EVIL in names


def test_runs_tell_where_they_come_from(page, folder):
    names = {record.name for record in load_records(folder / "runs")}
    assert names <= {text.strip() for text in page.texts}
    for fact in ("0" * 64, "seeded 70/10/20, seed 0", "abc123", "60.0"):
        assert fact in page.texts
    assert any(text.startswith("(the command was not recorded)\nummkd evaluate --run_dir=") for text in page.texts)
    assert any(text.startswith("ummkd train '--run_dir=<script>") for text in page.texts)
    told = "task cardiac, setting joint, recipe paper, preset tiny, size 64, steps 300, learning_rate 0.002,"
    assert any(text.startswith(told) for text in page.texts)


def test_damaged_and_unfinished_runs_are_shown_and_left_out(page, folder):
    _, running, damaged, *_ = runs_for(builders.TABLES)
    (flaw,) = (e.flaw for e in report.load(folder / "runs") if e.flaw)
    assert flaw == "KeyError: 'dice'" and flaw in page.texts
    assert any(re.search(r", 1 damaged, \d+ finished, 1 running;", text) for text in page.texts)
    in_cases = {row[-1][1] for row in page.tables["cases"][0]}
    assert not {running.name, damaged.name} & in_cases
    rows = {row[0][1]: row[1:] for row in page.tables["table1"][0][2:] if len(row) > 1}
    for name in (running.setting, damaged.setting):
        assert {text for _, text in rows[SETTINGS[name].title]} == {""}


def test_curves_are_those_of_the_history(folder, page, sound):
    record = next(r for r in sound if (r.run_dir / "history.jsonl").is_file())
    curves = report.read_curves(record.run_dir / "history.jsonl")
    assert [step for step, _ in curves["loss"]] == [10, 20, 30, 40]
    assert [step for step, _ in curves["validation_ct_dice"]] == [20, 40]
    assert "validation_mr_dice" not in curves  # null each time
    first, last = (f"{curves['loss'][i][1]:.3g}" for i in (0, -1))
    assert f"Total loss: all together from {first} to {last}" in [a.get("aria-label") for a in page.all("svg")]
    with_history = sum((r.run_dir / "history.jsonl").is_file() for r in sound)
    assert len([a for a in page.all("svg") if a.get("role") == "img"]) == with_history * len(drawing.PANELS)


def test_a_panel_is_drawn_to_scale():
    curves = {"a": [(50.0, 1.0), (100.0, 3.0)]}
    panel = drawing.panel("A", [drawing.Line("all", "all together", "a")], curves, (100.0, 1.0, 3.0))
    assert 'points="50.0,100.0 100.0,0.0"' in panel  # half way and lowest; at the end and highest; in per cent


def test_long_curves_are_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    thin = drawing._thinned(points)
    assert len(thin) == drawing.MOST_POINTS
    assert thin[0] == (4.5, 0.5) and thin[-1] == (994.5, 0.5)
    assert drawing._thinned(points[:100]) == points[:100] and drawing._thinned([]) == []


def test_a_history_cut_off_by_a_kill_is_read_to_its_end(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo', encoding="utf-8")
    assert report.read_curves(path) == {"loss": [(1, 2.0)]}
    assert report.read_curves(tmp_path / "none") == {}


def test_same_inputs_give_the_same_bytes(folder, path):
    before = path.read_bytes()
    done = program("experiments.report", f"--runs_dir={folder / 'runs'}", f"--out={path}")
    assert (done.returncode, done.stdout.strip()) == (0, str(path)), done.stderr
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["fig6.png", "report.html"]


def test_without_runs_every_table_is_blank(tmp_path):
    page = Page(report.write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.texts.count("Nothing has been run.") == len(builders.TABLES)
    assert "PHANTOM" not in "".join(page.texts).split("</style>")[-1]
    assert len(page.tables["cases"][0]) == 1


def test_cost_shows_the_pictures_of_the_benchmark(tmp_path):
    measured = {
        "date": "2026-01-02", "commit": "abc", "sizes": "full", "rounds": 5, "machine": {"cores": 2},
        "parts": [
            {"name": "step", "pictures": {}},
            {"name": "scaling", "pictures": {"scaling_width.png": "Seconds against width. unet3d: slope 1.75"}},
        ],
    }  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps(measured), encoding="utf-8")
    (tmp_path / "scaling_width.png").write_bytes(PNG)

    def written() -> str:
        return report.write_report(tmp_path, tmp_path / "report.html", tmp_path).read_text(encoding="utf-8")

    cost = written().split('<section id="cost">')[1]
    assert base64.b64encode(PNG).decode("ascii") in cost
    assert "unet3d: slope 1.75" in cost and "<dt>commit</dt><dd>abc</dd>" in cost
    (tmp_path / "scaling_width.png").unlink()
    with pytest.raises(InputError, match=r"benchmark\.json: not what ummkd benchmark writes"):
        written()
    (tmp_path / "benchmark.json").unlink()
    assert "make benchmark" in written().split('<section id="cost">')[1]


def test_program_says_what_is_missing(tmp_path):
    done = program("experiments.report", f"--runs_dir={tmp_path}/none", f"--out={tmp_path}/report.html")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: --runs_dir={tmp_path}/none: no such folder: expected one that ummkd reproduce wrote\n"
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: damaged"):
        report.write_report(tmp_path, tmp_path / "report.html")


_PROBE = """<script>
document.querySelectorAll("details").forEach(box => box.open = true);
const told = {inner: innerWidth, width: document.documentElement.scrollWidth};
const rows = [...document.querySelector("#cases tbody").rows];
const head = [...document.querySelectorAll("#cases th")].find(cell => cell.textContent.startsWith("Dice"));
const column = () => [...document.querySelector("#cases tbody").rows].map(row => row.cells[3].dataset.value);
told.first_order = column();
for (const order of ["up", "down"]) {
  head.querySelector("button").click();
  told[order] = {sort: head.getAttribute("aria-sort"), column: column()};
}
head.querySelector("button").click();
told.again = column();
const results = document.querySelector("#table1 .results"), method = results.tHead.rows[1].cells[0];
const names = () => [...results.tBodies].map(body => [...body.rows].map(row => row.cells[0].textContent));
told.blocks = [names()];
for (let click = 0; click < 3; click++) { method.querySelector("button").click(); told.blocks.push(names()); }
choice.value = rows[0].lastElementChild.textContent;
choice.dispatchEvent(new Event("change"));
told.shown = rows.filter(row => row.offsetHeight > 0).map(row => row.lastElementChild.textContent);
told.first = choice.value;
parent.document.title = JSON.stringify(told);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(width, path, tmp_path):
    """The page is no wider than the window, a click sorts with missing values last, and the filter filters."""
    page = path.read_text(encoding="utf-8").replace("</body>", f"{_PROBE}</body>")
    told = in_browser(page, width, tmp_path)
    assert told["inner"] == width
    assert told["width"] <= width
    for order, sign in (("up", 1), ("down", -1)):
        assert told[order]["sort"] == {"up": "ascending", "down": "descending"}[order]
        *values, last = told[order]["column"]
        assert last == ""
        assert values == sorted(values, key=lambda v: sign * float(v))
    assert told["again"] == told["first_order"]
    before, up, down, again = told["blocks"]
    assert before == again != up
    for (title, *names), *changed in zip(before, up, down, strict=True):
        assert [block[0] for block in changed] == [title, title]  # each block keeps its title and its rows
        assert [sorted(block[1:]) for block in changed] == [sorted(names)] * 2
        assert changed[0][1:] == changed[1][:0:-1]
    assert told["shown"] and set(told["shown"]) == {told["first"]}
