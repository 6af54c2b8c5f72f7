"""The recorded runs in docs/results are what the committed tables print, to the letter."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from programs import fresh_programs

from data_prep import splits
from data_prep.splits import by_part
from experiments.compare import Side, check_comparable, difference_of, paired
from experiments.results import builders, rendering
from experiments.results.paper import paper_numbers
from experiments.results.records import load_records
from experiments.study import StudyRun
from ummkd_tf.model.networks import get_network
from ummkd_tf.runs.folder import config_of
from ummkd_tf.settings import SETTINGS
from ummkd_tf.tasks import TASKS

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MAIN_SETTINGS = ("individual", "joint", "chilopod", "ours")


@pytest.mark.parametrize(("target", "compare"), [("table2", True), ("table4", False)])
@pytest.mark.parametrize(
    ("suffix", "folds", "trained"),
    [
        ("", [0, 1, 2], "preset small; recipe practice; precision mixed_bfloat16; 1500 steps"),
        ("_paper", [0, 1, 2], "preset small; precision float32 / mixed_bfloat16; 1500 steps"),
        ("_full_long", [0], "preset paper; recipe practice; precision mixed_bfloat16; 4500 steps"),
    ],
)
def test_committed_tables_are_those_of_the_recorded_runs(target, compare, suffix, folds, trained):
    """As `make recorded` prints them."""
    table = builders.build(target, load_records(RESULTS / f"table2{suffix}"), folds=folds, compare=compare)
    assert (RESULTS / f"{target}{suffix}.md").read_text(encoding="utf-8") == rendering.to_markdown(table)
    # The paper trained and evaluated otherwise, and the table itself must say so.
    assert trained in table.caption and "chunks overlapping by 50 %; largest connected part" in table.caption


def test_the_committed_table_of_the_paper_s_own_evaluation_is_that_of_the_recorded_runs():
    """As `make recorded` prints it."""
    table = builders.build("table2", load_records(RESULTS / "table2_full_long", "plain"), folds=[0], compare=True)
    assert (RESULTS / "table2_full_long_plain.md").read_text(encoding="utf-8") == rendering.to_markdown(table)
    assert "overlapping" not in table.caption and "largest" not in table.caption


@pytest.mark.parametrize(("runs", "settings"), [("table2", 7), ("table2_paper", 4)])
@pytest.mark.parametrize("fold", [0, 1, 2])
def test_the_runs_cases_are_the_committed_split_s(runs, settings, fold):
    split = by_part(splits.read("abdomen_39", fold)[1])
    checksum = hashlib.sha256(json.dumps(split, sort_keys=True).encode()).hexdigest()
    found = [r.run["split_sha256"] for r in load_records(RESULTS / runs) if r.name.endswith(f"-fold{fold}")]
    assert len(found) == settings and set(found) == {checksum}


def summary(runs: str, folds: Sequence[int]) -> list[str]:
    """Rows of the short tables in docs/results.md: mean Dice of CT, MRI and both, here and in the paper, by setting.

    Rows of which a run is missing are left out.
    """
    table = rendering.to_markdown(builders.build("table2", load_records(RESULTS / runs), folds=folds, compare=True))
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[1].splitlines()
    )
    means = [number for number, name in enumerate(header) if name.endswith("Mean")]
    assert len(means) == 3
    means_of = {row[0]: [row[number] for number in means] for row in rows}
    settings = [name for name in means_of if f"{name}, paper" in means_of and any(means_of[name])]
    return [f"| {' | '.join([name, *means_of[name], *means_of[f'{name}, paper']])} |" for name in settings]


@pytest.mark.parametrize(
    ("runs", "folds", "number"),
    [
        ("table2", [0], 7),
        ("table2", [0, 1, 2], 7),
        ("table2_paper", [0, 1, 2], 4),
        ("table2_full", [0], 4),
        ("table2_long", [0], 4),
        ("table2_full_long", [0], 4),
        ("nine_mr", [0], 2),
    ],
)
def test_the_means_in_the_text_are_the_table_s(runs, folds, number):
    text = (RESULTS.parent / "results.md").read_text(encoding="utf-8")
    rows = summary(runs, folds)
    assert len(rows) == number and "\n".join(rows) in text


@pytest.mark.parametrize("setting", MAIN_SETTINGS)
def test_the_overall_means_of_each_fold_are_in_the_text(setting):
    """With and without augmentation, side by side."""
    cells = []
    for fold in (0, 1, 2):
        for runs in ("table2", "table2_paper"):
            path = RESULTS / runs / f"abdomen-{setting}-seed0-fold{fold}" / "evaluation_test.json"
            cells.append(f"{100 * json.loads(path.read_text(encoding='utf-8'))['summary']['dice']['overall']:.1f}")
    row = f"| {SETTINGS[setting].title} | {' | '.join(cells)} |"
    assert row in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", MAIN_SETTINGS)
def test_the_means_of_the_paper_s_own_evaluation_are_in_the_text(setting):
    path = RESULTS / "table2_full_long" / f"abdomen-{setting}-seed0-fold0" / "evaluation_test_plain.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["overlap"] == 0 and not content["largest_component"] and content["step"] == 4500
    dice = content["summary"]["dice"]
    row = f"| {content['setting']['title']} | " + " | ".join(
        f"{100 * mean:.1f}" for mean in (dice["ct"]["mean"], dice["mr"]["mean"], dice["overall"])
    )
    assert f"\n{row} | " in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("runs", "preset"), [("table2_full_long", "paper"), ("table2_long", "small")])
def test_recipe_practice_is_what_was_measured(runs, preset):
    """What a user of the recipe gets by default, beside what the recorded runs were told, flag by flag."""
    recorded = json.loads((RESULTS / runs / "abdomen-ours-seed0-fold0" / "run.json").read_text(encoding="utf-8"))
    given = [f"--{name}={recorded['flags'][name]}" for name in ("steps", "validate_every", "precision")]
    with fresh_programs():
        from experiments import train

        train.FLAGS(["train", f"--preset={preset}", "--recipe=practice", *given])
        network = get_network("unet3d")
        assert train.resolve(network, TASKS["abdomen"], ("ct", "mr")) == config_of(recorded)
        assert train._chosen(network, "initialization") == recorded["model"]["initialization"]


def test_recorded_runs_name_no_folder_of_the_machine_they_ran_on():
    paths = [*RESULTS.glob("*/*/*.json*"), *(RESULTS.parent / "study").glob("*/*.json*")]
    assert len(paths) > 50
    for path in paths:
        assert '"/' not in path.read_text(encoding="utf-8").replace('"/physical_device:', ""), path


@pytest.mark.parametrize(
    ("runs", "setting", "steps"),
    [
        *(("table2", setting, 1500) for setting in MAIN_SETTINGS),
        ("table2_paper", "ours", 1500),
        *((runs, setting, 4500) for runs in ("table2_long", "table2_full_long") for setting in MAIN_SETTINGS),
    ],
)
def test_learning_in_the_study_is_that_of_the_recorded_runs(runs, setting, steps):
    """Validation along training, and the means of training and test cases."""
    run = RESULTS / runs / f"abdomen-{setting}-seed0-fold0"
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    validation = {line["step"]: line["validation_dice"] for line in lines if "validation_dice" in line}
    cells = [validation[steps * fifth // 5] for fifth in range(1, 6)]
    for modality in ("ct", "mr"):
        for part in ("train", "test"):
            evaluation = json.loads((run / f"evaluation_{part}.json").read_text(encoding="utf-8"))
            assert evaluation["part"] == part and evaluation["overlap"] == 0.5 and evaluation["largest_component"]
            cells.append(evaluation["summary"]["dice"][modality]["mean"])
    row = f"| {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |"
    assert row in (RESULTS.parent / "study.md").read_text(encoding="utf-8")


STUDY_RUNS = {
    "Ours, `uniform`": "results/table2/abdomen-ours-seed0-fold0",
    "Ours, `skip`": "study/ours_skip",
    "Ours, `memory`": "study/ours_memory",
    "Chilopod": "results/table2/abdomen-chilopod-seed0-fold0",
    "Joint": "results/table2/abdomen-joint-seed0-fold0",
    "float32": "study/ours_fold0of3",
    "Patches anywhere (`--labelled_share=0`)": "study/labelled_0",
    "Patches around labelled slices alone (`--labelled_share=1`)": "study/labelled_1",
    "Four examples of each modality (`--batch_size=4`)": "study/batch_4",
    "Chilopod with four of each (`--setting=chilopod --batch_size=4`)": "study/chilopod_batch_4",
    "The authors' patches (`--labelled_patches=inside`)": "study/ours_inside",
    "Chilopod with the authors' patches": "study/chilopod_inside",
    "Rate of 1e-3 instead of 2e-3 (`--learning_rate=0.001`)": "study/rate_0_001",
    "Rate of 4e-3 instead of 2e-3 (`--learning_rate=0.004`)": "study/rate_0_004",
    "Rate that falls by 5 % every 500 steps (`--schedule=staircase`)": "study/staircase",
    "No augmentation (`--augmentation=none`)": "study/augmentation_none",
    "Rotation, scaling and shift alone (`--augmentation=affine`)": "study/augmentation_affine",
    "Stronger augmentation (`--augmentation=strong`)": "study/augmentation_strong",
    "Averaged weights (`--ema=0.99`)": "study/ema_0_99",
    "4500 steps": "results/table2_long/abdomen-ours-seed0-fold0",
}


@pytest.mark.parametrize("title", STUDY_RUNS)
def test_rows_of_the_study_are_those_of_its_runs(title):
    """As `experiments.study` prints them."""
    folder = RESULTS.parent / STUDY_RUNS[title]
    _, *cells = StudyRun(folder.name, {}, folder.parent).row(("ct", "mr"))
    assert f"| {title} | {' | '.join(cells)} |" in (RESULTS.parent / "study.md").read_text(encoding="utf-8")


SEEDS = {
    "chilopod": ["results/table2/abdomen-chilopod-seed0-fold0", "study/chilopod_seed1", "study/chilopod_seed2"],
    "uniform": ["results/table2/abdomen-ours-seed0-fold0", "study/ours_uniform_seed1", "study/ours_uniform_seed2"],
    "skip": ["study/ours_skip", "study/ours_skip_seed1", "study/ours_skip_seed2"],
    "memory": ["study/ours_memory", "study/ours_memory_seed1", "study/ours_memory_seed2"],
}
"""Runs of fold 0 that differ in their seed, in the seeds' order: Chilopod, and Ours by its rule for absent classes."""
LAST = {
    name: f"study/{run}_seed2/evaluation_test_last.json"
    for name, run in (("chilopod", "chilopod"), ("skip", "ours_skip"))
}
"""Of the last checkpoint, where validation had chosen an early one."""


