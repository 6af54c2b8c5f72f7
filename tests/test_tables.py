"""Every cell of every table from run folders with known numbers, recomputed here by a few lines of NumPy."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import program
from recorded_runs import absent, evaluation_cases, write_run
from scipy import stats

from experiments.plans import NORMALIZATIONS, TARGETS, RunSpec
from experiments.results import builders, rendering
from experiments.results.captions import provenance
from experiments.results.paper import paper_numbers
from experiments.results.records import load_folder, load_records, unplanned
from experiments.results.table import Cell, number_cell, p_text
from ummkd_tf.common.errors import InputError
from ummkd_tf.model.architectures import NETWORKS
from ummkd_tf.output.text_tables import markdown
from ummkd_tf.runs.folder import evaluation_name
from ummkd_tf.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "cardiac": ("lv_myocardium", "left_atrium", "left_ventricle", "ascending_aorta"),
    "abdomen": ("liver", "spleen", "right_kidney", "left_kidney"),
}
FACTOR = {"dice": 100.0}
PAPER_TEXT = os.environ.get("UMMKD_PAPER_TEXT", "")


def write_target(runs_dir, target, seeds=(0,), folds=(0,), per_fold=3):
    """All runs of a target with random numbers; each fold tests its own cases. Returns cases by (spec, seed, fold)."""
    written = {}
    for number, spec in enumerate(TARGETS[target].runs(seeds, folds)):
        rng = np.random.default_rng(number)
        cases = evaluation_cases(spec.task, rng, range(per_fold * spec.fold, per_fold * (spec.fold + 1)))
        outlier = {"ct_0031": evaluation_cases(spec.task, rng, range(1))["ct_0"]}
        write_run(runs_dir, spec, cases, outlier=outlier)
        written[spec] = (cases, outlier)
    return written


def values(cases, modality, name, metric):
    found = [c["classes"][name][metric] for c in cases.values() if c["modality"] == modality]
    return FACTOR.get(metric, 1.0) * np.array(found, dtype=float)


def numbers(block):
    """Row key → values of its cells."""
    return {row.key: [cell.value for cell in row.cells] for row in block.rows}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- Tables I and II -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["table1", "table2"])
def test_results_of_one_seed(target, tmp_path):
    written = write_target(tmp_path, target)
    table = builders.build(target, load_records(tmp_path))
    assert len(table.blocks) == 5
    assert table.headings[0] == "Param Scale" and table.headings[-1] == "Overall Mean" and len(table.headings) == 12
    for block, metric in zip(table.blocks, ("dice", None, "hausdorff_mm", "hausdorff95_mm", "average_mm"), strict=True):
        assert [r.key for r in block.rows] == (["payer"] if target == "table1" else []) + list(SETTINGS)
        rows = {row.key: row for row in block.rows}
        for spec, (cases, _) in written.items():
            cells = rows[spec.setting].cells
            overall = []
            for m, start in (("ct", 1), ("mr", 6)):
                means = []
                for name, cell in zip(COLUMNS[spec.task], cells[start : start + 4], strict=True):
                    if metric:
                        v = values(cases, m, name, metric)
                        mean, std = v.mean(), v.std()
                    else:  # pooled over surface voxels
                        points, total, squares = (
                            values(cases, m, name, key).sum()
                            for key in ("surface_points", "surface_distance_sum_mm", "surface_distance_square_sum_mm2")
                        )
                        mean = total / points
                        std = math.sqrt(squares / points - mean**2)
                    close([cell.value, cell.std], [mean, std])
                    digits = 1 if metric == "dice" else 2
                    assert cell.text == f"{mean:.{digits}f}±{std:.{digits}f}" and cell.seed_std is None
                    means.append(mean)
                close(cells[start + 4].value, np.mean(means))
                overall.append(np.mean(means))
            close(cells[11].value, np.mean(overall))
            assert cells[0].value == 1_918_741 and cells[0].text == ("1.92M" if target == "table1" else "1919K")
    if target == "table1":
        assert not any(cell.text for cell in table.blocks[0].rows[0].cells)  # Payer et al. were not run


def test_results_of_several_seeds_and_folds(tmp_path):
    """Cases of the folds join; the spread between cases and that between seeds stay apart."""
    written = write_target(tmp_path, "table2", seeds=(0, 1, 2), folds=(0, 1))
    table = builders.build("table2", load_records(tmp_path))
    assert len(table.blocks) == 10
    assert table.blocks[5].title == "Dice (%): standard deviation over 3 seeds"
    seed_rows = {row.key: row for row in table.blocks[5].rows}
    for row in table.blocks[0].rows:
        mine = {spec: cases for spec, (cases, _) in written.items() if spec.setting == row.key}
        by_seed = [{c: e for s, cases in mine.items() if s.seed == n for c, e in cases.items()} for n in (0, 1, 2)]
        columns = [(m, name) for m in ("ct", "mr") for name in COLUMNS["abdomen"]]
        means = np.array([[values(cases, *column, "dice").mean() for column in columns] for cases in by_seed])
        stds = np.array([[values(cases, *column, "dice").std() for column in columns] for cases in by_seed])
        assert all(len(cases) == 12 for cases in by_seed)
        cells = [cell for i, cell in enumerate(row.cells) if i not in (0, 5, 10, 11)]
        close([c.value for c in cells], means.mean(0))
        close([c.std for c in cells], np.sqrt((stds**2).mean(0)))
        close([c.seed_std for c in cells], means.std(0))
        close([row.cells[11].value, row.cells[11].seed_std], [means.mean(1).mean(), means.mean(1).std()])
        assert seed_rows[row.key].cells[11].text == f"{means.mean(1).std():.1f}"
    assert "seeds 0, 1, 2" in table.caption and "n = 6 CT + 6 MRI test cases" in table.caption
    only = builders.build("table2", load_records(tmp_path), seeds=[1], folds=[0])
    assert len(only.blocks) == 5 and "n = 3 CT + 3 MRI" in only.caption


@pytest.mark.parametrize("target", ["table2", "table4"])
def test_folds_that_test_one_case_twice_are_refused(target, tmp_path):
    """As of --split=seeded with another seed for each fold: one result would count, or their mean, and none said so."""
    cases = evaluation_cases("abdomen", np.random.default_rng(0), range(3))
    for spec in TARGETS[target].runs(folds=(0, 1)):
        write_run(tmp_path, spec, cases)
    with pytest.raises(InputError, match=r"tests ct_0, as abdomen-\w+-seed0-fold0 does with the same seed: expected"):
        builders.build(target, load_records(tmp_path))
    assert builders.build(target, load_records(tmp_path), folds=[1])


def test_a_run_named_almost_as_planned_is_ones_own(tmp_path):
    run = write_run(tmp_path, RunSpec("abdomen", "abdomen", "ours"), None)
    assert unplanned(load_records(tmp_path)) == []
    run.rename(tmp_path / "abdomen-ours-seed0")
    assert [record.name for record in unplanned(load_records(tmp_path))] == ["abdomen-ours-seed0"]


def test_blanks_absent_classes_and_captions(tmp_path):
    ours, joint = RunSpec("abdomen", "abdomen", "ours", knowledge=True), RunSpec("abdomen", "abdomen", "joint")
    cases = evaluation_cases("abdomen", np.random.default_rng(0), range(2))
    cases["ct_0"]["classes"]["liver"] = absent()
    cases["mr_0"]["classes"]["spleen"] |= {"status": "missed", "dice": 0.0}
    for n in range(2):
        cases[f"mr_{n}"]["classes"]["liver"] = absent()
    write_run(tmp_path, ours, cases)
    write_run(tmp_path, joint, cases, status="running")
    write_run(tmp_path, RunSpec("abdomen", "abdomen", "individual"), None)
    table = builders.build("table2", load_records(tmp_path))
    rows = {row.key: row.cells for row in table.blocks[0].rows}
    assert all(cell.text == "" for name in SETTINGS if name != "ours" for cell in rows[name])
    liver = 100 * cases["ct_1"]["classes"]["liver"]["dice"]
    assert rows["ours"][1].text == f"{liver:.1f}"  # the one case that has it: no deviation
    assert rows["ours"][6].text == "–"  # no MR case has it: the mean is that of the other three
    mr = np.mean([values(cases, "mr", name, "dice").mean() for name in COLUMNS["abdomen"] if name != "liver"])
    close(rows["ours"][10].value, mr)
    close(rows["ours"][11].value, (rows["ours"][5].value + mr) / 2)
    assert "abdomen-ours 1 of 16" in table.notes[1] and table.notes[1].startswith("Missed or invented")
    assert "abdomen-ours 3 of 16" in table.notes[2] and "Absent" in table.notes[2]
    assert table.provenance == (
        "PHANTOM data: phantom abdomen; split seeded 70/10/20, seed 0; preset tiny; 300 steps; seeds 0; "
        "n = 2 CT + 2 MRI test cases; commit abc123."
    )


def test_what_was_missed_or_left_out_is_told_wherever_it_counts(tmp_path):
    """Tests over pairs and the outlier's means leave out an organ that no map has, and say so."""
    specs = {spec.setting: spec for spec in TARGETS["table6"].specs}
    cases = evaluation_cases("abdomen", np.random.default_rng(0), range(2))
    outlier = {"ct_0031": evaluation_cases("abdomen", np.random.default_rng(1), range(1))["ct_0"]}
    write_run(tmp_path, specs["joint"], cases, outlier=outlier)
    for of, name in ((cases["mr_1"], "spleen"), (outlier["ct_0031"], "liver")):
        of["classes"][name] = absent()
    outlier["ct_0031"]["classes"]["spleen"] |= {"status": "missed", "dice": 0.0}
    write_run(tmp_path, specs["ours"], cases, outlier=outlier)
    tests, means = (builders.build(target, load_records(tmp_path)) for target in ("table4", "table6"))
    assert {row.cells[1].text for row in tests.blocks[-1].rows} == {"15"}
    assert "Absent in prediction and reference, left out: abdomen-ours 1 of 16." in tests.notes
    assert "Absent in prediction and reference, left out: abdomen-ours 1 of 4." in means.notes
    assert "Missed or invented (Dice 0, distance = image diagonal): abdomen-ours 1 of 4." in means.notes
    assert "n = 1 CT + 0 MRI outlier cases" in means.caption


