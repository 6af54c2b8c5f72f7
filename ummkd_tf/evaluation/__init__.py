"""From a trained model to predictions, metrics and their summary."""
