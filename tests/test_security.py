"""No file that the programs read can run code, reach beyond its folder, or take more memory than it stands for."""

from __future__ import annotations

import ast
import gzip
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from prepared_data import write_prepared_dataset

from ummkd_tf.common.documents import read_npz
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import read_case, write_case
from ummkd_tf.data.dataset import Dataset
from ummkd_tf.data.released_dataset import ReleasedDataset
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.scans.preprocessing import Prepared
from ummkd_tf.scans.reading import read_volume
from ummkd_tf.tasks import TASKS

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("ummkd_tf", "experiments", "data_prep") for p in (ROOT / folder).rglob("*.py"))
# Calls that run what they are given, or unpack objects.
FORBIDDEN = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "pickle.load",
             "pickle.loads", "marshal.loads", "shelve.open", "joblib.load", "torch.load")  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN, node.lineno
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("shell", "False") == given.get("allow_pickle", "False") == "False", node.lineno
            if ast.unparse(node.func) in ("np.load", "np.save", "np.savez", "np.savez_compressed"):
                assert given["allow_pickle"] == "False", node.lineno
            if ast.unparse(node.func).endswith("load_model") and "keras" in ast.unparse(node.func):
                assert given["safe_mode"] == "True", node.lineno


# --- no path leads out of a folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "a\0b", "a\nb", "x" * 300])
def test_no_case_id_of_a_data_set_leads_elsewhere(case_id, tmp_path):
    write_prepared_dataset(tmp_path)
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cases"][case_id] = {"modality": "ct"}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"expected (a plain name without path separators|at most 100)"):
        Dataset.load(tmp_path)


@pytest.mark.parametrize("record", ["../secret", "/etc/passwd", "a/../../b", "x" * 300])
def test_no_record_of_a_release_leads_elsewhere(record, tmp_path):
    parts = {m: {"train": [record], "validation": []} for m in ("ct", "mr")}
    content = {"task": "cardiac", "modalities": ["ct", "mr"], "records": parts, "cases": {}, "split_name": "x",
               "raw": str(tmp_path), "label_5": "ignored", "sha256": ""}  # fmt: skip
    (tmp_path / "released.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="expected a path below"):
        ReleasedDataset.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = {secret}\n"),
        ("a.mhd", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LIST\n{secret}\n"),
        ("a.mhd", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = \n"),
        ("a.mha", "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = ../below/{secret}\n"),
        ("a.nhdr", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nData File: {secret}\n\n"),
        ("a.nrrd", "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndatafile: ../{secret}\n\n"),
    ],
)
def test_no_header_leads_elsewhere(name, header, tmp_path):
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(8)))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / name).write_text(header.format(secret=secret), encoding="utf-8")
    with pytest.raises(InputError, match="expected one file in the same folder"):
        read_volume(tmp_path / "below" / name)


def test_a_data_file_beside_its_header_is_read(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(range(8)))
    place = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 1\nOffset = 0 0 0\n"
    header = (
        f"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\n{place}ElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    )
    (tmp_path / "a.mhd").write_text(header, encoding="utf-8")
    assert read_volume(tmp_path / "a.mhd").array[1, 1, 0] == 3


@pytest.fixture
def case(tmp_path):
    image = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
    grid, label = Grid(np.eye(4), image.shape), np.zeros(image.shape, np.uint8)
    prepared = Prepared(image, label, grid, grid, label)
    write_case(tmp_path / "a.h5", prepared, case_id="a", modality="ct", task=TASKS["abdomen"], source={})
    return tmp_path / "a.h5"


def outside(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    file.create_dataset("image", shape, "<f4", external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "image", shape)
    file.create_virtual_dataset("image", layout)


def promise(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    file.create_dataset("image", (20000, 20000, 20000), "<f4", chunks=(64, 64, 1))


def promise_less(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    file.create_dataset("image", (512, 512, 1000), "<f4", chunks=(64, 64, 1), compression="gzip")


def one_chunk(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    file.create_dataset("image", (256, 256, 32), "<f4", chunks=(256, 256, 32), compression="gzip")[:] = 1


def objects(file: h5py.File, shape: tuple[int, ...], folder: Path) -> None:
    file.create_dataset("image", shape, h5py.string_dtype())


@pytest.mark.parametrize("replace", [outside, virtual, promise, promise_less, one_chunk, objects])
def test_case_data_lie_in_the_file_and_are_no_larger_than_it(replace, case):
    (case.parent / "secret").write_bytes(bytes(8 * 6 * 3 * 4))
    with h5py.File(case, "r+") as file:
        shape = file["image"].shape
        del file["image"]
        replace(file, shape, case.parent)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.h5: damaged or incomplete case file"):
        read_case(case)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


# --- memory is bounded by what a file stands for ---------------------------------------------------------------------


def test_a_stream_beyond_its_header_is_left_early(tmp_path):
    """A gigabyte of zeros behind a header of 1000 voxels."""
    image = nib.Nifti1Image(np.zeros((10, 10, 10), np.int16), np.eye(4))
    image.header["vox_offset"] = 352
    with gzip.open(tmp_path / "a.nii.gz", "wb", 1) as stream:
        stream.write(image.header.binaryblock + bytes(4))
        for _ in range(1024):
            stream.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(InputError, match="more data than the header tells of"):
        read_volume(tmp_path / "a.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def zipped(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    return path


def npy(shape: tuple[int, ...], dtype: object, content: bytes) -> bytes:
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue() + content


@pytest.mark.parametrize(
    "content",
    [
        npy((10**6, 10**6), "<f8", bytes(80)),  # eight terabytes
        npy((5,), "<f2", bytes(20)),  # half of what is there: numpy.load reads it, and never comes to the checksum
        npy((2,), "O", b"\x80\x04]."),
        npy((-4,), "<f4", bytes(16)),
        b"\x93NUMPY\x01\x00",
        b"",
    ],
)
def test_arrays_fit_their_file(content, tmp_path):
    path = zipped(tmp_path / "a.npz", content)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"not a readable \.npz file of plain arrays"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.asfortranarray(np.arange(6).reshape(2, 3)), "d": np.array(3)}
    np.savez_compressed(tmp_path / "a.npz", allow_pickle=False, **arrays)
    found = read_npz(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert list(read_npz(tmp_path / "a.npz", ["c"])) == ["c"]
    with pytest.raises(KeyError, match="e"):
        read_npz(tmp_path / "a.npz", ["e"])