def test_incomplete_seeds_are_named(tmp_path):
    for setting, seeds in (("ours", (0, 1)), ("joint", (1,))):
        for seed in seeds:
            cases = evaluation_cases("abdomen", np.random.default_rng(seed), range(2))
            write_run(tmp_path, RunSpec("abdomen", "abdomen", setting, seed=seed), cases, source="btcv")
    table, tests = (builders.build(target, load_records(tmp_path)) for target in ("table2", "table4"))
    assert [row.title for row in table.blocks[0].rows if row.cells[1].text] == ["Joint (1 of 2 runs)", "Ours"]
    assert tests.notes[-1] == "Incomplete: abdomen-joint 1 of 2 runs."
    beside = builders.build("table2", load_records(tmp_path), compare=True).blocks[0].rows
    assert [row.title for row in beside if "Joint" in row.title and "KD" not in row.title] == [
        "Joint (1 of 2 runs)",
        "Joint, paper",
        "Joint, difference",
    ]
    assert "PHANTOM" not in table.caption and "Data: btcv" in table.caption


def test_nothing_run(tmp_path):
    for target in builders.TABLES:
        table = builders.build(target, [])
        assert table.provenance == "Nothing has been run."
        assert not any(cell.text for block in table.blocks for row in block.rows for cell in row.cells)
    with pytest.raises(InputError, match="no table 'fig4': expected one of table1, "):
        builders.build("fig4", [])


