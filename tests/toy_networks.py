"""Networks of one level instead of the paper's: everything that training depends on, quick to trace."""

from __future__ import annotations

from ummkd_tf.model import architectures as networks

TOY2D, TOY3D = "tests/toy_networks.py:toy2d", "tests/toy_networks.py:toy3d"
"""What `--network` takes, from the root of the repository."""


def toy(rank: int, dropout: float) -> networks.Network:
    """Three convolutions, of which the middle one belongs to another region than the others."""
    kernel = (3,) * rank
    order: networks.Order = "norm-act-conv" if rank == 2 else "conv-norm-act"
    width = networks.Filters(per_width=1)
    stages = (
        networks.StageRow("encoder_1", (networks.Conv(width, kernel, "conv-norm-act"),)),
        networks.StageRow("encoder_2", (networks.Conv(width, kernel, order, dropout=True),)),
        networks.StageRow("output", (networks.Conv(networks.Filters(per_class=1), kernel, "conv"),)),
    )
    names = [stage.name for stage in stages]
    regions = networks.make_regions(names, green="encoder_2", blue=("encoder_2", "encoder_2"))
    return networks.Network(f"toy{rank}d", 3 if rank == 2 else 1, rank, stages, regions, multiple=1, dropout=dropout)


def toy2d() -> networks.Network:
    """In two dimensions."""
    return toy(2, 0.0)


def toy3d() -> networks.Network:
    """In three dimensions."""
    return toy(3, 0.0)