def of_seeds(name: str) -> list[str]:
    """Of all seeds."""
    return [f"{run}/evaluation_test.json" for run in SEEDS[name]]


def of_seeds_at_the_end(name: str) -> list[str]:
    """The same with the last checkpoint of seed 2; in the others it is the best one."""
    return [*of_seeds(name)[:2], LAST[name]]


def of_seed(run: Path, name: str, seed: int) -> tuple[list[str], list[float]]:
    """A run's best validation and its step, and its test means of CT, MR and overall: cells, and numbers."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    absent = "uniform" if name == "chilopod" else name
    assert (record["seed"], record["flags"]["absent"], record["status"]) == (seed, absent, "finished")
    evaluation = json.loads((run / "evaluation_test.json").read_text(encoding="utf-8"))
    assert evaluation["overlap"] == 0.5 and evaluation["largest_component"]
    lines = map(json.loads, (run / "history.jsonl").read_text(encoding="utf-8").splitlines())
    best = max((line for line in lines if "validation_dice" in line), key=lambda line: line["validation_dice"])
    assert best["step"] == evaluation["step"]
    numbers = [best["validation_dice"], *means_of(evaluation)]
    texts = [f"{100 * value:.1f}" for value in numbers]
    return [f"{texts[0]} ({best['step']})", *texts[1:]], numbers


def means_of(evaluation: dict) -> list[float]:
    dice = evaluation["summary"]["dice"]
    return [dice["ct"]["mean"], dice["mr"]["mean"], dice["overall"]]


@pytest.mark.parametrize("shown", [("chilopod", "uniform"), ("skip",), ("memory",)])
def test_three_seeds_in_the_study_are_those_of_the_recorded_runs(shown):
    """Of each seed and of the seeds' mean, with Chilopod's difference to the rule for absent classes."""
    rows, numbers = [], []
    for seed in range(3):
        found = [of_seed(RESULTS.parent / SEEDS[name][seed], name, seed) for name in shown]
        cells, values = (list(itertools.chain(*part)) for part in zip(*found, strict=True))
        mean, p = difference(*([of_seeds(name)[seed]] for name in ("chilopod", shown[-1])))
        rows.append(f"| {seed} | {' | '.join(cells)} | {mean.replace('-', '−')} ({p}) |")
        numbers.append(values)
    means = " | ".join(f"{100 * value:.1f}" for value in np.mean(numbers, axis=0))
    mean, p = difference(*map(of_seeds, ("chilopod", shown[-1])))
    rows.append(f"| mean | {means} | {mean} ({p}) |")
    assert "\n".join(rows) in (RESULTS.parent / "study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", LAST.values())
def test_last_checkpoints_in_the_study_are_those_of_the_recorded_runs(file):
    last = json.loads((RESULTS.parent / file).read_text(encoding="utf-8"))
    assert (last["selection"], last["step"]) == ("last", 1500)
    text = " ".join((RESULTS.parent / "study.md").read_text(encoding="utf-8").split())
    assert "has {:.1f} CT, {:.1f} MR and {:.1f} overall".format(*(100 * mean for mean in means_of(last))) in text


def test_means_of_the_larger_batch_and_the_authors_patches_in_the_texts_are_the_recorded_run_s():
    text = " ".join((RESULTS.parent / "study.md").read_text(encoding="utf-8").split())
    overalls = []
    for (file,), words in (
        (BATCH_4, "Ours then"),
        (CHILOPOD_BATCH_4, "it then"),
        (INSIDE, "Ours then"),
        (CHILOPOD_INSIDE, "and Chilopod"),
    ):
        evaluation = json.loads((RESULTS.parent / file).read_text(encoding="utf-8"))
        ct, mr, overall = (f"{100 * mean:.1f}" for mean in means_of(evaluation))
        assert f"{words} has {ct} CT, {mr} MR and {overall} overall" in text
        overalls.append(overall)
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert "with batches of 4 + 4, {} and {}, and with [patches drawn as by the".format(*overalls[:2]) in readme
    assert "#the-authors-patches), {} and {} (one run each)".format(*overalls[2:]) in readme


@pytest.mark.parametrize("runs", ["table2", "table2_paper"])
@pytest.mark.parametrize("fold", [0, 1, 2])
def test_what_distillation_does_to_the_confusion_matrices_is_what_the_runs_recorded(runs, fold):
    """The KD loss and the mean difference of q on test cases, Chilopod and Ours."""
    losses, differences = [], []
    for setting in ("chilopod", "ours"):
        path = RESULTS / runs / f"abdomen-{setting}-seed0-fold{fold}" / "knowledge.jsonl"
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        assert last["step"] == 1500
        losses.append(f"{last['kd_loss']:.3f}")
        differences.append(f"{np.mean(np.abs(np.subtract(last['q']['ct'], last['q']['mr']))):.3f}")
    assert losses[1] < losses[0]
    row = f"fold {fold} | {' | '.join(losses + differences)} |"
    first = "without augmentation, " if runs == "table2_paper" and fold == 0 else ""
    assert f"  | {first}{row}\n" in (RESULTS.parent / "study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", ["float32", "bfloat16"])
def test_validation_in_both_precisions_is_that_of_the_runs(run):
    folder = {"float32": "study/ours_fold0of3", "bfloat16": "results/table2/abdomen-ours-seed0-fold0"}[run]
    lines = (RESULTS.parent / folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(line["validation_dice"], line["step"]) for line in map(json.loads, lines) if "validation_dice" in line]
    best, step = max(found)
    last = ", ".join(f"{100 * dice:.1f}" for dice, _ in found[-3:])
    text = (RESULTS.parent / "study.md").read_text(encoding="utf-8")
    assert f"\n| {run} | {100 * best:.1f} (step {step}) | {last} |" in text


@pytest.mark.parametrize(
    ("run", "way"),
    [(f"ours_{name}", way) for name in ("practice", "none") for way in ("", "_overlap_component")]
    + [("chilopod_practice", ""), ("chilopod_practice", "_overlap_component"), ("ours_fold0of3", "_overlap_component")]
    + [("ours_2d", ""), ("joint_2d", ""), ("individual_2d", "")],
)
def test_rows_of_other_runs_are_those_of_the_study_s(run, way):
    path = RESULTS.parent / "study" / run / f"evaluation_test{way}.json"
    dice = json.loads(path.read_text(encoding="utf-8"))["summary"]["dice"]
    organs = [dice[m][name]["mean"] for m in ("ct", "mr") for name in TASKS["abdomen"].table_classes]
    row = f"| {' | '.join(f'{100 * value:.1f}' for value in (*organs, dice['overall']))} |"
    assert row in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


def of_table(setting: str, *folds: int, runs: str = "table2") -> list[str]:
    return [f"results/{runs}/abdomen-{setting}-seed0-fold{fold}/evaluation_test.json" for fold in folds]


def full(setting: str, length: str = "_long") -> list[str]:
    """At full size: 4500 steps, or 1500 without "_long"."""
    return of_table(setting, 0, runs=f"table2_full{length}")


def longer(setting: str) -> list[str]:
    """At half size, 4500 steps."""
    return of_table(setting, 0, runs="table2_long")


def without_augmentation(setting: str) -> list[str]:
    """At half size, 1500 steps, all folds."""
    return of_table(setting, 0, 1, 2, runs="table2_paper")


STUDY = "study/ours_{}/evaluation_test{}.json"
BATCH_4 = ["study/batch_4/evaluation_test.json"]
CHILOPOD_BATCH_4 = ["study/chilopod_batch_4/evaluation_test.json"]
INSIDE = ["study/ours_inside/evaluation_test.json"]
CHILOPOD_INSIDE = ["study/chilopod_inside/evaluation_test.json"]


def side_of(files: Sequence[str]) -> Side:
    """Evaluation files below docs/."""
    return Side("", [json.loads((RESULTS.parent / file).read_text(encoding="utf-8")) for file in files])


def difference(higher: Sequence[str], lower: Sequence[str], without: str = "") -> tuple[str, str]:
    """Of the overall means ± the standard deviation of the cases' differences, and Wilcoxon's p.

    Args:
        higher, lower: Evaluation files below docs/.
        without: A case to leave out.
    """
    sides = side_of(higher), side_of(lower)
    left_out = [without] if without else []
    check_comparable(*sides, left_out)
    found = difference_of(paired(*sides, "dice", left_out)["mean"], sides[0].modality)
    p_text = "< 0.0001" if found.p < 1e-4 else f"{found.p:.2f}" if found.p >= 0.1 else f"{found.p:.1g}"
    return f"{round(100 * found.mean, 1) + 0.0:.1f} ± {100 * found.std:.1f}", p_text


@pytest.mark.parametrize(
    ("higher", "lower"),
    [
        *(("chilopod", other) for other in ("individual", "joint", "x_shaped", "y_shaped")),
        *(("ours", other) for other in ("individual", "joint", "chilopod")),
        ("joint_kd", "joint"),
    ],
)
def test_differences_between_settings_are_those_of_the_recorded_cases(higher, lower):
    """The table of the paper's claims; a cell is empty where one of the two was not run."""
    one, other = (paper_numbers()["table2"]["blocks"]["dice"][setting][-1] for setting in (higher, lower))
    cells = [f"{float(one) - float(other):.1f}"]
    for runs, folds in (
        ("table2_full_long", [0]),
        ("table2_long", [0]),
        ("table2", [0, 1, 2]),
        ("table2_paper", [0, 1, 2]),
    ):
        ones, others = (of_table(setting, *folds, runs=runs) for setting in (higher, lower))
        if all((RESULTS.parent / file).is_file() for file in (*ones, *others)):
            mean, p = difference(ones, others)
            cells.append(f"{mean} ({p})".replace("-", "−"))
        else:
            cells.append("")
    row = f"| {SETTINGS[higher].title} − {SETTINGS[lower].title} | {' | '.join(cells)} |"
    assert row in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("higher", "lower", "found", "p"),
    [
        ("chilopod", "individual", "1.6 ± 3.6", "0.02"),
        ("chilopod", "x_shaped", "2.7 ± 3.2", "< 0.0001"),
        ("chilopod", "y_shaped", "2.6 ± 3.4", "< 0.0001"),
        ("individual", "ours", "0.5 ± 3.6", "0.11"),
    ],
)
def test_differences_without_one_scan_are_those_of_the_recorded_cases(higher, lower, found, p):
    assert difference(of_table(higher, 0, 1, 2), of_table(lower, 0, 1, 2), without="mr_36") == (found, p)
    assert found in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