def test_runs_that_saw_other_scans_or_labels_under_the_same_ids_are_named(tmp_path):
    specs = [
        RunSpec("abdomen", data, setting) for data in ("abdomen", "anticorrelated") for setting in ("ours", "joint")
    ]
    for spec in specs:
        write_run(tmp_path, spec, evaluation_cases("abdomen", np.random.default_rng(0), range(2)))
    runs = {record.name: record for record in load_records(tmp_path)}
    ours, joint, unusual, _ = (runs[spec.name] for spec in specs)

    def told(*checksums):
        records = [replace(r, run={**r.run, **c}) for r, c in zip((ours, joint, unusual), checksums, strict=False)]
        return provenance(records).partition("NOT THE SAME SCANS OR LABELS IN ALL RUNS: ")[2].partition(";")[0]

    same = {"scans": {"ct_0": "a", "mr_0": "b"}, "labels": {"ct_0": "c"}}
    assert told(same, same) == told(same, {}) == told(same, {"scans": {"ct_1": "b"}}) == ""
    assert told(same, same | {"labels": {"ct_0": "d"}}) == "ct_0"
    assert told(same, {"scans": {"ct_0": "b", "mr_0": "a"}}) == "ct_0, mr_0"
    assert told(same, same, {"scans": {"ct_0": "b"}}) == ""  # another data set of the plan


