"""What `experiments.train --describe` prints: sharing per stage and parameter counts."""

from __future__ import annotations

import math
from typing import Any

import keras

from ummkd_tf.model.any_network import model_of
from ummkd_tf.model.segmenter import UnpairedModel, UnpairedSegmenter
from ummkd_tf.output.diagram import network_diagram
from ummkd_tf.output.pictures import save_figure
from ummkd_tf.output.text_tables import markdown


def describe(model_arguments: dict[str, Any], diagram: str | None = None) -> str:
    """Table of stages, and the trainable parameters beside the paper's; draws the network into the file `diagram`."""
    with keras.StatelessScope(initialize_variables=False):  # the counts need shapes only, and values take seconds
        model = model_of(model_arguments)
    if not isinstance(model, UnpairedSegmenter):
        return _describe_keras(model)
    if diagram:
        sizes = {"width": model_arguments["width"], "num_classes": model.num_classes}
        save_figure(network_diagram(model.network, model.setting, model.modalities, **sizes), diagram)
    rows = []
    for stage in model.stages:
        count = sum(math.prod(v.shape) for v in stage.trainable_variables)
        rows.append(
            [
                stage.row.name,
                "separate" if stage.options.separate_kernels else "shared",
                ("separate" if stage.options.separate_norms else "shared") if _has_norm(stage) else "none",
                f"{count:,}",
            ]
        )
    total = sum(math.prod(v.shape) for v in model.trainable_variables)
    setting = model.setting
    paper = model.network.paper_parameters.get(setting.name)
    as_printed = (model_arguments["width"], model_arguments["normalization"], model.num_classes) == (16, "batch", 5)
    return "\n".join(
        [
            f"{setting.title} with {model.network.name}, width {model_arguments['width']}, "
            f"{model.num_classes} classes, {model_arguments['normalization']} normalization, "
            f"modalities {', '.join(model.modalities)}",
            f"knowledge-distillation loss (Eq. 4): {'on' if setting.distill else 'off'}",
            "",
            markdown(["stage", "kernels", "norms", "parameters"], rows),
            "",
            f"trainable parameters: {total:,}" + (f" (the paper prints {paper})" if as_printed and paper else ""),
        ]
    )


def _describe_keras(model: UnpairedModel) -> str:
    """Of a Keras model, which has no stages."""

    def count(variables: list) -> int:
        return sum(math.prod(v.shape) for v in variables if v.trainable)

    total, one = count(model.variables), count(model.variables_of(model.modalities[:1]))
    own = (total - one) // max(1, len(model.modalities) - 1)  # what each further modality adds
    modalities = ", ".join(model.modalities)
    return (
        f"{model.setting.title} with {model.network.name}, {model.num_classes} classes, modalities {modalities}\n"
        f"knowledge-distillation loss (Eq. 4): {'on' if model.setting.distill else 'off'}"
        f"\n\ntrainable parameters: {total:,}; {own:,} of them each modality's own, {one - own:,} shared"
    )


def _has_norm(stage: Any) -> bool:
    return any("/norm/" in v.path for v in stage.variables)
