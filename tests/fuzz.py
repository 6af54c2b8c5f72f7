"""Feeds the project's readers with damaged files and counts what becomes of them (`make fuzz`).

Small valid files of every format are mutated: bytes flipped, blocks zeroed, doubled, inserted or cut off, header values
set to extremes, and the same behind a checksum made anew ("resealed"), as a forger would. A process of its own reads
each, with 2 GiB of memory beyond its start and 10 seconds. Fine are: one clear line, the same content, and other
content where no checksum can tell. Everything else is a bug, and its file is kept.

Then come valid but odd headers (odd_headers.py), each of which must end in the right geometry or a refusal.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import odd_headers
import raw_data
import SimpleITK as sitk
from recorded_runs import run_config

from data_prep import splits
from data_prep.sources import csv_list as own
from ummkd_tf.common.cli import start_tensorflow
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import read_case, read_checksums, write_case
from ummkd_tf.data.dataset import write_dataset
from ummkd_tf.data.opening import open_dataset
from ummkd_tf.released.records import read_record
from ummkd_tf.released.test_volumes import read_test_volume
from ummkd_tf.runs.folder import read_run
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.itk import read_png
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.scans.reading import read_volume
from ummkd_tf.tasks import TASKS

SECONDS, MEMORY = 10.0, 2 * 2**30
CLEAR, SAME, OTHER = "clear line", "same content", "other content, no checksum"
SILENT, TRACEBACK, HANG, TOO_LARGE, CRASH = "other content despite a checksum", "traceback", "hang", "memory", "crash"
OUTCOMES = (CLEAR, SAME, OTHER, SILENT, TRACEBACK, HANG, TOO_LARGE, CRASH)
BUGS = (SILENT, TRACEBACK, HANG, TOO_LARGE, CRASH)

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        make: Writes a valid file, and whatever it needs beside it, to a folder; returns the file.
        read: The project's reader of that file; arrays and numbers that can be compared.
        sealed: A checksum covers the whole content.
        reseal: Applies a mutation to what the checksum covers, and makes the checksum fit again.
        text: Whether tokens can be replaced.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    sealed: bool = False
    reseal: Callable[[bytes, Mutation, np.random.Generator], bytes] | None = None
    text: bool = False


# --- mutations -------------------------------------------------------------------------------------------------------


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = int(rng.integers(len(data)))
    return start, start + int(rng.integers(1, max(2, min(4096, len(data) - start + 1))))


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut_off(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def double(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:stop] + data[start:stop] + data[stop:]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 65))) + data[place:]


def header(data: bytes, rng: np.random.Generator) -> bytes:
    """Extreme numbers at the start of the file, where sizes and types are."""
    number = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 30000]
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.choice(["<B", "<H", ">H", "<I", ">I", "<f", "<Q"])
        size = struct.calcsize(kind)
        value = int(rng.choice(number)) & (256**size - 1)
        place = int(rng.integers(max(1, min(len(data), 400) - size)))
        changed[place : place + size] = struct.pack(
            kind, float(rng.choice([np.nan, np.inf, -1, 1e30, 3e9])) if kind == "<f" else value
        )
    return bytes(changed)


def token(data: bytes, rng: np.random.Generator) -> bytes:
    """Another value in the place of a word or number of a text."""
    values = ["", "null", "-1", "0", "1e999", "9" * 5000, "[" * 5000, '"', "{}", '"\\ud800"', '"a\\u0000b"', "\n",
              "x" * 300, '"../../x"', "\u2028", ",,,,", '"' + "y" * 3000 + '"', "NaN", "true"]  # fmt: skip
    text = data.decode(errors="replace")
    spans = [match.span() for match in re.finditer(r'"[^"]*"|[\w.+-]+|[\[\]{},:]', text)] or [(0, 0)]
    start, stop = spans[int(rng.integers(len(spans)))]
    return (text[:start] + values[int(rng.integers(len(values)))] + text[stop:]).encode(errors="surrogatepass")


BINARY = (flip, cut_off, zero, double, insert, header, header)
TEXT = (token, token, token, token, flip, cut_off, double, insert)


def in_gzip(data: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    return gzip.compress(mutate(gzip.decompress(data), rng), mtime=0)


def in_png(data: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    chunks, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += size + 12
    which = int(rng.integers(len(chunks) - 1))
    chunks[which] = (chunks[which][0], mutate(chunks[which][1], rng))
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return data[:8] + b"".join(packed)


def in_zip(data: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        which = rng.choice(old.namelist())
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info, mutate(content, rng) if info.filename == which else content, info.compress_type)
    return buffer.getvalue()


# --- the formats -----------------------------------------------------------------------------------------------------


def _scan(depth: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (14, 12, depth)).astype(np.int16)


def _nifti(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = nib.Nifti1Image(_scan(), np.diag([2.0, 2.0, 5.0, 1.0]))
        nib.save(image, folder / f"a{suffix}")
        return folder / f"a{suffix}"

    return make


def _itk(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(_scan()), str(folder / f"a{suffix}"), useCompression=False)
        return folder / f"a{suffix}"

    return make


def _dicom(folder: Path) -> Path:
    for k in range(3):
        raw_data.write_slice(folder / f"{k}.dcm", _scan()[:, :, k], (0, 0, 10.0 * k))
    return folder / "1.dcm"


def _png(folder: Path) -> Path:
    raw_data.write_png(folder / "a.png", _scan()[:, :, 0].astype(np.uint8))
    return folder / "a.png"


def _case(folder: Path) -> Path:
    image = _scan().astype(np.float32)
    grid, label = Grid(np.diag([1.5, 1.5, 8.0, 1.0]), image.shape), (image > 99).astype(np.uint8)
    prepared = Prepared(image, label, grid, grid, label)
    write_case(folder / "a.h5", prepared, case_id="a", modality="ct", task=TASKS["abdomen"], source={"a.nii": "00"})
    return folder / "a.h5"


def _read_case(path: Path) -> Any:
    case = read_case(path, original_label=True)
    return (
        *(case.case_id, case.modality, case.image, case.label, case.grid.affine, case.original.affine),
        *(case.original.shape, case.original_label, read_checksums(path)),
    )


def _index(folder: Path) -> Path:
    from ummkd_tf.data.index import INDEX, content_of, write_index

    write_index(folder, {"a": content_of(_case(folder), (1, 2))})
    return folder / INDEX


def _read_index(path: Path) -> Any:
    from ummkd_tf.data.index import read_index

    return sorted((c, *vars(content).values()) for c, content in read_index(path.parent).items())


def _dataset(folder: Path) -> Path:
    split = {p: [f"{m}_{n}" for m in ("ct", "mr")] for n, p in enumerate(("train", "validation", "test"))}
    ids = [c for part in split.values() for c in part]
    (folder / "cases").mkdir()
    for case_id in ids:
        (folder / f"cases/{case_id}.h5").touch()
    modality = {c: c[:2] for c in ids}
    write_dataset(folder, task=TASKS["abdomen"], case_modality=modality, split=split, split_name="x")
    return folder / "dataset.json"


def _read_dataset(path: Path) -> Any:
    dataset = open_dataset(path.parent)
    return dataset.modalities, dataset.split, dict(dataset.case_modality), dataset.split_checksum


def _split(folder: Path) -> Path:
    part = {p: [f"ct_{n}"] for n, p in enumerate(("train", "validation", "test"))}
    content = {"name": "x", "description": "", "folds": [{"ct": part, "mr": part}]}
    (folder / "split.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "split.json"


def _read_split(path: Path) -> Any:
    return splits.read(str(path))


def _run(folder: Path) -> Path:
    record: dict[str, Any] = {"setting": {"title": "Ours"}, "environment": {"commit": "0"}}
    record |= dict.fromkeys(("task", "data_dir", "split_name", "split_sha256"), "abdomen")
    record |= {
        "flags": run_config().to_dict(),
        "model": {"modalities": ["ct", "mr"]},
        "seed": 0,
        "seconds": 1.5,
        "status": "finished",
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder / "run.json"


def _read_run(path: Path) -> Any:
    return read_run(path.parent)


def _csv(folder: Path) -> Path:
    (folder / "scan.nii.gz").touch()
    rows = [f"{m}_{n},{m},scan.nii.gz,scan.nii.gz,{p}" for m in ("ct", "mr") for n, p in enumerate(("train", "test"))]
    (folder / "own.csv").write_text("\n".join(["case,modality,image,label,split", *rows]) + "\n", encoding="utf-8")
    return folder / "own.csv"


def _read_csv(path: Path) -> Any:
    found = own.find(path, TASKS["abdomen"])
    if found.problems:
        raise InputError(str(found.problems[0]))
    return [(c.case_id, c.modality, str(c.image), str(c.label)) for c in found.cases], found.split


def _record(folder: Path) -> Path:
    import tensorflow as tf

    values = {f"{k}size_dim{axis}": n for k in "dl" for axis, n in enumerate((256, 256, 3))}
    features = {k: tf.train.Feature(int64_list=tf.train.Int64List(value=[n])) for k, n in values.items()}
    for name in ("data_vol", "label_vol"):
        features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(4 * 256 * 256 * 3)]))
    with tf.io.TFRecordWriter(str(folder / "a.tfrecords")) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return folder / "a.tfrecords"


def _read_record(path: Path) -> Any:
    return read_record(path)


def _volume(folder: Path) -> Path:
    image = np.arange(256 * 256 * 2, dtype=np.float32).reshape(256, 256, 2) % 7
    np.savez_compressed(folder / "a.npz", image, image % 5)
    return folder / "a.npz"


def _read_volume(path: Path) -> Any:
    return read_test_volume(path)


def _checkpoint(folder: Path) -> Path:
    meta = np.frombuffer(json.dumps({"step": 3, "best_dice": 0.5, "best_step": 2}).encode(), np.uint8)
    weights = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    np.savez(folder / "a.npz", allow_pickle=False, meta=meta, **{"model/a/kernel": weights, "optimizer/iteration": 3})
    return folder / "a.npz"


def _read_checkpoint(path: Path) -> Any:
    from ummkd_tf.runs.checkpoints import read_checkpoint

    arrays, progress = read_checkpoint(path)
    return sorted(arrays.items()), vars(progress)


def _read_image(path: Path) -> Any:
    volume = read_volume(path)
    return volume.array, volume.affine


def _read_series(path: Path) -> Any:
    return _read_image(path.parent)


def _read_png(path: Path) -> Any:
    return read_png(path)


FORMATS = {
    "NIfTI .nii.gz": Format(_nifti(".nii.gz"), _read_image, sealed=True, reseal=in_gzip),
    "NIfTI .nii": Format(_nifti(".nii"), _read_image),
    "NRRD": Format(_itk(".nrrd"), _read_image),
    "MetaImage": Format(_itk(".mha"), _read_image),
    "DICOM": Format(_dicom, _read_series),
    "PNG": Format(_png, _read_png, sealed=True, reseal=in_png),
    "HDF5 case": Format(_case, _read_case, sealed=True),
    "tfrecord": Format(_record, _read_record, sealed=True),
    "npz volume": Format(_volume, _read_volume, sealed=True, reseal=in_zip),
    "npz checkpoint": Format(_checkpoint, _read_checkpoint, sealed=True, reseal=in_zip),
    "dataset.json": Format(_dataset, _read_dataset, text=True),
    "index.json": Format(_index, _read_index, text=True),
    "split file": Format(_split, _read_split, text=True),
    "run.json": Format(_run, _read_run, text=True),
    "own.csv": Format(_csv, _read_csv, text=True),
}


# --- reading in a process of its own ---------------------------------------------------------------------------------


def fingerprint(value: Any) -> str:
    """One checksum over arrays, with type and shape, and everything else as text."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, np.ndarray):
            digest.update(f"{item.dtype}{item.shape}".encode() + np.ascontiguousarray(item).tobytes())
        elif isinstance(item, (tuple, list)):
            for part in item:
                add(part)
        else:
            digest.update(repr(item).encode(errors="surrogatepass"))

    add(value)
    return digest.hexdigest()


