"""A trained model as one folder that others can use without the run, its data or a flag.

model = ummkd_tf.load_model("model")
result = model.predict_scan("scan.nii.gz", modality="mr")
result.labels, result.probabilities, result.affine
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import ummkd_tf
from ummkd_tf.common.documents import MALFORMED, read_npz
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import UNFINISHED, last_line, write_json
from ummkd_tf.data.cases import file_checksum, read_checksums
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.released_dataset import ReleasedDataset
from ummkd_tf.evaluation.inference import Predictor
from ummkd_tf.evaluation.scan_prediction import ScanPredictor, Segmentation
from ummkd_tf.model.any_network import model_of
from ummkd_tf.model.segmenter import UnpairedModel
from ummkd_tf.runs.checkpoints import set_variables, weights, weights_checksum, without_random_states
from ummkd_tf.runs.folder import check_preparation, commits_of, config_of, task_of
from ummkd_tf.runs.loading import load_run, open_run_data
from ummkd_tf.runs.model_card import model_card
from ummkd_tf.runs.model_folder import CARD, CHECKSUMS, FORMAT, MODEL, WEIGHTS, check_new, read_description
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.tasks import Task, stored_task


@dataclass(frozen=True)
class ExportedModel:
    """What a model folder holds.

    Attributes:
        folder: The folder.
        model: The network with its weights.
        task: What it segments, and on which grid.
        factor: In-plane reduction of the images it sees against the task's grid.
        training: Where it comes from, as `model.json` has it.
    """

    folder: Path
    model: UnpairedModel
    task: Task
    factor: int
    training: Mapping[str, Any]

    @cached_property
    def predictor(self) -> Predictor:
        """Gives the probabilities of prepared volumes."""
        return Predictor(self.model)

    @property
    def title(self) -> str:
        """For messages and pictures."""
        step = self.training.get("step")
        return f"{self.model.setting.title}{'' if step is None else f', step {step}'} ({self.folder})"

    def scan_predictor(self, *, overlap: float = 0.0, largest_component: bool = False) -> ScanPredictor:
        """What segments scans with it; arguments as `ScanPredictor`."""
        return ScanPredictor(
            self.predictor,
            self.task,
            self.model.modalities,
            self.factor,
            overlap=overlap,
            largest_component=largest_component,
            title=self.title,
            weights_sha256=[weights_checksum(self.model)],
            intensities=self.training.get("intensities"),
            seen={
                entry["image_sha256"]: f"the model's {entry['part']} part ({case_id})"
                for case_id, entry in self.training.get("cases", {}).items()
                if entry["part"] in ("train", "validation") and entry["image_sha256"]
            },
        )

    def predict_scan(
        self, scan: str | Path | Volume, modality: str, *, overlap: float = 0.0, largest_component: bool = False
    ) -> Segmentation:
        """Segments one scan, see `ScanPredictor`: labels, probabilities and affine on the scan's own grid.

        Args:
            scan: A NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or a volume in any orientation.
            modality: One of `model.modalities`.
            overlap: Of neighbouring chunks of the 3D network; 0 is the authors' protocol, 0.5 smooths seams.
            largest_component: Keep the largest connected part of each class alone.

        Raises:
            InputError: An unknown modality, a DICOM series of another one, or a scan that cannot be read or prepared.
        """
        predictor = self.scan_predictor(overlap=overlap, largest_component=largest_component)
        return predictor.predict_scan(scan, modality)


def load_model(folder: str | Path) -> ExportedModel:
    """A model from its folder, as `export_run` writes it.

    Raises:
        InputError: No model folder, one that was damaged or edited, or one of another version.
    """
    folder = Path(folder)
    content = read_description(folder)
    task = stored_task(content["task"], folder / MODEL)
    check_preparation(content, folder)
    try:
        model = model_of(content["model"])
        arrays = read_npz(folder / WEIGHTS)
    except MALFORMED as error:
        raise InputError(
            f"describes no model ({last_line(error)})", where=folder / MODEL, fix="export it again"
        ) from error
    if model.num_classes != task.num_classes or task.size[0] % max(1, content["factor"]):
        raise InputError("model and task do not fit", where=folder / MODEL, fix="export it again")
    set_variables(folder / WEIGHTS, weights(model), without_random_states(arrays))
    return ExportedModel(folder, model, task, content["factor"], content["training"])


def export_run(
    run_dir: str | Path,
    out: str | Path,
    selection: str | None = None,
    *,
    data_dir: str | Path | None = None,
    results: Mapping[int, str] = MappingProxyType({}),
) -> Path:
    """Writes a run's model as a folder.

    Args:
        run_dir: The run's folder.
        out: Folder to write; must not exist.
        selection: As for `load_run`.
        data_dir: The run's data set, of which the folder says which scans the model has seen; None: where it was for
            the training.
        results: Text of the model card's results, by the step of the checkpoint that they are of.

    Raises:
        InputError: No run; no data set, or not as it was for the training; or the folder exists.
    """
    model, record, step = load_run(run_dir, selection)
    config, task = config_of(record), task_of(record)
    dataset = open_run_data(record, data_dir)
    progress, best = record.get("progress", {}), (selection or config.selection) == "best"
    training = {
        "data": record.get("source", ""),
        "cases": training_cases(dataset),
        "started_from": record.get("started_from"),
        "counts": {m: len(dataset.ids("train", m)) for m in dataset.modalities},
        "intensities": record.get("intensities", {}),
        "split_name": record["split_name"],
        "split_sha256": record["split_sha256"],
        "commit": " / ".join(commits_of(record)),
        "seed": config.seed,
        "step": step,
        "selection": selection or config.selection,
        "preset": config.preset,
        "recipe": config.recipe,
        "settings": config.to_dict(),
        "validation_dice": progress.get("best_dice") if best and progress.get("best_step") == step else None,
    }
    preparation = record.get("preparation", dataset.preparation)
    text, factor = results.get(step, ""), config.factor(task)
    return write_model(Path(out), model, record["model"], task, factor, training, text, preparation)


def write_model(
    out: Path,
    model: UnpairedModel,
    arguments: Mapping[str, Any],
    task: Task,
    factor: int,
    training: Mapping[str, Any],
    results: str = "",
    preparation: int = preprocessing.VERSION,
) -> Path:
    """Writes a model's folder whole or not at all.

    Args:
        out: The folder; must not exist.
        model: Holds the weights.
        arguments: As for `model_of`.
        task: What it segments.
        factor: In-plane reduction of the images it sees.
        training: Where it comes from.
        results: Text of the model card's results.
        preparation: Version of the steps that prepared the scans it was trained on.

    Raises:
        InputError: The folder exists, or cannot be written.
    """
    check_new(out)
    description = {
        "format": FORMAT,
        "ummkd_tf": ummkd_tf.__version__,
        "model": dict(arguments),
        "task": task.to_dict(),
        "preparation": preparation,
        "factor": factor,
        "size": [n // factor for n in task.size],
        "labels": [
            {"value": c, "name": name, "color": task.class_colors.get(name)} for c, name in enumerate(task.class_names)
        ],
        "training": dict(training),
    }
    arrays = {name: np.asarray(v.value) for name, v in weights(model).items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=out.parent) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            write_json(folder / MODEL, description)
            np.savez(folder / WEIGHTS, allow_pickle=False, **arrays)
            (folder / CARD).write_text(model_card(description, model.count_params(), results), encoding="utf-8")
            lines = [f"{file_checksum(folder / name)}  {name}\n" for name in (CARD, MODEL, WEIGHTS)]
            (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
            os.rename(folder, out)
    except OSError as error:
        raise InputError(
            f"could not be written ({error.strerror})", where=out, fix="make room or check permissions"
        ) from error
    return out


def start_from(model: UnpairedModel, folder: str | Path, task: Task) -> None:
    """Sets a model's weights and statistics, by name, from an exported model that may lack some of its modalities.

    A normalization layer of a modality that the exported model lacks starts as the mean of those that it has: our
    choice, because the shared kernels have learnt with such scales, so that a layer that starts with scale 1 and shift
    0 would have more to learn.

    Raises:
        InputError: As `load_model`, other classes than the task's, or a variable that the exported model has no
            counterpart of.
    """
    folder = Path(folder)
    description = read_description(folder)
    source, known = description["model"], stored_task(description["task"], folder / MODEL).class_names
    if known != task.class_names:
        raise InputError(
            f"segments {', '.join(known[1:])}, but the data have {', '.join(task.class_names[1:])}",
            where=folder,
            fix="expected the same classes in the same order; prepare the data for the model's classes",
        )
    arrays = read_npz(folder / WEIGHTS)
    for name, variable in weights(model).items():
        *path, owner, last = name.split("/")
        values = arrays.get(name)
        if values is None and owner in model.modalities and path[-1] == "norm":
            siblings = ["/".join((*path, m, last)) for m in source["modalities"]]
            if all(sibling in arrays for sibling in siblings):
                values = np.stack([arrays[sibling] for sibling in siblings]).mean(axis=0, dtype=np.float32)
        if values is None or values.shape != tuple(variable.shape):
            found = "none" if values is None else f"shape {values.shape}"
            raise InputError(
                f"has {found} for {name.removeprefix('model/')}, expected {tuple(variable.shape)}",
                where=folder,
                fix="take the network, setting, preset, classes and normalization that the model was trained with",
            )
        variable.assign(values)


def training_cases(dataset: Dataset) -> dict[str, dict[str, str]]:
    """What training and model selection have seen, by case.

    Returns:
        Case id → "part"; "source_sha256", of the raw files of scan and label; and "image_sha256", of the scan's
        voxels, which another file format or a second label map of the same scan does not change. Of the authors'
        records, one entry for all.
    """
    if isinstance(dataset, ReleasedDataset):
        return {"released records": {"part": "train", "source_sha256": dataset.sha256, "image_sha256": ""}}
    ids = [(part, case_id) for part in ("train", "validation") for case_id in dataset.ids(part)]
    return {case_id: {"part": part, **_checksums(dataset, case_id)} for part, case_id in ids}


def _checksums(dataset: Dataset, case_id: str) -> dict[str, str]:
    if isinstance(dataset, ReleasedDataset) and case_id not in dataset.ids("test"):  # a record
        return {"image_sha256": "", "source_sha256": dataset.sha256}
    found = read_checksums(dataset.path(case_id))
    return {"image_sha256": found.image, "source_sha256": found.source}


def check_not_seen(
    training: Mapping[str, Any],
    dataset: Dataset,
    case_ids: Sequence[str],
    parts: Sequence[str] = ("train", "validation"),
    where: str | Path | None = None,
) -> None:
    """Refuses to evaluate on cases that trained or selected a model, or the model that it was grown from.

    Args:
        training: Of an exported model.
        dataset: Prepared cases.
        case_ids: Those to evaluate on.
        parts: Of the model's own data, which must not hold them.
        where: What the user knows the cases by; by default the data set's folder.

    Raises:
        InputError: Names the cases, and what they were called in training.
    """
    seen: dict[str, str] = {}
    earlier: Mapping[str, Any] | None = training
    while earlier:
        # The authors' records have one checksum for all parts, which say nothing of a record where they are the same.
        same_records = isinstance(dataset, ReleasedDataset) and earlier.get("split_sha256") == dataset.split_checksum
        for name, entry in earlier.get("cases", {}).items():
            if entry["part"] in parts and not same_records:
                seen |= {entry[key]: name for key in ("image_sha256", "source_sha256") if entry[key]}
        earlier = earlier.get("started_from")
    found = []
    for case_id in case_ids if seen else ():
        names = [seen[value] for value in _checksums(dataset, case_id).values() if value in seen]
        found += [case_id if name == case_id else f"{case_id} (there {name})" for name in names[:1]]
    if found:
        raise InputError(
            f"{len(found)} of {len(case_ids)} cases were in the model's {' or '.join(parts)} part: {', '.join(found)}",
            where=where or dataset.directory,
            fix="expected scans that it has not seen; leave them out",
        )