def test_runs_whose_patches_are_drawn_differently_are_told(tmp_path):
    for setting in ("ours", "joint"):
        write_run(tmp_path, RunSpec("abdomen", "abdomen", setting), None)
    one, other = load_records(tmp_path)
    other.run["flags"].pop("labelled_patches")  # as runs of before, whose patches were centered
    told = "PATCHES AROUND LABELLED SLICES DRAWN IN 2 WAYS: centered / inside"
    for place in ("centered", "inside"):
        one.run["flags"]["labelled_patches"] = place
        assert (told in provenance([one, other])) == (place == "inside")


# --- Tables III to VI, and claims ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["table3", "table4"])
def test_p_values(target, tmp_path):
    written = write_target(tmp_path, target, seeds=(0, 1))
    table = builders.build(target, load_records(tmp_path))
    task = TARGETS[target].specs[0].task
    t_test, corrected, wilcoxon, pairs = (numbers(block) for block in table.blocks)

    def of(setting, metric):
        """Case × structure, averaged over the two seeds."""
        both = [
            np.concatenate([values(cases, m, n, metric) for m in ("ct", "mr") for n in COLUMNS[task]])
            for spec, (cases, _) in written.items()
            if spec.setting == setting
        ]
        return np.mean(both, 0)

    settings = [name for name in SETTINGS if name != "ours"]
    for key, metric in (("dice", "dice"), ("distance", "average_mm"), ("maximum", "hausdorff_mm")):
        ours = of("ours", metric)
        expected = [stats.ttest_rel(ours, of(s, metric)).pvalue for s in settings]
        close(t_test[key], expected)
        close(wilcoxon[key], [stats.wilcoxon(ours, of(s, metric)).pvalue for s in settings])
        close(corrected[key], stats_holm(expected))
        assert pairs[key] == [24] * 6  # 2 modalities × 3 cases × 4 structures


def stats_holm(p):
    """Holm by the definition: the largest of (m - j + 1) p_(j) over the ranks up to one's own."""
    order = sorted(p)
    return [min(1, max((len(p) - j) * order[j] for j in range(order.index(x) + 1))) for x in p]


def test_normalizations(tmp_path):
    written = write_target(tmp_path, "table5")
    table = builders.build("table5", load_records(tmp_path))
    assert [block.paper for block in table.blocks] == list(NORMALIZATIONS)
    for block in table.blocks:
        assert [row.key for row in block.rows] == ["individual", "joint", "joint_kd", "chilopod", "ours"]
        for spec, (cases, _) in written.items():
            if spec.normalization == block.paper:
                means = {m: [values(cases, m, n, "dice").mean() for n in COLUMNS["cardiac"]] for m in ("ct", "mr")}
                expected = [x for m in means.values() for x in (*m, np.mean(m))]
                close(numbers(block)[spec.setting], [*expected, np.mean([np.mean(m) for m in means.values()])])


def test_outlier(tmp_path):
    written = write_target(tmp_path, "table6")
    table = builders.build("table6", load_records(tmp_path))
    (block,) = table.blocks
    assert block.title == "Outlier ct_0031"
    for key, metric in (("dice", "dice"), ("distance", "average_mm"), ("maximum", "hausdorff_mm")):
        expected = [
            np.mean([values(outlier, "ct", n, metric) for n in COLUMNS["abdomen"]]) for _, outlier in written.values()
        ]
        close(numbers(block)[key], expected)


@pytest.mark.parametrize("target", ["claim_anticorrelated", "claim_low_resolution"])
def test_claims(target, tmp_path):
    written = write_target(tmp_path, target)
    table = builders.build(target, load_records(tmp_path))
    assert len(table.blocks) == 4  # Dice and distance, each on the unusual and the usual MR
    for block, data in zip(table.blocks[:2], (target.removeprefix("claim_"), "abdomen"), strict=True):
        for spec, (cases, _) in written.items():
            if spec.data == data:
                close(numbers(block)[spec.setting][0], values(cases, "ct", "liver", "dice").mean())


