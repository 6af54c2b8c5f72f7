"""The benchmark's own arithmetic; never a number of seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from programs import program

from experiments.benchmark import evaluation, gpu, inputs, startup, steps
from experiments.benchmark.flops import convolutions, forward_flops, training_flops
from experiments.benchmark.results import OURS, Aim, Measurement, Part, as_json, page, ratio_aim, table
from experiments.benchmark.scaling import draw, slope, ticks
from experiments.benchmark.steps import Size, _aims
from experiments.benchmark.timing import Timing, interleaved, timed
from ummkd_tf.model.architectures import NETWORKS, Block, Conv, Filters, Network, StageRow
from ummkd_tf.runs.environment import has_gpu
from ummkd_tf.settings import Region


def row(case, contender, *seconds, **values):
    return Measurement(case, contender, Timing(seconds), {k.replace("_", " "): v for k, v in values.items()})


# --- operations ------------------------------------------------------------------------------------------------------


def hand_network():
    """8×8×1 → conv 3×3 to 2 → pool → block of 4 → up 2×2 to 2, joined with the first 2 → 1×1 to 3 classes."""
    unit = Conv(Filters(per_width=4), (3, 3), "norm-act-conv")
    regions: dict[Region, tuple[str, ...]] = {}
    stages = (
        StageRow("first", (Conv(Filters(per_width=2), (3, 3), "conv"),)),
        StageRow("low", (Block(unit),), pool=True),
        StageRow("up", (Conv(Filters(per_width=2), (2, 2), "conv-norm-act", up=True),), skip="first"),
        StageRow("output", (Conv(Filters(per_class=1), (1, 1), "conv"),)),
    )
    return Network("hand", 1, 2, stages, regions, multiple=2, dropout=0.0)


def test_operations_by_hand():
    assert convolutions(hand_network(), width=1, num_classes=3, space=(8, 8)) == [
        ("first", 2 * 64 * 9 * 1 * 2),
        ("low", 2 * 16 * 9 * 2 * 4),
        ("low", 2 * 16 * 9 * 4 * 4),
        ("up", 2 * 16 * 4 * 4 * 2),
        ("output", 2 * 64 * 1 * 4 * 3),
    ]
    forward = 2304 + 2304 + 4608 + 1024 + 1536
    assert forward_flops(hand_network(), 1, 3, (8, 8)) == forward
    # The image needs no gradient.
    assert training_flops(hand_network(), 1, 3, (8, 8), examples=2) == 2 * (3 * forward - 2304)


def test_operations_of_the_dilated_network():
    w, p = 16, 256 * 256
    pairs = [(3, w, 1), (w, w, 1), (w, w, 1), (w, 2 * w, 4), (2 * w, 2 * w, 4)]  # channels in, out, pixels a position
    pairs += [(2 * w, 4 * w, 16), *[(4 * w, 4 * w, 16)] * 3, (4 * w, 8 * w, 64), *[(8 * w, 8 * w, 64)] * 3]
    pairs += [(8 * w, 16 * w, 64), *[(16 * w, 16 * w, 64)] * 7, (16 * w, 32 * w, 64), *[(32 * w, 32 * w, 64)] * 9]
    macs = sum(9 * i * o * p // share for i, o, share in pairs)
    macs += 9 * 32 * w * 64 * 8 * 5 * p // 64 + 25 * 40 * 5 * p
    assert forward_flops(NETWORKS["dilated2d"], 16, 5, (256, 256)) == 2 * macs


def test_operations_of_the_3d_network():
    w, p = 16, 256 * 256 * 8
    macs = 27 * (1 * w + w * 2 * w) * p  # encoder_1
    macs += 27 * (2 * w * 2 * w + 2 * w * 4 * w) * p // 8
    macs += 9 * (4 * w * 4 * w + 4 * w * 8 * w) * p // 64
    macs += 9 * (8 * w * 8 * w + 8 * w * 16 * w) * p // 512
    macs += 4 * 16 * w * 8 * w * p // 512 + 9 * (16 * w * 8 * w + 8 * w * 8 * w) * p // 64
    macs += 9 * 8 * w * 8 * w * p // 64 + 27 * (12 * w * 4 * w + 4 * w * 4 * w) * p // 8
    macs += 8 * 4 * w * 2 * w * p // 8 + 27 * (4 * w * 2 * w + 2 * w * 2 * w) * p
    macs += 2 * w * 5 * p
    assert forward_flops(NETWORKS["unet3d"], 16, 5, (256, 256, 8)) == 2 * macs


# --- taking turns, ratios, the page ----------------------------------------------------------------------------------


def test_contenders_take_turns_and_the_order_turns_round():
    order = []

    def contender(name, seconds):
        def call():
            order.append(name)
            return next(seconds)

        return call

    timings = interleaved({"a": contender("a", iter([1.0, 3.0, 9.0])), "b": contender("b", iter([2.0, 2.0, 5.0]))}, 3)
    assert "".join(order) == "abbaab"
    assert timings["a"].seconds == (1.0, 3.0, 9.0)
    assert timings["a"].median == 3.0 and timings["a"].deviation == 2.0 and timings["b"].median == 2.0


def test_timed_runs_the_function():
    called = []
    assert timed(lambda: called.append(1))() >= 0 and called == [1]


def test_table_from_known_numbers():
    text = table([row("x", OURS, 2.0, 4.0, 3.0, GFLOP=10.0), row("x", "rival", 6.0), row("y", "rival", 1.0)])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["case", "contender", "median s", "min", "max", "±", "rounds", "by ours", "GFLOP"]
    assert rows[2] == ["x", OURS, "3", "2", "4", "1", "3", "1.00", "10"]
    assert rows[3] == ["x", "rival", "6", "6", "6", "0", "1", "2.00", ""]
    assert rows[4][-2] == "–"  # nobody of ours to compare with


def test_aims():
    assert ratio_aim("t", {"x": (3.0, 2.0), "y": (2.0, 2.0)}, 1.2) == Aim("t", "x: 1.50; y: 1.00", False)
    assert ratio_aim("t", {"x": (3.0, 2.0)}, 1.2).met is True
    assert ratio_aim("t", {}, 1.2) == Aim("t", "not measured", None)


def test_aims_of_the_step():
    two, three = Size("dilated2d", 1, 64, 4).title, Size("unet3d", 1, 64, 4).title
    share, memory = "% of peak", "peak GiB"
    rows = [
        Measurement(two, OURS, Timing((1.0,)), {share: 80.0, memory: 2.0}),
        Measurement(two, "pytorch", Timing((1.3,)), {share: 60.0, memory: 1.5}),
        Measurement(three, OURS, Timing((1.0,)), {share: 76.0, memory: 1.0}),
        Measurement(three, "plain", Timing((1.1,)), {share: 70.0, memory: 2.0}),
    ]
    assert [aim.met for aim in _aims(rows, {row.case for row in rows})] == [True, True, False, False, True]


def test_page_says_at_once_what_is_met_and_json_holds_the_medians():
    part = Part("p", "A part", [row("x", OURS, 1.0, 2.0)], [Aim("fast", "1 s", True), Aim("x", "–", None)], ["n"])
    text = page([part], {"commit": "abc", "machine": {"cores": 2}})
    assert text.index("✔ met") < text.index("## A part") and "– not measured" in text
    assert "- commit: abc" in text and "- machine: cores 2" in text and "\n- n\n" in text
    timing = json.loads(json.dumps(as_json(part)))["rows"][0]["timing"]
    assert timing == {"seconds": [1.0, 2.0], "median": 1.5, "min": 1.0, "max": 2.0, "deviation": 0.5, "rounds": 2}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 200, [1, 10, 100]),
        (0.15, 1.9, [0.2, 0.5, 1]),
        (28, 54, [30, 40, 50]),
        (0.004, 0.14, [0.005, 0.01, 0.02, 0.05, 0.1]),
    ],
)
def test_an_axis_has_round_numbers_whatever_its_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_slope_of_a_known_curve():
    curve = {work: Timing((3.0 * work**1.5,)) for work in (1, 2, 4, 8)}
    assert slope(curve) == pytest.approx(1.5)
    assert np.isnan(slope({1: Timing((1.0,))}))
    (axes,) = draw("t", "work", {"line": curve}).axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_legend().get_texts()[0].get_text() == "line, slope 1.50"


# --- parts -----------------------------------------------------------------------------------------------------------


def test_input_part_measures_every_way():
    part = inputs.measure(depth=9, cases=1, batches=1, rounds=1, steps=None)
    assert len(part.rows) == 10 and all(row.timing for row in part.rows)
    assert [aim.met is None for aim in part.aims] == [False, True, True, True]
    assert sum(row.contender == inputs.AUGMENTED for row in part.rows) == 2


def test_evaluation_agrees_with_medpy():
    pytest.importorskip("medpy")
    aim = evaluation.agreement(*evaluation.phantom((40, 36, 24)), (1.0, 1.5, 3.0))
    assert aim.met, aim.measured


def test_every_program_is_found():
    assert {"experiments.train", "experiments.tables", "data_prep.prepare"} <= set(startup.programs())


def test_program_writes_json_and_markdown(tmp_path):
    done = program("experiments.benchmark", "--quick", "--parts=evaluation", "--rounds=2", f"--out_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert {"date", "commit", "machine", "versions"} <= set(result)
    assert result["parts"][0]["rows"][0]["contender"] == OURS
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8") in done.stdout


def test_without_a_gpu_its_part_says_so():
    if has_gpu():
        pytest.skip("there is a GPU")
    part = gpu.measure(steps.QUICK, 1)
    assert not part.rows and part.notes == ["No GPU is visible: nothing was measured."]


def test_unknown_part():
    done = program("experiments.benchmark", "--parts=step,speed")
    assert done.returncode == 1 and "unknown speed: expected some of step, inference" in done.stderr