def test_organs_that_distillation_costs_most_are_those_of_the_recorded_cases():
    ours, chilopod = (side_of(of_table(setting, 0, 1, 2)) for setting in ("ours", "chilopod"))
    by_class = paired(chilopod, ours, "dice")
    found = {
        (name, m): difference_of(
            {c: pair for c, pair in by_class[name].items() if ours.modality[c] == m}, ours.modality
        )
        for name in TASKS["abdomen"].table_classes
        for m in ("ct", "mr")
    }
    by_cost = sorted(found, key=lambda organ: -found[organ].mean)
    assert by_cost[:2] == [("left_kidney", "ct"), ("spleen", "mr")] and by_cost[-1] == ("right_kidney", "ct")
    kidney, spleen = (found[organ] for organ in by_cost[:2])
    livers, last = [found["liver", m] for m in ("ct", "mr")], found[by_cost[-1]]
    sentence = (
        f"in the left kidney on CT ({100 * kidney.mean:.1f} ± {100 * kidney.std:.1f} points, p = {kidney.p:.1g}) and "
        f"the spleen on MR ({100 * spleen.mean:.1f} ± {100 * spleen.std:.1f}, p = {spleen.p:.1g}), and only "
        f"{100 * livers[0].mean:.1f} and {100 * livers[1].mean:.1f} in the liver, which is rarely missing from a "
        f"patch; but in the right kidney on CT, which is missing most often, it is {-100 * last.mean:.1f} above"
    )
    assert sentence in " ".join((RESULTS.parent / "results.md").read_text(encoding="utf-8").split())