def test_alignment(tmp_path):
    one, other = [[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]  # 0.125 apart
    near, far = {"ct": one, "mr": one}, {"ct": one, "mr": other}
    for spec in TARGETS["claim_alignment"].specs:
        last = near if spec.alpha == 0.5 else far
        values = ((0, 0.5, near), (5, 0.25, near), (9, 0.75, last))
        write_run(tmp_path, spec, None, knowledge=[{"step": s, "kd_loss": k, "q": q} for s, k, q in values])
    table = builders.build("claim_alignment", load_records(tmp_path))
    rows = numbers(table.blocks[0])
    assert list(rows) == ["0", "0.1", "0.5", "0.9"]
    assert rows["0.5"] == [0.5, 0.5, 0.75, 0.0, 0.0, 0.0]
    assert all(rows[alpha] == [0.5, 0.5, 0.75, 0.0, 0.0625, 0.125] for alpha in ("0", "0.1", "0.9"))
    assert table.notes[1] == (
        "Difference of q at the end, beside that without KD: α = 0.1 not smaller, α = 0.5 smaller, α = 0.9 not smaller."
    )


# --- rendering -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table2(tmp_path_factory):
    runs_dir = tmp_path_factory.mktemp("runs")
    write_target(runs_dir, "table2")
    return builders.build("table2", load_records(runs_dir)), builders.build(
        "table2", load_records(runs_dir), compare=True
    )


def texts(table):
    return [[row.title, *(cell.text for cell in row.cells)] for block in table.blocks for row in block.rows]


def test_csv_has_every_cell_and_its_caption(table2):
    for table in table2:
        header, *lines = csv.reader(io.StringIO(rendering.to_csv(table)))
        assert header[2:-1] == table.headings
        assert [line[1:-1] for line in lines] == texts(table)
        assert {line[-1] for line in lines} == {table.caption} and "PHANTOM" in table.caption


def test_markdown_has_every_cell(table2):
    for table in table2:
        text = rendering.to_markdown(table)
        titles = {"", *(block.title for block in table.blocks)}
        lines = [[c.strip() for c in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("| ")]
        assert [line for line in lines if line[0].strip("-") not in titles] == texts(table)
        assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
        assert table.provenance in text


def test_latex_is_well_formed(table2):
    for table in table2:
        text = rendering.to_latex(table)
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {line.count("&") for line in rows} == {12}
        assert len(rows) == 1 + len(texts(table))
        assert text.count("{") == text.count("}")
        assert re.findall(r"\\(begin|end)\{(.*?)\}", text) == [
            ("begin", "table*"), ("begin", "tabular"), ("end", "tabular"), ("end", "table*")
        ]  # fmt: skip
        assert text.isascii()
    assert r"Metrics & Individual & Joint & Joint+KD & ``Y''-shaped" in rendering.to_latex(builders.build("table3", []))
    assert rendering.latex_text("50% “a_b” ± −1 α & {x}") == r"50\% ``a\_b'' $\pm$ $-$1 $\alpha$ \& \{x\}"


def test_compared_with_the_paper(table2):
    _, compared = table2
    dice, pooled, maximum = compared.blocks[:3]
    assert len(dice.rows) == len(pooled.rows) == 21 and len(maximum.rows) == 7
    ours, paper, difference = dice.rows[-3:]
    assert [ours.title, paper.title, difference.title] == ["Ours", "Ours, paper", "Ours, difference"]
    assert paper.cells[1].text == "92.7±1.8" and paper.cells[-1].text == "90.8"
    assert difference.cells[0].text == ""
    assert difference.cells[1].text == f"{ours.cells[1].value - 92.7:+.1f}"
    assert pooled.rows[-2].cells[-1].text == "2.34"


@pytest.mark.parametrize(
    ("p", "text"), [(0.015, "0.015"), (0.001, "0.001"), (6e-4, "6e-4"), (1.0, "1.000"), (0.0, "0")]
)
def test_p_values_are_printed_as_in_the_paper(p, text):
    assert p_text(p) == text


def test_program(tmp_path):
    write_target(tmp_path, "table2")

    def start(*more):
        return program("experiments.tables", f"--runs_dir={tmp_path}", *more)

    result = start("--table=2", "--format=csv")
    assert result.stdout == rendering.to_csv(builders.build("table2", load_records(tmp_path)))
    wrong = start("--table=7")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: --table=7: value should be one of <1|2|")
    wrong = start("--table=2", "--seeds=a")
    assert wrong.returncode == 1 and "--seeds=a: expected whole numbers" in wrong.stderr


def test_evaluations_with_a_tag(tmp_path):
    """The same numbers under another name: the same table."""
    write_target(tmp_path, "table2")
    arguments = [f"--runs_dir={tmp_path}", "--table=2", "--tag=plain"]
    wrong = program("experiments.tables", *arguments)
    assert (
        wrong.returncode == 1
        and "has evaluation_test_plain.json: expected one; run ummkd evaluate --tag=plain" in wrong.stderr
    )
    untagged = program("experiments.tables", *arguments[:2]).stdout
    for path in tmp_path.glob("*/evaluation_test.json"):
        path.rename(path.with_name("evaluation_test_plain.json"))
    assert program("experiments.tables", *arguments).stdout == untagged != ""


def test_evaluations_in_the_scans_own_voxels(tmp_path):
    """Under another name, and only where they are asked for."""
    write_target(tmp_path, "table2")
    expected = builders.build("table2", load_records(tmp_path))
    for path in tmp_path.glob("*/evaluation_test.json"):
        path.rename(path.with_name("evaluation_test_original.json"))
    assert builders.build("table2", load_folder(tmp_path, original_grid=True)) == expected
    with pytest.raises(InputError, match=r"--grid=original --tag=a: no run in .*_test_original_a\.json: expected one"):
        load_folder(tmp_path, "a", original_grid=True)


def test_the_outlier_s_evaluation_has_the_tag_too(tmp_path):
    write_target(tmp_path, "table6")
    plain = builders.build("table6", load_records(tmp_path))
    for path in tmp_path.glob("*/evaluation_outlier.json"):
        path.rename(path.with_name("evaluation_outlier_plain.json"))
    assert builders.build("table6", load_folder(tmp_path, "plain")) == plain
    (block,) = builders.build("table6", load_records(tmp_path)).blocks
    assert not any(cell.text for row in block.rows for cell in row.cells)


def test_a_class_that_is_there_in_some_seeds_says_in_how_many():
    """Where no case has the class, a seed that invents it has a Dice of 0, and the others have none."""
    assert number_cell([0.5, math.nan, 0.7], "dice", [0.1, math.nan, 0.1]).text == "60.0±10.0 (2 of 3 seeds)"
    assert number_cell([0.5, math.nan], "dice") == Cell("50.0 (1 of 2 seeds)", 50.0, None, None)
    assert number_cell([0.5, 0.7], "dice", [0.1, 0.1]).text == "60.0±10.0"
    assert number_cell([math.nan, math.nan], "dice").text == "–"


@pytest.mark.parametrize("tag", ["original", "original_plain", "../plain", "plain/", " ", "_last"])
def test_a_tag_names_a_file_of_its_own(tag):
    with pytest.raises(InputError, match=r"--tag=.*: expected letters, digits"):
        evaluation_name("test", tag=tag)


def test_difference_of_confusion_matrices_is_the_mean_over_pairs_of_modalities():
    """Of three, one has another entry of four: 1/4 in two pairs, 0 in the third."""
    q = {"a": [[1, 0], [0, 1]], "b": [[0, 0], [0, 1]], "c": [[0, 0], [0, 1]]}
    assert builders._difference({"q": q}) == pytest.approx((1 / 4 + 1 / 4 + 0) / 3)


def test_confusions_come_in_the_order_of_steps_and_the_last_of_a_step_counts(tmp_path):
    write_target(tmp_path, "table2")
    path = next(tmp_path.glob("*/run.json")).with_name("knowledge.jsonl")
    lines = [{"step": 2, "kd_loss": 1}, {"step": 1, "kd_loss": 2}, {"step": 2, "kd_loss": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (record,) = (r for r in load_records(tmp_path) if r.run_dir == path.parent)
    assert record.knowledge == lines[1:]


def test_rendering_needs_no_tensorflow():
    code = "import sys, experiments.tables, experiments.results.significance; assert 'tensorflow' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- the paper's numbers ---------------------------------------------------------------------------------------------


def test_paper_numbers_have_the_shape_of_the_tables():
    for name, printed in paper_numbers().items():
        table = builders.build(name, [])
        blocks = {block.paper: block for block in table.blocks if block.paper}
        assert set(printed["blocks"]) == set(blocks)
        assert len(printed["columns"]) == len(table.columns)
        for key, rows in printed["blocks"].items():
            assert {row.key for row in blocks[key].rows} >= set(rows)
            assert all(len(cells) == len(table.columns) for cells in rows.values())


def test_paper_means_of_means():
    """A mean is that of its classes' means, and the overall mean that of both: as the tables here compute them.

    One of 132 is a misprint: the CT mean distance of Y-shaped in Table II is 2.45, but (3.75 + 1.59 + 1.40 + 2.59) / 4
    is 2.33, from which its overall mean of 2.57 was made.
    """
    broken, checked = [], 0
    for name in ("table1", "table2", "table5"):
        for block, rows in paper_numbers()[name]["blocks"].items():
            for key, cells in rows.items():
                x = [float(text.split("±")[0]) for text in cells[-11:] if text != "-"]
                rounding = 0.0101 if block == "distance" else 0.101
                for means, mean in ((x[:4], x[4]), (x[5:9], x[9]), ((x[4], x[9]), x[10])) if x else ():
                    checked += 1
                    if abs(np.mean(means) - mean) > rounding:
                        broken.append((name, block, key, mean))
    assert checked == 132
    assert broken == [("table2", "distance", "y_shaped", 2.45), ("table2", "distance", "y_shaped", 2.57)]


def test_paper_parameters_are_those_of_the_networks():
    for name, network in (("table1", "dilated2d"), ("table2", "unet3d")):
        for rows in paper_numbers()[name]["blocks"].values():
            assert {k: c[0] for k, c in rows.items() if k != "payer"} == dict(NETWORKS[network].paper_parameters)


@pytest.mark.skipif(not Path(PAPER_TEXT).is_file(), reason="UMMKD_PAPER_TEXT names no file with the paper's text")
def test_paper_numbers_are_the_papers():
    """Each row stands in the paper's text as printed: its name, then its cells, in the right table and block."""
    text = Path(PAPER_TEXT).read_text(encoding="utf-8")
    titles = {
        "payer": "Payer et al. [38]",
        "individual": "Individual",
        "joint": "Joint",
        "joint_kd": "Joint+KD",
        "y_shaped": "“Y”-shaped [9]",
        "x_shaped": "“X”-shaped [15]",
        "chilopod": "“Chilopod”-shaped",
        "ours": "Ours",
        "dice": "Dice coefficient",
        "distance": "Hausdorff distance",
    }
    headings = {"dice": "Dice Coefficient (", "distance": "Hausdorff Distance ("}
    for name, printed in paper_numbers().items():
        roman = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI"}[name[-1]]
        heading = re.search(rf"^\s*TABLE {roman}$", text, re.MULTILINE)
        assert heading, name
        rest = text[heading.end() :]
        for block, rows in printed["blocks"].items():
            if block in headings:
                rest = rest[rest.index(headings[block]) :]
            for key, cells in rows.items():
                title = "”Chilopod”" if (name, key) == ("table5", "chilopod") else titles[key]
                line = f"{title} {' '.join(cells)}\n"
                assert line in rest, (name, block, line)
                rest = rest[rest.index(line) + len(line) - 1 :]


def test_paper_numbers_file_is_tidy():
    """No row twice, and nothing but what the tables print."""
    pattern = re.compile(r"-|\d+(\.\d+)?(±\d+\.\d+)?|\d+\.\d+M|\d+K|\de-\d")
    pairs = json.loads(
        (ROOT / "experiments" / "results" / "paper_numbers.json").read_text(encoding="utf-8"),
        object_pairs_hook=lambda p: p,
    )
    assert [name for name, _ in pairs] == [f"table{n}" for n in range(1, 7)]
    for printed in paper_numbers().values():
        for rows in printed["blocks"].values():
            assert all(pattern.fullmatch(cell) for cells in rows.values() for cell in cells)


def test_a_bar_in_a_name_divides_no_cell():
    table = markdown(["run", "T1|T2 lesion"], [["a|b", "90.0"]])
    assert table.splitlines() == [r"| run  | T1\|T2 lesion |", "| ---- | ------------: |", r"| a\|b |          90.0 |"]
