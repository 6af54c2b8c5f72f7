"""Which runs the tables and figures need, and what is read of them."""

import pytest
from recorded_runs import write_run

from experiments.plans import DATA, TARGETS, RunSpec, runs_for
from experiments.results.records import load_records, select
from ummkd_tf.common.errors import InputError
from ummkd_tf.settings import SETTINGS

COUNTS = {
    "table1": 7, "table2": 7, "table3": 7, "table4": 7, "table5": 15, "table6": 7,
    "fig4": 7, "fig5": 7, "fig6": 9, "fig7": 4, "fig8": 2, "fig9": 1,
    "claim_anticorrelated": 6, "claim_low_resolution": 6, "claim_alignment": 4,
}  # fmt: skip


def test_every_table_and_figure_of_the_issue_has_its_runs():
    assert {name: len(target.runs()) for name, target in TARGETS.items()} == COUNTS


def test_runs_are_shared():
    """7 + 7 settings, 15 with other norms, 8 and 2 more alphas, 2 × 3 on unusual data; nothing twice."""
    runs = runs_for(TARGETS)
    assert len(runs) == 7 + 7 + 15 + 8 + 2 + 6 == len({run.name for run in runs})
    assert len(runs_for(TARGETS, seeds=(0, 1), folds=(0, 1, 2))) == 6 * len(runs)
    assert runs_for(["table1", "table3", "fig4"]) == TARGETS["table1"].runs()
    assert set(TARGETS["fig8"].runs()) <= set(TARGETS["table2"].runs())
    assert len(set(TARGETS["fig6"].runs()) & set(TARGETS["table1"].runs())) == 1  # alpha 0.5


def test_names_are_unique_over_seeds_and_folds():
    names = [run.name for run in runs_for(TARGETS, seeds=(0, 1, 12), folds=(0, 1))]
    assert len(names) == len(set(names)) == 6 * 45
    assert "cardiac-ours-group-seed12-fold1" in names and "abdomen-ours-alpha0.1-seed0-fold0" in names


def test_alpha_counts_only_where_knowledge_is_distilled():
    assert RunSpec("abdomen", "abdomen", "joint", alpha=0.3) == RunSpec("abdomen", "abdomen", "joint")
    assert RunSpec("abdomen", "abdomen", "ours", alpha=0) == RunSpec("abdomen", "abdomen", "chilopod")
    assert RunSpec("abdomen", "abdomen", "joint_kd", alpha=0) == RunSpec("abdomen", "abdomen", "joint")
    assert [run.alpha for run in TARGETS["fig7"].runs()] == [0.0, 0.1, 0.5, 0.9]
    assert [run.alpha for run in TARGETS["fig6"].runs()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_seven_settings_and_flags():
    for name, task in (("table1", "cardiac"), ("table2", "abdomen")):
        runs = TARGETS[name].runs(seeds=(3,))
        assert [run.setting for run in runs] == list(SETTINGS)
        assert {run.task for run in runs} == {task}
    assert {run.normalization for run in TARGETS["table5"].runs()} == {"instance", "layer", "group"}
    assert TARGETS["table2"].runs(seeds=(3,))[-1].flags() == [
        "--task=abdomen", "--setting=ours", "--normalization=batch", "--alpha=0.5", "--seed=3", "--knowledge_on=test"
    ]  # fmt: skip
    watched = {run.setting for run in TARGETS["table2"].runs() if run.knowledge}
    assert watched == {"chilopod", "ours"}
    assert all(run.knowledge for name in ("fig7", "fig8") for run in TARGETS[name].runs())


def test_train_has_every_flag():
    """A flag renamed in experiments.train would break every plan."""
    from absl import flags

    from experiments import train  # noqa: F401, defines the flags

    for spec in runs_for(TARGETS):
        for flag in spec.flags():
            name, _, value = flag.removeprefix("--").partition("=")
            assert name in flags.FLAGS
            parser = flags.FLAGS[name].parser
            parser.parse(value)  # raises for a value that the flag does not take
    assert {spec.data for spec in runs_for(TARGETS)} == set(DATA)


def test_records(tmp_path):
    assert load_records(tmp_path / "nothing") == []
    specs = TARGETS["fig8"].runs()
    lines = [{"step": s, "kd_loss": 1.0 / (s + 1), "q": {}} for s in (0, 50)]
    run_dir = write_run(tmp_path, specs[0], {"ct_1": {}}, outlier={"ct_9": {}}, knowledge=[*lines, lines[0]])
    with open(run_dir / "knowledge.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"step": 100, "kd_l')  # cut off by a kill
    (tmp_path / "logs").mkdir()
    write_run(tmp_path, specs[1], None)
    records = load_records(tmp_path)
    assert [record.name for record in select(records, reversed(specs))] == [specs[1].name, specs[0].name]
    (ours,) = select(records, specs[:1])
    assert ours.run_dir == run_dir and ours.run["setting"]["name"] == "ours"
    assert ours.evaluation["cases"] == {"ct_1": {}} and ours.outlier["cases"] == {"ct_9": {}}
    assert ours.knowledge == lines
    (other,) = select(records, specs[1:])
    assert other.evaluation is None and other.outlier is None and other.knowledge == []
    (run_dir / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: damaged .*: restore it from a copy or train again"):
        load_records(tmp_path)
