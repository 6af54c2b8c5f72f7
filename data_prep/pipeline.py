"""From raw cases to a prepared data set: each case is visited once, checked and prepared in one go.

A visit leaves its prepared file in `<out>/.prepared/`. Only when no case has a problem do these files become the data
set, so nothing is written to it while there is a problem. A case is left alone while its source files and the recipe
are unchanged, and what an interrupted run has prepared is taken over by the next: it can be stopped at any time and
started again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.raw_case import Found, Note, Problem, RawCase, source_names
from data_prep.sources.table import RawOptions, Source
from data_prep.splits import Choice, Split, by_part, in_two_parts
from data_prep.workers import Result, Workers
from ummkd_tf.common.documents import MALFORMED, plain_name, read_json
from ummkd_tf.common.errors import InputError, Stopped
from ummkd_tf.common.files import UNFINISHED, replacing
from ummkd_tf.common.notes import warnings_to
from ummkd_tf.data.cases import CASES, case_file, file_checksum, is_current, read_checksums, voxels_checksum, write_case
from ummkd_tf.data.dataset import DATASET, RELEASED, Dataset, check_split, write_dataset
from ummkd_tf.data.index import FACTORS, INDEX, CaseContent, content_of, contents
from ummkd_tf.scans import preprocessing
from ummkd_tf.scans.geometry import Grid, same_geometry
from ummkd_tf.scans.plausibility import implausible, machine
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.scans.reading import study_of
from ummkd_tf.tasks import TASKS, Task

STAGING = ".prepared"  # folder of prepared cases that are not yet part of the data set
_LOST_SHARE = 0.05  # of an organ's volume; resampling moves less, unless the organ is thin against the slices


@dataclass(frozen=True)
class Shard:
    """A share of the cases, for job arrays: number `number`, from 1, of `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of "3/20".

        Raises:
            InputError: No such share.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise InputError(f"--shard={text}: expected NUMBER/COUNT with 1 <= NUMBER <= COUNT, e.g. 3/20")
        return shard

    def of(self, cases: Sequence[RawCase]) -> list[RawCase]:
        """Every `count`-th case, because neighbours in a list are often alike in size."""
        return list(cases[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Visit:
    """What the one visit of a raw case found.

    Attributes:
        case_id: The case.
        problems: What keeps it from being prepared.
        notes: What is odd but handled.
        image_sha256: Of the scan's voxels, whatever the file format; "" where they cannot be read.
        up_to_date: There was a prepared file of the same sources and recipe.
        put_aside: The prepared file lies in `STAGING`, written now or by an interrupted run.
        content: What the prepared file holds, where it was written now.
        absent: Classes of the task without a voxel in the label map, where that was read now.
    """

    case_id: str
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    image_sha256: str = ""
    up_to_date: bool = False
    put_aside: bool = False
    content: CaseContent | None = None
    absent: Sequence[str] = ()


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, read: Callable[[], Result]) -> Result | None:
        """Calls a function; where it raises InputError, adds the problem and returns None."""
        try:
            return read()
        except InputError as error:
            self.problems.append(Problem.of(error))
        except OSError as error:
            self.problems.append(Problem(str(error.filename), "not readable", "check the file's permissions"))
        return None


def visit(case: RawCase, task: Task, out: Path | None, write: bool = True) -> Visit:
    """Reads a case once: checks whatever can be wrong with it, and prepares it.

    Args:
        case: The raw case.
        task: Its task.
        out: Folder of the data set, in which the prepared file is put aside; None to look only.
        write: False to say whether the case is up to date, without writing.
    """
    warnings: list[str] = []
    with warnings_to(warnings.append):
        visit = _visit(case, task, out, write, warnings)
    return replace(visit, notes=[*visit.notes, *(f"{case.case_id}: {text}" for text in warnings)])


def _visit(case: RawCase, task: Task, out: Path | None, write: bool, warnings: Sequence[str]) -> Visit:
    """`visit`; what reading the files warned of is in `warnings`."""
    found = _Findings()
    found.attempt(lambda: plain_name(case.case_id))
    source = found.attempt(lambda: _source(case)) or {}
    current = _current(case, task, out, source) if out is not None and source else None
    if current:
        aside = current.parent.name == STAGING
        return Visit(case.case_id, image_sha256=read_checksums(current).image, up_to_date=True, put_aside=aside)
    scan = found.attempt(case.read_scan)
    label = found.attempt(lambda: case.read_label(scan, found.notes.append))
    absent: list[str] = []
    if label is not None:
        absent = [name for c, name in enumerate(task.class_names) if c and not (label.array == c).any()]
        if len(absent) == task.num_classes - 1:
            text = "no voxel of any class of the task"
            found.problems.append(
                Problem(str(case.label), text, "expected a labelled scan; check the file or leave it out")
            )
        elif absent:
            found.notes.append(f"{case.case_id}: no {', '.join(absent)} in the label map")
    image_sha256 = ""
    if scan is not None:
        image, image_sha256 = scan.volume, voxels_checksum(scan.volume)
        problems, notes = implausible(image, task, case.modality)
        found.problems += [Problem(str(case.image), *problem) for problem in problems]
        found.notes += [f"{case.case_id}: {note} ({case.image})" for note in notes]
        if image.grid.is_tilted:
            found.notes.append(f"{case.case_id}: the slices are tilted; it is prepared upright ({case.image})")
        if label is not None:
            difference = same_geometry(image.grid, label.grid)
            if difference:
                text = f"the label has {difference}"
                found.problems.append(Problem(str(case.label), text, "use the image's own label map"))
            elif not np.array_equal(image.affine, label.affine):
                found.notes.append(f"{case.case_id}: image and label headers differ by rounding; the image's is used")
    content = None
    if scan is not None and label is not None and not found.problems:
        try:
            prepared = preprocessing.prepare_scan(scan.volume, label, task, case.modality)
        except InputError as error:
            found.problems.append(Problem(str(case.image), error.problem, error.fix))
        else:
            assert prepared.label is not None
            found.notes += [f"{case.case_id}: {text}" for text in _lost(prepared, task)]
            if out is not None and write:
                check_space(out, prepared.image.nbytes + prepared.label.nbytes + label.array.nbytes)
                write_case(
                    case_file(out / STAGING, case.case_id),
                    prepared,
                    case_id=case.case_id,
                    modality=case.modality,
                    task=task,
                    source=source,
                    image_sha256=image_sha256,
                    notes=[text.removeprefix(f"{case.image}: ") for text in warnings],
                )
                content = content_of(case_file(out / STAGING, case.case_id), FACTORS, prepared.label)
    return Visit(
        case.case_id,
        list(dict.fromkeys(found.problems)),
        found.notes,
        image_sha256,
        put_aside=content is not None,
        content=content,
        absent=absent,
    )


def _lost(prepared: Prepared, task: Task) -> Iterator[str]:
    """What of the organs the prepared label map lacks: what lies outside of its window, and what resampling loses."""
    assert prepared.label is not None and prepared.original_label is not None

    def volumes(label: NDArray[np.uint8], grid: Grid) -> NDArray[np.float64]:
        # Slice by slice, because NumPy counts in a copy that takes eight times the memory.
        counts = [np.bincount(plane.ravel("K"), minlength=task.num_classes) for plane in label.T]
        return np.sum(counts, axis=0) * grid.voxel_volume_mm3 / 1000

    before, after = volumes(prepared.original_label, prepared.original), volumes(prepared.label, prepared.grid)
    voxel = " × ".join(f"{mm:g}" for mm in task.spacing_mm)
    for c in range(1, task.num_classes):
        if after[c] < (1 - _LOST_SHARE) * before[c]:
            outside = _share_outside(prepared.original_label == c, prepared.original, prepared.grid)
            resampled = 1 - after[c] / before[c] - outside
            organ = f"of the {task.class_names[c]} ({before[c]:.1f} ml)"
            if outside >= 0.01:  # less is rounding
                yield f"{outside:.0%} {organ} lies outside of the task's window"
            if resampled >= 0.01:
                yield f"{resampled:.0%} {organ} is lost in resampling to voxels of {voxel} mm"


def _share_outside(organ: NDArray[np.bool_], original: Grid, prepared: Grid) -> float:
    """Share of an organ's voxels whose centre lies beyond the rows or columns of the prepared grid.

    Across, the grid is as long as the scan, up to a quarter of a slice.
    """
    outside = 0
    for k in range(organ.shape[2]):  # slice by slice, because an index takes 24 bytes
        voxels = np.insert(np.argwhere(organ[:, :, k]).astype(np.float64), 2, k, axis=1)
        index = prepared.index(original.world(voxels))[:, :2]
        outside += int(((index < -0.5) | (index > np.array(prepared.shape[:2]) - 0.5)).any(axis=1).sum())
    return outside / np.count_nonzero(organ)


def _note_ranges(task: Task, modalities: Iterable[str], note: Note) -> None:
    """Notes modalities that take the default intensity range although another one may have been meant."""
    known = dict.fromkeys(modalities)
    without = [modality for modality in known if modality not in task.clip]
    unused = [modality for modality in task.clip if modality not in (*known, "default")]
    if without and unused and task not in TASKS.values():
        what = f"{', '.join(unused)}, which the data lack, and none for {', '.join(without)}"
        note(f"task {task.name} has an intensity range for {what}: the default is used there")
    # The paper's cardiac task clips CT to percentiles like MR.
    for modality in without if task != TASKS["cardiac"] else ():
        if machine(modality) == "CT" and (default := task.clip_for(modality)).unit == "percentile":
            percentiles = f"the percentiles {default.low:g} to {default.high:g}"
            fix = f'rename the modality, or give the task a range in Hounsfield units, "clip": {{"{modality}": …}}'
            note(f"{modality}, a CT by its name, is clipped to {percentiles} of each scan by task {task.name}: {fix}")


def _note_missing(task: Task, cases: Iterable[tuple[str, Collection[str]]], what: str, note: Note) -> None:
    """Notes classes that no case of a modality has, because no training would start.

    Args:
        task: Names the classes.
        cases: Modality and classes of each case.
        what: What the cases are, e.g. "training case".
        note: Takes a line for each modality.
    """
    there: dict[str, set[str]] = {}
    for modality, names in cases:
        there.setdefault(modality, set()).update(names)
    for modality, names in there.items():
        if missing := [name for name in task.class_names[1:] if name not in names]:
            note(
                f"no {what} of {modality} holds {', '.join(missing)}, so no training would start: add scans that do, "
                "or leave the class out of the task"
            )


def verify(cases: Sequence[RawCase], task: Task, pool: Workers, note: Note) -> list[Problem]:
    """Visits all cases without writing; every problem of each."""
    _note_ranges(task, (case.modality for case in cases), note)
    visits = list(pool.each(partial(visit, task=task, out=None), cases, "verify"))
    problems = _report(visits, note)
    if not problems:
        there = [set(task.class_names).difference(found.absent) for found in visits]
        _note_missing(task, [(case.modality, names) for case, names in zip(cases, there, strict=True)], "scan", note)
    return problems


def prepare_source(
    source: Source,
    options: RawOptions,
    out: Path,
    *,
    choice: Choice,
    pool: Workers,
    note: Note,
    dry_run: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
    other_folds: Sequence[Path] = (),
) -> list[Problem]:
    """Finds the cases of a raw data set, verifies and prepares those of the chosen split in `out`.

    Returns:
        Problems; when there is one, nothing has been written. A shard leaves what others have put aside.

    Raises:
        InputError: As `Choice.split` and `prepare_cases`.
    """
    task, found = source.task_for(options), source.find(options)
    for text in found.notes:
        note(text)
    if found.problems:
        return [*found.problems, *verify(found.cases, task, pool, note)]
    split_name, split = split_cases(source, found, choice)
    return prepare_cases(
        found.cases,
        task,
        out,
        split=split,
        split_name=split_name,
        source=source.described(options, found.cases),
        held_out=choice.held_out,
        pool=pool,
        note=note,
        dry_run=dry_run,
        overwrite=overwrite,
        shard=shard,
        other_folds=other_folds,
    )


def split_cases(source: Source, found: Found, choice: Choice) -> tuple[str, Split]:
    """(name, split) of the cases found, as chosen, and checked: so `verify` refuses what `prepare_cases` would.

    Raises:
        InputError: As `Choice.split`; a part that lacks a modality; one label map, or one DICOM study of a case
            without a patient, in two parts. The held-out cases count as a part, because models are evaluated on them.
    """
    modalities = source.modalities or dict.fromkeys(case.modality for case in found.cases)
    modality_of = {case.case_id: case.modality for case in found.cases}
    ids = {m: [case_id for case_id, modality in modality_of.items() if modality == m] for m in modalities}
    patients = {case.case_id: case.patient for case in found.cases if case.patient}
    name, split = choice.split(ids, found.split, patients)
    parts = by_part(split)
    check_split(parts, modality_of, tuple(split), f"the split ({name})")
    kept_apart = parts | {"--hold_out_cases": sorted(choice.held_out)}
    in_split = {case_id for ids in kept_apart.values() for case_id in ids}
    cases = [case for case in found.cases if case.case_id in in_split]
    _check_label_files(cases, kept_apart, name)
    if not source.known:  # in published sets every case is a patient, whatever their anonymizer has written
        _check_studies(cases, kept_apart, name)
    return name, split


def _check_label_files(cases: Sequence[RawCase], parts: Mapping[str, Sequence[str]], name: str) -> None:
    """Two scans with one label map are of one patient, at one time: they must be in one part."""
    labels = {case.case_id: case.label for case in cases}
    if found := in_two_parts(parts, {case_id: path.resolve() for case_id, path in labels.items()}):
        (other, other_part), (case, part) = found
        raise InputError(
            f"is the label map of {other} ({other_part}) and of {case} ({part}), so both are of one patient",
            where=labels[case],
            fix=f"expected them in one part of the split ({name}); give the CSV a patient column, or move one",
        )


def _check_studies(cases: Sequence[RawCase], parts: Mapping[str, Sequence[str]], name: str) -> None:
    """Likewise two scans of one DICOM study.

    Where the user names the patients, these count: some anonymizers write one study into all files.
    """
    images = {case.case_id: case.image for case in cases if not case.patient}
    studies = {case_id: study for case_id, image in images.items() if (study := study_of(image))}
    if found := in_two_parts(parts, studies):
        (other, other_part), (case, part) = found
        raise InputError(
            f"is of the same DICOM study (StudyInstanceUID) as {other}: {other} is in {other_part}, {case} in {part}",
            where=images[case],
            fix=f"expected one patient's scans in one part of the split ({name}); give the CSV a patient column, or "
            "move one",
        )


def prepare_cases(
    cases: Sequence[RawCase],
    task: Task,
    out: Path,
    *,
    split: Split,
    split_name: str,
    source: str = "",
    held_out: Collection[str] = (),
    pool: Workers,
    note: Note,
    dry_run: bool = False,
    overwrite: bool = False,
    shard: Shard | None = None,
    other_folds: Sequence[Path] = (),
) -> list[Problem]:
    """Prepares the cases of a split in `out`.

    Args:
        cases: Raw cases; those not in the split are left out.
        task: Row of the task table.
        out: Folder of the prepared data set.
        split: Case ids by modality (in the order batches use) and part.
        split_name: Said in `dataset.json`.
        source: Where the scans come from, said in `dataset.json`.
        held_out: Case ids to prepare although no part of the split has them.
        pool: The processes that do it.
        note: Takes one line for each remarkable thing.
        dry_run: Only say what would be done.
        overwrite: Replace another data set in `out`: of another source, task, classes or modalities, or other cases.
        shard: Only put this share of the cases aside; a run without one takes them over and ends the work.
        other_folds: Folders of the same data in other splits: what is up to date there is linked and not made again.

    Returns:
        Problems; when there is one, nothing has been written. A shard leaves what others have put aside.

    Raises:
        InputError: A split that does not fit, another data set in `out`, a full disk, or a worker that was ended.
    """
    if (out / RELEASED).exists():
        raise InputError("holds released records", where=out, fix="expected an empty folder; choose another --out")
    parts = by_part(split)
    chosen = {case_id for ids in parts.values() for case_id in ids} | set(held_out)
    if not overwrite:
        _check_same(out, source, task, list(split), chosen)
    earlier = _split_name(out)
    case_modality = {case.case_id: case.modality for case in cases if case.case_id in chosen}
    check_split(parts, case_modality, tuple(split), f"the split ({split_name})")
    _note_ranges(task, split, note)
    left_out = [case.case_id for case in cases if case.case_id not in chosen]
    if left_out:
        note(f"not in the split and left out: {', '.join(left_out)}")
    wanted = [case for case in cases if case.case_id in chosen]
    if shard:
        wanted = shard.of(wanted)
    if dry_run:
        visits = list(pool.each(partial(visit, task=task, out=out, write=False), wanted, "verify"))
        problems = _report(visits, note)
        for case, found in zip(wanted, visits, strict=True) if not problems else ():
            what = "is up to date with" if found.up_to_date else "would be prepared from"
            note(f"{case.case_id}: {what} {case.image}")
        return problems
    existed = out.exists()
    for case in wanted:
        for folder in other_folds:
            _link(case_file(folder / CASES, case.case_id), case_file(out / STAGING, case.case_id))
    try:
        visits = list(pool.each(partial(visit, task=task, out=out), wanted, "prepare"))
    except (InputError, KeyboardInterrupt) as error:  # what is prepared is kept for the next run
        with contextlib.suppress(OSError):
            (out / STAGING).rmdir()  # only where it is empty
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(
                f"stopped by SIGINT: finished cases are kept in {out}; the same command goes on", 130
            ) from None
        raise
    problems = _report(visits, note)
    current = sum(found.up_to_date for found in visits)
    done = f"{len(wanted) - current} cases prepared, {current} already up to date, in {out}"
    if shard:
        if not problems:
            note(f"shard {shard}: {done}; when all shards are done, the same command without --shard ends the work")
        return problems
    if problems:
        _discard(out, existed)
        return problems
    if any(found.put_aside for found in visits):
        # Before the cases are replaced, so that a run that is killed meanwhile leaves no data set of old and new ones.
        (out / DATASET).unlink(missing_ok=True)
        (out / INDEX).unlink(missing_ok=True)
    for folder in (out, out / CASES):  # of a run that was killed
        for leftover in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    (out / CASES).mkdir(parents=True, exist_ok=True)
    for case, found in zip(wanted, visits, strict=True):
        if found.put_aside:
            case_file(out / STAGING, case.case_id).replace(case_file(out / CASES, case.case_id))
    shutil.rmtree(out / STAGING, ignore_errors=True)
    paths = {case.case_id: case_file(out / CASES, case.case_id) for case in wanted}
    known = {found.case_id: found.content for found in visits if found.content}
    index = contents(out, paths, FACTORS, known=known, each=partial(pool.each, title="index"))
    training = [(case_modality[case_id], index[case_id].factors[1].classes) for case_id in parts["train"]]
    named = [(modality, [task.class_names[value] for value in values]) for modality, values in training]
    _note_missing(task, named, "training case", note)
    write_dataset(
        out,
        task=task,
        case_modality=case_modality,
        split=parts,
        split_name=split_name,
        modalities=tuple(split),
        source=source,
    )
    labels = {case_id: read_checksums(path).label for case_id, path in paths.items()}
    if alike := in_two_parts(parts, labels):
        (other, other_part), (case_id, part) = alike
        note(
            f"{other} ({other_part}) and {case_id} ({part}) have the same label map, voxel for voxel: "
            "if they are of one patient, give the CSV a patient column"
        )
    if earlier not in (None, split_name):
        note(f"the split was {earlier}, and is {split_name} now: runs trained on the earlier one need it back")
    unlisted = sorted({path.stem for path in (out / CASES).glob("*.h5")} - set(case_modality))
    if unlisted:
        note(f"in {out / CASES} from an earlier run, and no longer part of the data set: {', '.join(unlisted)}")
    note(done)
    return []


def prepare_unsplit(
    cases: Sequence[RawCase], task: Task, out: Path, *, source: str, pool: Workers, note: Note
) -> tuple[Dataset, list[Problem]]:
    """Prepares cases that a model is evaluated on, all of them as test cases; the result is no data set to train with.

    Returns:
        The data set, of which `out` holds the case files; and problems; with any of them it is not to be used.
    """
    visits = list(pool.each(partial(visit, task=task, out=out), cases, "prepare"))
    problems = _report(visits, note)
    if not problems:
        (out / STAGING).rename(out / CASES)
    modality = {case.case_id: case.modality for case in cases}
    split = {"train": (), "validation": (), "test": tuple(modality)}
    modalities = tuple(dict.fromkeys(modality.values()))
    return Dataset(out, task, modalities, modality, split, source, source), problems


def _link(path: Path, beside: Path) -> None:
    """Puts a case file aside in a second folder, unless it is not there or something is aside already.

    A hard link takes no room, and is safe because a case file is replaced as a whole and never written into.
    """
    if path.exists() and not beside.exists():
        with replacing(beside) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)


def _source(case: RawCase) -> dict[str, str]:
    """sha256 by source file, and the label values in words, because both decide the result."""
    by_name = {name: file_checksum(path) for name, path in source_names(case.files).items()}
    return by_name | {"label values": str(sorted(case.label_values.items()))}


def _current(case: RawCase, task: Task, out: Path, source: Mapping[str, str]) -> Path | None:
    """The case as prepared from these sources by this recipe: in the data set, or put aside by an interrupted run."""
    for path in (case_file(folder, case.case_id) for folder in (out / CASES, out / STAGING)):
        if is_current(path, case_id=case.case_id, modality=case.modality, task=task, source=source):
            return path
    return None


def _report(visits: Sequence[Visit], note: Note) -> list[Problem]:
    """Passes the notes on; every problem, also those that only several cases together have."""
    for text in (text for found in visits for text in found.notes):
        note(text)
    return [*(problem for found in visits for problem in found.problems), *_copies(visits)]


def _copies(visits: Iterable[Visit]) -> list[Problem]:
    """Scans that are the same voxel for voxel: in train and test they would make the test worthless."""
    by_content: dict[str, list[str]] = {}
    for found in visits:
        if found.image_sha256:
            by_content.setdefault(found.image_sha256, []).append(found.case_id)
    return [
        Problem(
            " and ".join(case_ids),
            "the same scan, voxel for voxel",
            "expected every scan once, or it could be in training and in test; leave one out (--exclude_cases)",
        )
        for case_ids in by_content.values()
        if len(case_ids) > 1
    ]


def _discard(out: Path, existed: bool) -> None:
    """Removes prepared files that were put aside, and the folder if it was made for them."""
    shutil.rmtree(out / STAGING, ignore_errors=True)
    if not existed:
        shutil.rmtree(out, ignore_errors=True)


def _check_same(out: Path, source: str, task: Task, modalities: Sequence[str], case_ids: Collection[str]) -> None:
    """Refuses to replace a data set of something else; a task's other settings may have been corrected."""
    wanted = {"source": source, "task": task.name, "classes": list(task.class_names), "modalities": list(modalities)}
    try:
        there = read_json(out / DATASET)
        found = {"source": there["source"], "task": there["task"]["name"], "classes": there["task"]["class_names"]}
        found |= {"modalities": there["modalities"]}
        cases = set(there["cases"])
    except MALFORMED:  # none, or a damaged one, which is written anew
        return
    different = [f"{name} is {found[name]}, now {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if cases.isdisjoint(case_ids):
        different.append("no case is the same")
    if different:
        raise InputError(
            f"holds another data set ({'; '.join(different)})",
            where=out,
            fix="choose another --out, or give --overwrite",
        )


def _split_name(out: Path) -> str | None:
    """Of the data set that is there; None where there is none."""
    try:
        return str(read_json(out / DATASET)["split_name"])
    except MALFORMED:
        return None


def check_space(out: Path, size_bytes: int) -> None:
    """Refuses to start where the disk has too little room.

    Raises:
        InputError: Less than `size_bytes` free where `out` is or would be.
    """
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    total, _, free = shutil.disk_usage(existing)
    if not total:
        raise InputError(
            "no place for files (a disk of 0 bytes)", where=out, fix="expected a folder; choose another --out"
        )
    if free < size_bytes:
        raise InputError(
            f"disk full, {free / 2**20:.0f} MiB free",
            where=out,
            fix=f"expected {size_bytes / 2**20:.0f} MiB; make room or choose another --out; nothing was written",
        )
