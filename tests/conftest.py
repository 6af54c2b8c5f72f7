"""Settings every test needs before TensorFlow is imported."""

import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up banners in test output
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the programs do, see ummkd_tf/common/cli.py

import pytest
from prepared_data import write_prepared_dataset

from ummkd_tf.data.dataset import Dataset


@pytest.fixture
def eager() -> Iterator[None]:
    """For one or two steps, tracing takes longer than the steps."""
    import tensorflow as tf  # here, because most tests need none

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def prepared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A prepared data set of blocks: per modality two training cases, one validation and one test case."""
    directory = tmp_path_factory.mktemp("prepared")
    write_prepared_dataset(directory)
    return Dataset.load(directory)