def test_what_one_checkpoint_for_both_cost_individual_in_validation():
    """The best validation of each of its networks, less that at the chosen step."""
    lost = {"ct": [], "mr": []}
    for path in sorted(RESULTS.glob("*/abdomen-individual-*/history.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores = [line for line in lines if "validation_dice" in line]
        chosen = max(scores, key=lambda line: line["validation_dice"])
        for modality, points in lost.items():
            name = f"validation_{modality}_dice"
            points.append(100 * (max(line[name] for line in scores) - chosen[name]))
    mr = sorted(points for points in lost["mr"] if points > 0)
    assert (len(lost["mr"]), len(mr)) == (10, 8)
    assert [f"{points:.1f}" for points in (mr[0], *mr[-2:], max(lost["ct"]))] == ["0.5", "2.7", "5.7", "0.3"]


def test_one_spleen_makes_half_of_the_difference_between_chilopod_and_joint():
    ones, others = without_augmentation("chilopod"), without_augmentation("joint")
    assert difference(ones, others, without="mr_10") == ("0.9 ± 3.6", "0.05")
    assert "without this case it is 0.9 ± 3.6 (p = 0.05)" in (RESULTS.parent / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("higher", "lower", "found", "p"),
    [
        (of_table("chilopod", 0), of_table("ours", 0), "1.7 ± 2.6", "0.04"),
        (of_table("joint", 0), of_table("joint_kd", 0), "2.6 ± 2.0", "0.001"),
        *(
            (of_table(setting, 0, 1, 2), without_augmentation(setting), found, p)
            for setting, found, p in (
                ("individual", "5.8 ± 8.7", "< 0.0001"),
                ("joint", "4.2 ± 6.6", "< 0.0001"),
                ("chilopod", "2.3 ± 5.6", "0.009"),
                ("ours", "1.9 ± 5.0", "0.03"),
            )
        ),
        (full("ours"), full("ours", ""), "6.5 ± 4.5", "0.0002"),
        (full("chilopod"), full("chilopod", ""), "4.4 ± 3.2", "0.0002"),
        (full("ours"), full("chilopod"), "0.5 ± 2.0", "0.79"),
        (full("ours"), full("joint"), "1.2 ± 2.1", "0.08"),
        (full("ours"), full("individual"), "1.8 ± 2.7", "0.22"),
        (longer("chilopod"), longer("ours"), "0.7 ± 2.1", "0.24"),
        (longer("joint"), longer("ours"), "0.5 ± 1.8", "0.04"),
        (longer("joint"), longer("individual"), "2.4 ± 2.5", "0.006"),
        (longer("ours"), of_table("ours", 0), "3.6 ± 3.1", "0.0002"),
        (longer("chilopod"), of_table("chilopod", 0), "2.6 ± 2.8", "0.0005"),
        (longer("joint"), of_table("joint", 0), "2.1 ± 2.7", "0.01"),
        (longer("individual"), of_table("individual", 0), "2.0 ± 2.3", "0.006"),
        (of_table("chilopod", 0), [STUDY.format("skip", "")], "1.2 ± 2.5", "0.13"),
        ([STUDY.format("skip", "")], of_table("ours", 0), "0.5 ± 2.3", "0.64"),
        (of_table("ours", 0), [STUDY.format("memory", "")], "0.1 ± 4.3", "0.74"),
        ([STUDY.format("fold0of3", "_overlap_component")], of_table("ours", 0), "0.7 ± 1.9", "0.15"),
        (
            [STUDY.format("fold0of3", "_overlap_component")],
            ["study/rate_0_004/evaluation_test.json"],
            "0.3 ± 1.5",
            "0.41",
        ),
        (
            [STUDY.format("fold0of3", "_overlap_component")],
            ["study/staircase/evaluation_test.json"],
            "1.0 ± 2.5",
            "0.38",
        ),
        (BATCH_4, [STUDY.format("fold0of3", "_overlap_component")], "2.0 ± 2.3", "0.003"),
        (BATCH_4, of_seeds("uniform"), "1.8 ± 2.0", "0.002"),
        (CHILOPOD_BATCH_4, of_seeds("chilopod"), "2.4 ± 1.6", "0.0002"),
        (CHILOPOD_BATCH_4, BATCH_4, "0.6 ± 1.7", "0.11"),
        (["study/chilopod_batch_4/evaluation_test_last.json"], BATCH_4, "0.7 ± 1.8", "0.41"),
        (longer("ours"), BATCH_4, "0.9 ± 2.6", "0.04"),
        (INSIDE, of_seeds("uniform"), "0.4 ± 1.3", "0.22"),
        (CHILOPOD_INSIDE, of_seeds("chilopod"), "1.4 ± 1.6", "0.02"),
        (CHILOPOD_INSIDE, INSIDE, "1.1 ± 2.2", "0.27"),
        (of_seeds("uniform"), ["study/augmentation_none/evaluation_test.json"], "0.5 ± 2.0", "0.74"),
        (of_seeds("uniform"), ["study/rate_0_001/evaluation_test.json"], "0.2 ± 4.0", "0.22"),
        (of_seeds("uniform"), ["study/augmentation_affine/evaluation_test.json"], "0.2 ± 1.8", "0.95"),
        (["study/augmentation_strong/evaluation_test.json"], of_seeds("uniform"), "0.3 ± 1.3", "0.68"),
        (of_table("chilopod", 0), ["study/chilopod_seed2/evaluation_test.json"], "2.1 ± 2.4", "0.02"),
        (["study/ours_uniform_seed2/evaluation_test.json"], of_table("ours", 0), "1.3 ± 2.9", "0.02"),
        ([LAST["chilopod"]], ["study/chilopod_seed2/evaluation_test.json"], "2.4 ± 3.0", "0.003"),
        ([LAST["chilopod"]], ["study/ours_uniform_seed2/evaluation_test.json"], "0.8 ± 2.1", "0.45"),
        (of_seeds_at_the_end("chilopod"), of_seeds("uniform"), "0.9 ± 1.3", "0.02"),
        (of_seeds("chilopod"), of_seeds("skip"), "0.2 ± 1.0", "0.59"),
        (of_seeds("uniform"), of_seeds("skip"), "0.1 ± 0.8", "0.50"),
        (of_seeds("chilopod"), of_seeds("memory"), "0.2 ± 1.1", "0.95"),
        (of_seeds("uniform"), of_seeds("memory"), "0.1 ± 1.4", "1.00"),
        (of_seeds_at_the_end("chilopod"), of_seeds("memory"), "1.0 ± 1.3", "0.01"),
        ([LAST["skip"]], ["study/ours_skip_seed2/evaluation_test.json"], "1.5 ± 2.0", "0.0005"),
        (of_seeds_at_the_end("chilopod"), of_seeds_at_the_end("skip"), "0.5 ± 1.3", "0.13"),
    ],
)
def test_differences_in_the_text_are_those_of_the_recorded_cases(higher, lower, found, p):
    assert difference(higher, lower) == (found, p)
    text = (RESULTS.parent / "study.md").read_text(encoding="utf-8")
    text += (RESULTS.parent / "results.md").read_text(encoding="utf-8")
    assert found in text and ("p " if p.startswith("<") else "p = ") + p in text
