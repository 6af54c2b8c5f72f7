"""Command-line programs; `command.py` lists them."""
