"""Flags that hold a list of whole numbers, as --seeds=0,1,2."""

from __future__ import annotations

from absl import flags

LARGEST_SEED = 2**32 - 1  # that NumPy takes


class _WholeNumbers(flags.ArgumentParser):
    def parse(self, argument: str) -> list[int]:
        texts = [text.strip() for text in argument.split(",")]
        if not all(text.isdecimal() and int(text) <= LARGEST_SEED for text in texts):
            raise ValueError(f"expected whole numbers up to {LARGEST_SEED}, e.g. 0,1,2")
        return [int(text) for text in texts]


def define_whole_numbers(name: str, default: str | None, help_text: str) -> None:
    """Defines a flag whose value is a list of whole numbers from 0, at least one; None where that is its default."""
    flags.DEFINE(_WholeNumbers(), name, default, help_text, serializer=flags.CsvListSerializer(","))
