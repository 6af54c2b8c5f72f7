"""Command-line programs: train, evaluate, predict."""
