"""A training run: its folder, checkpoints, loop and trained model."""
