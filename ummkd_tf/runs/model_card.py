"""The text that goes with an exported model: what it is for, what it is not for, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ummkd_tf.settings import SETTINGS, Region

_CARD = """\
# {title}

**Not a medical device.** For research on segmentation only; not for diagnosis, treatment or any other decision about a
patient. Nobody has certified it.

## Intended use

Segments {classes} in {modalities} scans, after it has brought them onto the grid it was trained on
({axes}, {spacing} mm, {rows} × {columns}). Its convolution kernels are {kernels}, its normalization layers
{norms}; after Dou et al., "Unpaired Multi-modal Segmentation via Knowledge Distillation", IEEE TMI 2020.

    import ummkd_tf
    model = ummkd_tf.load_model("model")
    result = model.predict_scan("scan.nii.gz", modality="{first}")

## Limits

- It knows scans like those it was trained on. Other scanners, protocols, body regions, ages and diseases can make it
  fail without a sign; look at every result.
- It gives every scan some answer, also one of another modality or body region.
- Probabilities are not calibrated.
{phantom}
## Where it comes from

{origin}

## Results

{results}
"""

_OWNERS: Mapping[Region, str] = MappingProxyType(
    {
        "nowhere": "shared by all modalities",
        "before_green_line": "each modality's own in the first stages",
        "outside_blue_lines": "each modality's own in the first and last stages",
        "everywhere": "each modality's own",
    }
)
_PHANTOM = "- **It was trained on generated phantoms, not on patients**: it is of no use on real scans.\n"


def model_card(description: Mapping[str, Any], parameters: int, results: str) -> str:
    """Markdown.

    Args:
        description: Content of `model.json`.
        parameters: Number of weights and statistics.
        results: Text of the section "Results"; "" where nothing was evaluated.
    """
    task, training, factor = description["task"], description["training"], description["factor"]
    modalities, setting = description["model"]["modalities"], SETTINGS[description["model"]["setting"]]
    classes = [name for name in task["class_names"] if name != "background"]
    return _CARD.format(
        title=f"{', '.join(name.replace('_', ' ') for name in classes)} in {', '.join(modalities)}",
        classes=", ".join(classes),
        modalities=" and ".join(modalities),
        axes=task["axes"],
        spacing=" × ".join(f"{v * by:g}" for v, by in zip(task["spacing_mm"], (factor, factor, 1), strict=True)),
        rows=description["size"][0],
        columns=description["size"][1],
        kernels=_OWNERS[setting.separate_kernels],
        norms=_OWNERS[setting.separate_norms],
        first=modalities[-1],
        phantom=_PHANTOM if str(training.get("data", "")).startswith("phantom") else "",
        origin=_origin(description, parameters),
        results=results or "It has not been evaluated.",
    )


def _origin(description: Mapping[str, Any], parameters: int) -> str:
    training, model = description["training"], description["model"]
    network = model["network"] if isinstance(model["network"], str) else model["network"]["name"]
    dice = training.get("validation_dice")
    facts = {
        "network": f"{network}, setting {model['setting']}, {parameters:,} weights and statistics",
        "data": training.get("data"),
        "training cases": ", ".join(f"{n} {m}" for m, n in training.get("counts", {}).items()),
        "split": training.get("split_name"),
        "checkpoint": training.get("step") and f"step {training['step']} ({training.get('selection')})",
        "preset, seed, commit": training.get("commit")
        and f"{training.get('preset')}, {training.get('seed')}, {training['commit']}",
        "validation Dice": None if dice is None else f"{100 * dice:.1f} %",
        "imported from": training.get("imported_from"),
        "fine-tuned from": training.get("settings", {}).get("init_from"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
