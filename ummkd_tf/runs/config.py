"""The settings that decide the result of a training run, besides the model and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ummkd_tf.data.sampling import LABELLED_SHARE, LabelledPatches
from ummkd_tf.settings import AbsentClass
from ummkd_tf.tasks import Task

Schedule = Literal["staircase", "polynomial"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
Selection = Literal["best", "last"]
L2On = Literal["all", "kernels"]
Freeze = Literal["none", "kernels"]
KnowledgeOn = Literal["none", "validation", "test"]
Strategy = Literal["default", "mirrored", "multi_worker"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run; `run.json` holds them under "flags".

    Fields with a default came later than the first runs, and the default is what those runs did.

    Attributes:
        task: Name of the task.
        setting: Row of `SETTINGS`.
        recipe: Row of the recipes it was started with.
        preset: Row of the presets it was started with.
        size: Rows of the images the network sees.
        steps: Optimizer steps.
        learning_rate: Adam's, at the start.
        schedule: The rate falls by 5 % every `decay_every` steps ("staircase", the paper's), or over the whole run to
            zero with power 0.9 ("polynomial").
        decay_every: Steps after which the staircase falls.
        batch_size: Examples per modality.
        labelled_share: Share of 3D patches around the labelled slices.
        labelled_patches: Where these lie.
        augmentation: Row of `AUGMENTATIONS`.
        alpha: Weight of the distillation loss in Eq. 5, which takes α/2 of it.
        temperature: T of Eq. 3.
        absent: How the distillation loss treats a class that a batch lacks.
        l2_on: Variables of the L2 term.
        l2_weight: eta of Eq. 5.
        ema: Decay of the moving average of weights; 0 for none.
        selection: Checkpoint that evaluation uses.
        validate_every: Steps between validations.
        norm_batches: Batches from which running statistics are estimated anew before a validation; 0 keeps them.
        seed: Of initial weights, batches and dropout.
        precision: Number format of convolutions and activations.
        deterministic: Bit-identical results on one machine.
        local_batch_norm: With several devices, batch normalization over each one's own share of a batch.
        init_from: Folder of the exported model that the run started from, or None for new weights.
        freeze: "kernels" where normalization layers alone are trained.
    """

    task: str
    setting: str
    recipe: str
    preset: str
    size: int
    steps: int
    learning_rate: float
    schedule: Schedule = "staircase"
    decay_every: int
    batch_size: int
    labelled_share: float = LABELLED_SHARE
    labelled_patches: LabelledPatches = "centered"
    augmentation: str = "none"
    alpha: float
    temperature: float
    absent: AbsentClass
    l2_on: L2On
    l2_weight: float
    ema: float = 0.0
    selection: Selection
    validate_every: int
    norm_batches: int = 0
    seed: int
    precision: Precision = "float32"
    deterministic: bool = False
    local_batch_norm: bool = False
    init_from: str | None = None
    freeze: Freeze = "none"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The settings that `to_dict` gave.

        Raises:
            ValueError: A setting that is missing, unknown or of another type.
        """
        hints = get_type_hints(cls)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}")
        for name, value in values.items():
            if not _is(value, hints[name]):
                raise ValueError(f"{name} is {value!r}")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For `run.json`."""
        return asdict(self)

    def factor(self, task: Task) -> int:
        """In-plane reduction of the images the network sees against the task's grid.

        Raises:
            ValueError: The task's rows are no multiple of `size`.
        """
        factor, rest = divmod(task.size[0], self.size) if self.size > 0 else (0, 1)
        if rest:
            raise ValueError(f"size {self.size} of {task.size[0]} rows")
        return factor


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of settings, e.g. "alpha is 0.9, was 0.5"; None stands for what one lacks."""
    return [
        f"{name} is {new.get(name)!r}, was {old.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _is(value: Any, hint: Any) -> bool:
    """Whether a JSON value has an annotated type: a plain type, a choice of texts (`Literal`), or either of these or
    None."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    allowed = get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (float in allowed and isinstance(value, int))
