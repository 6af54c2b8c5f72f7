"""Phantoms: unpaired CT-like and MR-like anatomies in the raw layouts of BTCV, CHAOS and MM-WHS.

The same preparation code as for real scans runs on them, glitches included. An anatomy is a list of deformed
ellipsoids in patient millimetres (RAS), painted one over the other; each scan samples it on its own grid, so that
affine, ImagePositionPatient and anatomical sides are true by construction. Numbers (shapes, intensities, noise) are
our choice: they look like the real sets at first sight and are no measurement of them.

    python -m data_prep.phantom --task=abdomen --cases=ct:6,mr:6 --seed=0 --out=DIR
"""

from __future__ import annotations

from typing import Any

from absl import flags

from data_prep.phantom.sets import write_abdomen, write_cardiac
from ummkd_tf.common import cli
from ummkd_tf.common.errors import InputError


def parse_cases(text: str) -> dict[str, int]:
    """Reads "ct:6,mr:6".

    Raises:
        InputError: Another form, another modality, or one twice.
    """
    pairs = [part.partition(":")[::2] for part in text.split(",")]
    counts = {modality.strip(): int(number) for modality, number in pairs if number.strip().isdecimal()}
    if len(counts) != len(pairs) or not counts.keys() <= {"ct", "mr"}:
        raise InputError(f"--cases={text}: expected ct:NUMBER,mr:NUMBER, e.g. ct:6,mr:6")
    return counts


def _define_flags() -> None:
    flags.DEFINE_enum("task", "abdomen", ["abdomen", "cardiac"], "Which anatomy: BTCV + CHAOS, or MM-WHS.")
    flags.DEFINE_string("out", None, "Folder to make.", required=True)
    flags.DEFINE_string("cases", "ct:6,mr:6", "Number of cases by modality.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.")
    flags.DEFINE_integer("size", 128, "Pixels of a row; real: 256 (abdomen), 512 (cardiac).")
    flags.DEFINE_bool("t1", False, "Abdomen: write CHAOS's T1DUAL too.")
    flags.DEFINE_bool("anticorrelated_mr", False, "MR intensities are CT's turned upside down.")
    flags.DEFINE_float("low_resolution_mr", 1.0, "Width of the MR's point spread in pixels.")
    flags.DEFINE_bool("outlier_ct", False, "One CT more, with streaks; phantom.json names it.")
    flags.DEFINE_bool("overwrite", False, "Replace an earlier phantom.")


def main(argv: list[str]) -> None:
    """Writes the set the flags ask for."""
    del argv
    values = flags.FLAGS
    counts = parse_cases(values.cases)
    arguments: dict[str, Any] = {
        "num_ct": counts.get("ct", 0),
        "num_mr": counts.get("mr", 0),
        **{
            name: values[name].value
            for name in ("seed", "size", "anticorrelated_mr", "low_resolution_mr", "outlier_ct", "overwrite")
        },
    }
    if values.task == "abdomen":
        write_abdomen(values.out, t1=values.t1, **arguments)
    elif values.t1:
        raise InputError("--t1: CHAOS's second sequence belongs to --task=abdomen; leave it out")
    else:
        write_cardiac(values.out, **arguments)
    print(f"{values.task} phantom: {values.out} ({values.cases}, seed {values.seed})")


if __name__ == "__main__":
    _define_flags()
    cli.run(main)
