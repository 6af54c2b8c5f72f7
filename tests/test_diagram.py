"""Diagrams of networks: what is drawn is what the tables say."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from ummkd_tf.model.architectures import NETWORKS
from ummkd_tf.output.diagram import network_diagram
from ummkd_tf.output.pictures import save_figure
from ummkd_tf.settings import SETTINGS


def _draw(network, setting, modalities=("ct", "mr")):
    return network_diagram(NETWORKS[network], SETTINGS[setting], modalities, width=16, num_classes=5)


def _boxes(figure):
    """(left, bottom) → colour of each rectangle, in the order of drawing."""
    axes = figure.axes[0]
    return [(p.get_x(), p.get_height(), to_hex(p.get_facecolor())) for p in axes.patches if type(p) is Rectangle]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_stage_has_as_many_stripes_as_it_has_kernels_and_norms(network, setting):
    figure, table, chosen = _draw(network, setting), NETWORKS[network], SETTINGS[setting]
    boxes = _boxes(figure)
    lefts = sorted({left for left, _, _ in boxes})
    assert len(lefts) == len(table.stages)
    kernels, norms = (set(table.regions[r]) for r in (chosen.separate_kernels, chosen.separate_norms))
    for left, stage in zip(lefts, table.stages, strict=True):
        colors = [color for x, _, color in boxes if x == left]
        own, shared = ["#7fb3e0", "#f0ae6a"], ["#d9dde2"]
        has_norm = stage.name not in ("output",)
        expected = own if stage.name in kernels else shared
        if has_norm:
            expected = expected + (own if stage.name in norms else shared)
        assert colors == expected, stage.name
    texts = " ".join(t.get_text() for t in figure.axes[0].texts)
    assert ("KD loss" in texts) == chosen.distill


@pytest.mark.parametrize("network", NETWORKS)
def test_heights_follow_the_resolution(network):
    """The first and the last stage work at full resolution; each pool lowers the box."""
    boxes = _boxes(_draw(network, "joint"))
    heights = {}
    for left, height, _ in boxes:
        heights.setdefault(left, height)
    in_order = [height for _, height in sorted(heights.items())]
    assert in_order[0] == in_order[-1] == max(in_order)
    pools = sum(stage.pool for stage in NETWORKS[network].stages)
    assert min(in_order) == pytest.approx(in_order[0] * 0.72**pools)


def test_three_modalities_and_files_that_repeat(tmp_path):
    figure = _draw("unet3d", "individual", ("ct", "mr", "pet"))
    assert len(_boxes(figure)) == 3 * (2 * 8 - 1)  # the last stage has no norm
    for name in ("a.svg", "b.svg"):
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
