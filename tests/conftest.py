"""Settings every test needs before TensorFlow is imported."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up banners in test output
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the programs do, see ummkd_tf/cli.py
