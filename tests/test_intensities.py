"""What a modality's images looked like in training, and scans that look otherwise."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from prepared_data import write_prepared_dataset

from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.intensities import PERCENTILES, check_intensities, profile, training_intensities, unlike
from ummkd_tf.evaluation.scan_prediction import ScanPredictor
from ummkd_tf.scans.geometry import Volume
from ummkd_tf.tasks import TASKS


def test_a_profile_is_the_percentiles_between_darkest_and_brightest():
    image = np.linspace(-7, 13, 21, dtype=np.float32).reshape(3, 7, 1)  # percentile p is p / 100 of the range
    np.testing.assert_allclose(profile(image), np.array(PERCENTILES) / 100, atol=1e-6)
    assert not profile(np.zeros((2, 2, 2), np.float32)).any()


class Cases:
    """Four training cases whose values are uniform, but for the power that `bend` gives."""

    unit, modalities = "cases", ("ct",)

    def __init__(self, bends):
        self.bends = bends

    def ids(self, part, modality):
        return list(range(len(self.bends))) if part == "train" else []

    def case(self, case_id):
        ramp = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 11, 13)
        return type("Case", (), {"image": ramp ** self.bends[case_id]})


def test_what_is_further_off_than_any_training_case_is_unlike_them():
    known = training_intensities(Cases([1, 1, 1, 2]))["ct"]
    assert known["cases"] == 4
    np.testing.assert_allclose(known["profile"], np.array(PERCENTILES) / 100, atol=1e-3)
    # x and x² differ by 1/4 at x = 1/2, so that is the spread; 1.5 × 1/4 = 3/8 is allowed.
    assert known["spread"] == pytest.approx(0.25, abs=1e-3)
    ramp = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 11, 13)
    assert not unlike(ramp**2, known)
    assert not unlike(100 * ramp**2 - 7, known)  # another scale is no other intensity
    assert not unlike(ramp**2.8, known)  # x − x^2.8 is 0.36 at most
    assert unlike(ramp**5, known)  # 0.53
    assert not unlike(ramp**5, None)
    assert training_intensities(Cases([1, 2])) == {}  # too few to know
    # Each case against the others: x against the median of x, x² and x², not of all four, which lies between.
    assert training_intensities(Cases([1, 1, 2, 2]))["ct"]["spread"] == pytest.approx(0.25, abs=1e-3)


def test_cases_alike_leave_room_for_noise():
    known = training_intensities(Cases([1, 1, 1]))["ct"]
    ramp = np.linspace(0, 1, 1001, dtype=np.float32).reshape(7, 11, 13)
    assert known["spread"] == 0
    assert not unlike(ramp**1.1, known)  # 0.035
    assert unlike(ramp**1.3, known)  # 0.097


def test_of_a_data_set_only_its_training_part(tmp_path):
    write_prepared_dataset(tmp_path)
    dataset = Dataset.load(tmp_path)
    counts = {m: len(dataset.ids("train", m)) for m in dataset.modalities}
    known = training_intensities(dataset)
    assert {m: entry["cases"] for m, entry in known.items()} == {m: n for m, n in counts.items() if n >= 3}


class Nothing:
    def probabilities(self, image, modality, factor=1, *, overlap=0.0, progress=iter):
        return np.eye(5, dtype=np.float32)[np.zeros(image.shape, int)]


def test_prediction_warns(caplog):
    ramp = np.linspace(0, 1, 60 * 60 * 8, dtype=np.float32).reshape(60, 60, 8)
    scan = Volume(1000 * ramp, np.diag([5.0, 5.0, 8.0, 1.0]))
    for spread, warned in ((0.0, True), (1.0, False)):
        known = {"mr": {"cases": 3, "profile": [0.0] * len(PERCENTILES), "spread": spread}}
        predictor = ScanPredictor(Nothing(), TASKS["abdomen"], ("ct", "mr"), intensities=known)
        with caplog.at_level(logging.WARNING):
            predictor.predict_scan(scan, "mr")
        assert ("unlike those of all mr scans in training" in caplog.text) is warned
        caplog.clear()
        predictor.predict_scan(scan, "ct")  # nothing is known of CT
        assert "unlike" not in caplog.text


@pytest.mark.parametrize(
    "content", [{"ct": {"profile": [0.0], "spread": 0.1}}, {"ct": {"profile": "no", "spread": 0.1}}, {"ct": {}}, 3]
)
def test_what_is_no_profile_is_refused(content):
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        check_intensities(content)


def test_many_cases_are_sampled_evenly():
    """The second fifty look otherwise than the first."""
    known = training_intensities(Cases([1] * 50 + [2] * 50))["ct"]
    assert known["cases"] == 50 and known["spread"] > 0.1
