"""Which runs every table, figure and claim of the paper needs. Data and pure functions only.

A run that several targets need is the same `RunSpec` in each, so it is trained once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from experiments.recipes import ALPHA
from ummkd_tf.settings import SETTINGS

NORMALIZATIONS = ("instance", "layer", "group")  # blocks of Table V
NORM_SETTINGS = ("individual", "joint", "joint_kd", "chilopod", "ours")  # rows of Table V
BOX_ALPHAS = tuple(round(0.1 * i, 1) for i in range(1, 10))  # Fig. 6
CURVE_ALPHAS = (0.0, 0.1, 0.5, 0.9)  # Fig. 7 shows "different values"; which ones beside 0 is our choice
CLAIM_SETTINGS = ("individual", "chilopod", "ours")

DATA = ("cardiac", "abdomen", "anticorrelated", "low_resolution")
"""Prepared data sets a plan can name: the two tasks, and the abdomen with the two unusual MRs of Sec. V."""


@dataclass(frozen=True, order=True)
class RunSpec:
    """One training run, whatever its preset, length and place.

    Attributes:
        task: Row of `tasks.TASKS`.
        data: One of `DATA`.
        setting: Row of `settings.SETTINGS`.
        normalization: Kind of normalization layer.
        alpha: Weight of the distillation loss; always 0 in the settings without it. At 0, `ours` is stored as
            `chilopod` and `joint_kd` as `joint`: these are the same training, and equal runs must be equal specs.
        seed: Seed of weights, batches and dropout.
        fold: Fold of the data's split.
        knowledge: Whether the KD loss and the matrices q are recorded on test cases along training (Fig. 7, Fig. 8).
    """

    task: str
    data: str
    setting: str
    normalization: str = "batch"
    alpha: float = ALPHA
    seed: int = 0
    fold: int = 0
    knowledge: bool = False

    def __post_init__(self) -> None:
        if self.alpha == 0:
            plain = {"ours": "chilopod", "joint_kd": "joint"}.get(self.setting, self.setting)
            object.__setattr__(self, "setting", plain)
        if not SETTINGS[self.setting].distill:
            object.__setattr__(self, "alpha", 0.0)

    @property
    def stem(self) -> str:
        """The name without seed and fold."""
        parts = [self.data, self.setting]
        parts += [self.normalization] if self.normalization != "batch" else []
        parts += [f"alpha{self.alpha:g}"] if self.alpha not in (0, ALPHA) else []
        return "-".join(parts)

    @property
    def name(self) -> str:
        """Folder of the run, e.g. "cardiac-ours-group-alpha0.1-seed0-fold0"."""
        return f"{self.stem}-seed{self.seed}-fold{self.fold}"

    def flags(self) -> list[str]:
        """Flags of `experiments.train` that this run decides; data, folder, preset and length come on top."""
        values = {
            "task": self.task,
            "setting": self.setting,
            "normalization": self.normalization,
            "alpha": f"{self.alpha:g}",
            "seed": self.seed,
            "knowledge_on": "test" if self.knowledge else "none",
        }
        return [f"--{name}={value}" for name, value in values.items()]


def _spec(data: str, setting: str, **more: object) -> RunSpec:
    task = "cardiac" if data == "cardiac" else "abdomen"
    spec = RunSpec(task, data, setting, **more)  # type: ignore[arg-type]
    # Only the run itself decides whether knowledge is recorded, so that all targets share it: the curves of Fig. 7 and
    # Fig. 8 are those of Network-2's Chilopod and Ours.
    return replace(spec, knowledge=data == "abdomen" and spec.setting in ("chilopod", "ours"))


def _settings(data: str, settings: Iterable[str] = tuple(SETTINGS)) -> tuple[RunSpec, ...]:
    return tuple(_spec(data, setting) for setting in settings)


def _alphas(data: str, alphas: Iterable[float]) -> tuple[RunSpec, ...]:
    return tuple(_spec(data, "ours", alpha=alpha) for alpha in alphas)


@dataclass(frozen=True)
class Target:
    """A table, figure or claim.

    Attributes:
        name: Flag value and Makefile target.
        title: What it shows.
        specs: Its runs, for seed 0 and fold 0.
        outlier: Whether its runs are evaluated on the outlier case too.
    """

    name: str
    title: str
    specs: tuple[RunSpec, ...]
    outlier: bool = False

    @property
    def stems(self) -> set[str]:
        """Names of its runs, without seed and fold."""
        return {spec.stem for spec in self.specs}

    @property
    def is_figure(self) -> bool:
        """Whether it is drawn rather than tabulated."""
        return self.name.startswith("fig")

    def runs(self, seeds: Sequence[int] = (0,), folds: Sequence[int] = (0,)) -> list[RunSpec]:
        """Its runs for every seed and fold."""
        return [replace(spec, seed=seed, fold=fold) for seed in seeds for fold in folds for spec in self.specs]


_CARDIAC, _ABDOMEN = _settings("cardiac"), _settings("abdomen")
_NORMS = tuple(_spec("cardiac", s, normalization=n) for n in NORMALIZATIONS for s in NORM_SETTINGS)

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target("table1", "Multi-modal learning results of cardiac segmentation with the 2D network", _CARDIAC),
            Target("table2", "Multi-modal learning results of abdominal segmentation with the 3D network", _ABDOMEN),
            Target("table3", "p-values of Ours against each setting, 2D cardiac segmentation", _CARDIAC),
            Target("table4", "p-values of Ours against each setting, 3D abdominal segmentation", _ABDOMEN),
            Target("table5", "Cardiac segmentation with different normalization layers (Dice, %)", _NORMS),
            Target("table6", "Mean results of the four organs on the outlier CT", _ABDOMEN, outlier=True),
            Target("fig4", "Cardiac segmentations of the seven settings", _CARDIAC),
            Target("fig5", "Abdominal segmentations of the seven settings", _ABDOMEN),
            Target("fig6", "Dice over α, cardiac", _alphas("cardiac", BOX_ALPHAS)),
            Target("fig7", "KD loss on test data along training", _alphas("abdomen", CURVE_ALPHAS)),
            Target("fig8", "Matrices q of CT and MR along training", _alphas("abdomen", (ALPHA, 0.0))),
            Target("fig9", "Slices of normal cases and of the outlier", _settings("abdomen", ("ours",)), outlier=True),
            Target(
                "claim_anticorrelated",
                "Sec. V: an MR whose intensities are the CT's turned upside down",
                _settings("anticorrelated", CLAIM_SETTINGS) + _settings("abdomen", CLAIM_SETTINGS),
            ),
            Target(
                "claim_low_resolution",
                "Sec. V: an MR of much lower resolution",
                _settings("low_resolution", CLAIM_SETTINGS) + _settings("abdomen", CLAIM_SETTINGS),
            ),
            Target("claim_alignment", "Fig. 7 and Fig. 8 as numbers", _alphas("abdomen", CURVE_ALPHAS)),
        )
    }
)


def runs_for(targets: Iterable[str], seeds: Sequence[int] = (0,), folds: Sequence[int] = (0,)) -> list[RunSpec]:
    """All runs of some targets, each once, in the order they are first needed."""
    return list(dict.fromkeys(spec for name in targets for spec in TARGETS[name].runs(seeds, folds)))
