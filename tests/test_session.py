"""What a run is told reaches its model, its batches and its validation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from recorded_runs import run_config

from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cache import Cache
from ummkd_tf.data.sampling import UnpairedSampler
from ummkd_tf.evaluation.validation import validation_score
from ummkd_tf.runs import session
from ummkd_tf.runs.checkpoints import Progress

ARGUMENTS = {"network": "unet3d", "setting": "ours", "num_classes": 5, "width": 2, "initialization": "glorot"}
SMALL = {**ARGUMENTS, "modalities": ("ct", "mr")}


def test_settings_reach_the_model():
    given = {"alpha": 0.7, "temperature": 3.0, "absent": "skip", "l2_on": "kernels", "l2_weight": 0.01}
    model = session.make_model(run_config(**given, ema=0.9), SMALL)
    assert (model.kd_weight, model.temperature, model.absent, model.l2_on, model.l2_weight) == tuple(given.values())
    optimizer = model.optimizer
    assert (optimizer.epsilon, optimizer.beta_1, optimizer.beta_2) == (1e-8, 0.9, 0.999)
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.9)
    assert not session.make_model(run_config(), SMALL).optimizer.use_ema


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("staircase", {0: 1.0, 499: 1.0, 500: 0.95, 999: 0.95, 1000: 0.9025}),
        ("polynomial", {0: 1.0, 1000: 0.5**0.9, 2000: 0.0}),
    ],
)
def test_rates_fall_as_told(schedule, rates):
    """By 5 % every 500 steps, or to zero at the end."""
    config = run_config(schedule=schedule, learning_rate=1e-3, decay_every=500, steps=2000)
    rate = session.make_model(config, SMALL).optimizer._learning_rate
    assert {step: float(rate(step)) for step in rates} == pytest.approx(
        {s: 1e-3 * r for s, r in rates.items()}, abs=1e-9
    )


def test_the_seed_decides_batches_and_first_kernels(prepared_dataset, tmp_path, monkeypatch):
    sampler = session.make_sampler(prepared_dataset, run_config(seed=3, batch_size=8), 3, Cache())
    assert sampler.origins(0) == UnpairedSampler(sampler.examples, 8, 3).origins(0)
    assert sampler.origins(0) != UnpairedSampler(sampler.examples, 8, 0).origins(0)
    kernels = []

    def look(model, *_, **__):
        kernels.append(next(v.numpy() for v in model.trainable_variables if v.name == "kernel"))
        return Progress(1)

    monkeypatch.setattr(session.training, "train", look)
    for number, seed in enumerate((0, 3, 3)):
        config = run_config(seed=seed)
        session.run_training(prepared_dataset, tmp_path / str(number), config, ARGUMENTS, session.SessionOptions())
    np.testing.assert_array_equal(kernels[1], kernels[2])
    assert np.any(kernels[0] != kernels[1])


def test_validation_sees_the_validation_part_alone(prepared_dataset):
    """So that no test case chooses the checkpoint."""

    class Blank:
        def probabilities(self, image, modality):
            return tf.one_hot(np.zeros(image.shape, int), 5).numpy()

    seen = []
    score = validation_score(prepared_dataset, Blank(), 4, watch=lambda case, _: seen.append(case.case_id))
    assert set(score()) >= {"dice", "ct_dice", "mr_dice"}
    assert seen == prepared_dataset.ids("validation") == ["ct_2", "mr_2"]


def test_knowledge_is_of_the_part_asked_for_with_the_runs_temperature(prepared_dataset, tmp_path, monkeypatch):
    seen = []

    def look(predictor, cases, temperature=2.0):
        seen.append(([case.case_id for case in cases], temperature))
        return {}

    monkeypatch.setattr(session, "knowledge_of_cases", look)
    monkeypatch.setattr(session.training, "train", lambda *_, knowledge, **__: (knowledge(), Progress(1))[1])
    options = session.SessionOptions(knowledge_on="test")
    session.run_training(prepared_dataset, tmp_path, run_config(temperature=3.0), ARGUMENTS, options)
    assert seen == [(["ct_3", "mr_3"], 3.0)]


def test_knowledge_of_one_modality_is_refused(prepared_dataset, tmp_path):
    split = {part: tuple(c for c in ids if c.startswith("ct")) for part, ids in prepared_dataset.split.items()}
    alone = dataclasses.replace(prepared_dataset, modalities=("ct",), split=split)
    options = session.SessionOptions(knowledge_on="validation")
    with pytest.raises(InputError, match=r"--knowledge_on=validation: .* has whole scans of ct alone"):
        session.run_training(alone, tmp_path, run_config(setting="individual"), ARGUMENTS, options)
