"""The method: architectures as tables, layers, losses, and the model with its training step."""