def attempt(read: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    """(outcome, message or fingerprint) of reading one file; `OTHER` stands for any content."""
    try:
        return OTHER, fingerprint(read(path))
    except InputError as error:
        clear = str(error).isprintable() and str(error).count(": ") > 0
        return (CLEAR if clear else TRACEBACK), str(error)
    except MemoryError as error:
        return TOO_LARGE, repr(error)
    except Exception as error:
        return TRACEBACK, repr(error)


def _serve(pipe: Any, formats: dict[str, Format]) -> None:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    if formats is FORMATS:
        start_tensorflow()
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    pipe.send("ready")
    while True:
        name, path = pipe.recv()
        pipe.send(attempt(formats[name].read, path))


class Reader:
    """A process that reads files, started again when it is lost."""

    def __init__(self, formats: dict[str, Format] | None = None, seconds: float = SECONDS) -> None:
        self._formats, self._seconds = formats, seconds
        self._process: Any = None

    def __call__(self, name: str, path: Path) -> tuple[str, str]:
        if self._process is None:
            self._pipe, theirs = multiprocessing.Pipe()
            context = multiprocessing.get_context("fork" if self._formats else "spawn")
            self._process = context.Process(target=_start, args=(theirs, self._formats), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()  # imports take their time
        self._pipe.send((name, path))
        try:
            if self._pipe.poll(self._seconds):
                return self._pipe.recv()
            outcome = HANG, f"no answer after {self._seconds:g} s"
        except (EOFError, ConnectionError):
            self._process.join()
            outcome = CRASH, f"exit code {self._process.exitcode}"
        self.stop()
        return outcome

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()
            self._process = None


def _start(pipe: Any, formats: dict[str, Format] | None) -> None:
    _serve(pipe, formats or FORMATS)


def fuzz_one(
    fmt: Format, name: str, file: Path, original: bytes, wanted: str, reader: Reader, seed: list[int]
) -> tuple[str, str]:
    """Mutates one file in place and reads it."""
    rng = np.random.default_rng(seed)
    mutations = TEXT if fmt.text else BINARY
    mutate = mutations[int(rng.integers(len(mutations)))]
    resealed = fmt.reseal is not None and rng.random() < 0.5
    changed = fmt.reseal(original, mutate, rng) if fmt.reseal and resealed else mutate(original, rng)
    file.write_bytes(changed)
    outcome, message = reader(name, file)
    if outcome == OTHER:
        outcome = SAME if message == wanted else SILENT if fmt.sealed and not resealed else OTHER
    return outcome, message


def fuzz(
    formats: dict[str, Format], files: int, seed: int, keep: Path, reader: Reader, log: Any = None
) -> dict[str, Counter[str]]:
    """Counts of outcomes by format; `files` in all, alike for each format."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in formats}
    with tempfile.TemporaryDirectory() as place:
        for number, (name, fmt) in enumerate(formats.items()):
            folder = Path(place, str(number))
            folder.mkdir()
            file = fmt.make(folder)
            original = file.read_bytes()
            reader.stop()  # a new process for each format, since libraries keep memory
            outcome, wanted = reader(name, file)
            if outcome != OTHER:
                raise SystemExit(f"{name}: the valid file is not read: {wanted}")
            for n in range(number, files, len(formats)):
                outcome, message = fuzz_one(fmt, name, file, original, wanted, reader, [seed, n])
                counts[name][outcome] += 1
                if outcome in BUGS:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept = keep / f"{name.replace(' ', '_')}-{seed}-{n}{file.suffix}"
                    shutil.copy(file, kept)
                    print(f"{outcome}: {kept}: {message[:200]}", file=log, flush=True)
    return counts


def table(counts: dict[str, Counter[str]], outcomes: Sequence[str] = OUTCOMES) -> str:
    rows = [["format", *outcomes, "files"]]
    rows += [[name, *(str(of[o]) for o in outcomes), str(of.total())] for name, of in counts.items()]
    total = sum(counts.values(), Counter())
    rows.append(["all", *(str(total[o]) for o in outcomes), str(total.total())])
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def _odd_headers(headers: int, seed: int) -> dict[str, Counter[str]]:
    logging.getLogger("ummkd_tf").setLevel(logging.ERROR)  # notes
    warnings.simplefilter("ignore")  # pydicom's remarks on the odd values
    stderr = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, tempfile.TemporaryDirectory() as folder:
        os.dup2(nowhere.fileno(), 2)  # and ITK's
        try:
            counts, bugs = odd_headers.fuzz(headers, seed, Path(folder))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    for bug in bugs:
        print(bug)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000, help="mutated files in all")
    parser.add_argument("--headers", type=int, default=2000, help="odd headers in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default="", help="comma-separated; all by default")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="folder for the files that show a bug")
    parser.add_argument("--out", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    chosen = {n: f for n, f in FORMATS.items() if not arguments.formats or n in arguments.formats.split(",")}
    started, reader = time.monotonic(), Reader()
    counts = fuzz(chosen, arguments.files, arguments.seed, arguments.keep, reader)
    reader.stop()
    bugs = sum(of[o] for of in counts.values() for o in BUGS)
    print(table(counts))
    print(f"{bugs} bugs; seed {arguments.seed}, {time.monotonic() - started:.0f} s\n")
    odd = _odd_headers(arguments.headers, arguments.seed)
    silent = sum(of[odd_headers.SILENT] for of in odd.values())
    bugs += sum(of[o] for of in odd.values() for o in odd_headers.BUGS)
    print(table(odd, odd_headers.OUTCOMES))
    print(f"{silent} silent errors; seed {arguments.seed}, {time.monotonic() - started:.0f} s")
    if arguments.out:
        content = {
            "seed": arguments.seed,
            "seconds": round(time.monotonic() - started),
            "counts": counts,
            "odd headers": odd,
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if bugs else 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
