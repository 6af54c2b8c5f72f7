"""The same training step as others would write it, for comparison."""
