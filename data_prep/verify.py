"""Looks through a raw data set and reports every problem at once, as 'file: problem: fix'.

    python -m data_prep.verify --source=btcv --raw=RAW

Nothing is written. Exit code 1 when there is a problem. Every preparation starts with the same check of all cases of
the chosen split.
"""

from __future__ import annotations

from absl import flags

from data_prep import pipeline, release, source_flags
from data_prep.sources.raw_case import Problem, report
from data_prep.splits import Choice
from ummkd_tf.common.cli import run, start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.common.notes import note

flags.adopt_module_key_flags(source_flags)


def main(argv: list[str]) -> int:
    """Checks the raw data that the flags name; exit code 1 where there is a problem."""
    source = source_flags.chosen_source()
    options = source_flags.options()
    if source.name == "released":
        start_tensorflow()
        return report(release.verify(options.folder(), note))
    task, found = source.task_for(options), source.find(options)
    notes = 0

    def count(text: str) -> None:
        nonlocal notes
        notes += 1
        note(text)

    for text in found.notes:
        count(text)
    with source_flags.workers() as pool:
        problems = [*found.problems, *pipeline.verify(found.cases, task, pool, count)]
    if not problems:
        try:
            pipeline.split_cases(source, found, Choice())
        except InputError as error:
            problems.append(Problem.of(error))
    code = report(problems)
    if not code:
        print(f"{len(found.cases)} cases, no problem" + (f"; {notes} note(s) above to look at" if notes else ""))
    return code


if __name__ == "__main__":
    flags.DEFINE_alias("dir", "raw")
    run(main)
