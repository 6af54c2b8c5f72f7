"""Every kind of damaged or contradictory raw data gets its own line, and the prepared folder stays as it was."""

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import raw_data
import SimpleITK as sitk
from programs import program
from raw_data import CT_AFFINE, NUM_SLICES, ct, mr, snapshot, write_nifti, write_png, write_slice, z_mm

from data_prep import pipeline
from data_prep.sources.table import SOURCES, RawOptions
from data_prep.splits import Choice
from data_prep.workers import Workers
from ummkd_tf.common.documents import read_json
from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.reading import read_volume
from ummkd_tf.tasks import get_task

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """(raw folder, what was prepared from it)."""
    folder = tmp_path_factory.mktemp("healthy")
    raw_data.write_abdomen(folder / "raw")
    assert prepare(folder / "raw", folder / "out") == []
    return folder / "raw", folder / "out"


def prepare(raw, out, source="abdomen", **options):
    with Workers(1) as pool:
        problems = pipeline.prepare_source(
            SOURCES[source], RawOptions(raw=raw, **options), out, choice=Choice(), pool=pool, note=lambda text: None
        )
    return [str(problem) for problem in problems]


# --- what can be wrong with a file -----------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def change_image(raw, change):
    path = ct(raw, "img")
    write_nifti(path, change(nib.load(path).get_fdata()))


def change_label(raw, change, affine=CT_AFFINE):
    path = ct(raw, "label")
    write_nifti(path, change(nib.load(path).get_fdata().astype(np.float32)), affine)


def put(value):
    """Changes the first three voxels to a value."""

    def change(array):
        array[0, 0, :3] = value
        return array

    return change


def cast(dtype, change):
    return lambda array: change(array).astype(dtype)


def shift_affine(scale=(1, 1, 1), move=(0, 0, 0)):
    affine = CT_AFFINE @ np.diag([*scale, 1.0])
    affine[:3, 3] += move
    return affine


def slice_path(raw, number):
    return mr(raw) / f"DICOM_anon/IMG-0004-{number:05d}.dcm"


def png_path(raw, number):
    return mr(raw) / f"Ground/IMG-0004-{number:05d}.png"


def rewrite_slice(raw, number, z=None, **changes):
    shape = changes.pop("shape", raw_data.SHAPE[:2])
    position = (-130.0, -140.0, z_mm(number - 1) if z is None else z)
    write_slice(slice_path(raw, number), np.full(shape, 9), position, **changes)


def no_orientation(raw):
    path = ct(raw, "img")
    volume = nib.load(path)
    volume.header["sform_code"] = volume.header["qform_code"] = 0
    path.write_bytes(gzip.compress(volume.header.binaryblock + b"\0" * 4 + volume.get_fdata().astype("<i2").tobytes()))


def two_names(raw):
    path = ct(raw, "img")
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


def colour_png(raw):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((12, 14, 3), np.uint8), isVector=True), str(png_path(raw, 2)))


# What is wrong: (how to bring it about, the file the line must name, words of the line)
DAMAGES = {
    "truncated gzip image": (lambda raw: cut(ct(raw, "img")), "img0001.nii.gz", "damaged or truncated NIfTI"),
    "truncated gzip label": (lambda raw: cut(ct(raw, "label")), "label0001.nii.gz", "damaged or truncated NIfTI"),
    "not an image": (lambda raw: ct(raw, "img").write_bytes(b"hello" * 99), "img0001.nii.gz", "damaged or truncated"),
    "zero-byte image": (lambda raw: empty(ct(raw, "img")), "img0001.nii.gz", "empty file (0 bytes)"),
    "zero-byte label": (lambda raw: empty(ct(raw, "label")), "label0001.nii.gz", "empty file (0 bytes)"),
    "zero-byte slice": (lambda raw: empty(slice_path(raw, 3)), "IMG-0004-00003.dcm", "empty file (0 bytes)"),
    "zero-byte PNG": (lambda raw: empty(png_path(raw, 3)), "IMG-0004-00003.png", "empty file (0 bytes)"),
    "2D NIfTI": (lambda raw: change_image(raw, lambda a: a[:, :, 0]), "img0001.nii.gz", "2D image of shape (14, 12)"),
    "4D NIfTI": (lambda raw: change_image(raw, lambda a: np.stack([a, a], -1)), "img0001.nii.gz",
        "4D image of shape (14, 12, 6, 2): expected 3D"),
    "NaN": (lambda raw: change_image(raw, put(np.nan)), "img0001.nii.gz", "3 NaN or infinite voxels"),
    "Inf": (lambda raw: change_image(raw, put(np.inf)), "img0001.nii.gz", "3 NaN or infinite voxels"),
    "constant image": (lambda raw: change_image(raw, lambda a: a * 0 + 7), "img0001.nii.gz", "has the value 7 after"),
    "constant after clipping": (lambda raw: change_image(raw, lambda a: a - 1000), "img0001.nii.gz",
        "every voxel has the value -125 after clipping"),
    "no orientation": (no_orientation, "img0001.nii.gz", "no orientation (sform_code and qform_code are 0)"),
    "label fraction": (lambda raw: change_label(raw, put(2.5)), "label0001.nii.gz",
        "3 label voxels are not whole numbers (first: 2.5)"),
    "unknown label value": (lambda raw: change_label(raw, cast(np.int16, put(14))), "label0001.nii.gz",
        "unknown label value 14 (3 voxels): expected only 0–13"),
    "negative label value": (lambda raw: change_label(raw, cast(np.int16, put(-1))), "label0001.nii.gz",
        "unknown label value -1 (3 voxels)"),
    "empty label map": (lambda raw: change_label(raw, lambda a: a * 0), "label0001.nii.gz", "no voxel of any class"),
    "label of other shape": (lambda raw: change_label(raw, lambda a: a[:, :, :-1]), "label0001.nii.gz",
        "the label has shape (14, 12, 5), expected (14, 12, 6)"),
    "label of other spacing": (lambda raw: change_label(raw, lambda a: a, shift_affine(scale=(1, 1, 1.1))),
        "label0001.nii.gz", "the label has spacing 20.000 × 25.000 × 11.000 mm, expected 20.000 × 25.000 × 10.000 mm"),
    "label of other direction": (lambda raw: change_label(raw, lambda a: a, shift_affine(scale=(-1, 1, 1))),
        "label0001.nii.gz", "the label has orientation RAS, expected LAS"),
    "label in another place": (lambda raw: change_label(raw, lambda a: a, shift_affine(move=(0, 12.5, 0))),
        "label0001.nii.gz", "the label has position or direction off by 12.50 mm"),  # half a voxel
    "missing label": (lambda raw: ct(raw, "label").unlink(), "img0001.nii.gz", "no label for this image"),
    "missing image": (lambda raw: ct(raw, "img").unlink(), "label0001.nii.gz", "no image for this label"),
    "the same case twice": (two_names, "btcv/img", "the same case twice (img0001.nii and img0001.nii.gz)"),
    "two series": (lambda raw: rewrite_slice(raw, 3, series="1.2.9"), "1/T2SPIR/DICOM_anon",
        "2 series in one folder (1.2.3, 1.2.9): expected one"),
    "missing slice": (lambda raw: (slice_path(raw, 3).unlink(), png_path(raw, 3).unlink()), "1/T2SPIR/DICOM_anon",
        "20.000 mm between IMG-0004-00002.dcm and IMG-0004-00004.dcm, 10.000 mm elsewhere"),
    "duplicate position": (lambda raw: rewrite_slice(raw, 3, z=z_mm(1)), "1/T2SPIR/DICOM_anon",
        "IMG-0004-00002.dcm and IMG-0004-00003.dcm have the same position"),
    "mixed orientations": (lambda raw: rewrite_slice(raw, 3, column=(0, 0, -1)), "1/T2SPIR/DICOM_anon",
        "2 orientations in one folder"),
    "mixed sizes": (lambda raw: rewrite_slice(raw, 3, shape=(14, 13)), "1/T2SPIR/DICOM_anon",
        "2 image sizes in one folder ((14, 12), (14, 13)): expected one"),
    "mixed pixel spacings": (lambda raw: rewrite_slice(raw, 3, spacing=(20.0, 26.0)), "1/T2SPIR/DICOM_anon",
        "2 pixel spacings in one folder"),
    "not DICOM": (lambda raw: slice_path(raw, 3).write_bytes(b"hello" * 99), "IMG-0004-00003.dcm",
        "not a readable DICOM image"),
    "other ends missing": (lambda raw: (slice_path(raw, 1).unlink(), png_path(raw, NUM_SLICES).unlink()),
        "1/T2SPIR/Ground", "IMG-0004-00001.png stands where the label of IMG-0004-00002.dcm should"),
    "a PNG too few": (lambda raw: png_path(raw, 3).unlink(), "1/T2SPIR/Ground", "5 PNG files for 6 DICOM files"),
    "a PNG too many": (lambda raw: shutil.copy(png_path(raw, 3), png_path(raw, 99)), "1/T2SPIR/Ground",
        "7 PNG files for 6 DICOM files"),
    "colour PNG": (colour_png, "IMG-0004-00002.png", "a colour PNG: expected one 8-bit grey value"),
    "16-bit PNG": (lambda raw: write_png(png_path(raw, 2), np.zeros((14, 12), np.uint16)), "IMG-0004-00002.png",
        "a PNG of 16-bit unsigned integer"),
    "PNG of other size": (lambda raw: write_png(png_path(raw, 2), np.zeros((12, 12), np.uint8)), "IMG-0004-00002.png",
        "(12, 12) pixels, the scan's slices have (14, 12)"),
    "unknown grey value": (lambda raw: write_png(png_path(raw, 2), np.full((14, 12), 100, np.uint8)),
        "1/T2SPIR/Ground", "unknown label value 100 (168 voxels): expected only 0, 56–70, 111–135, 176–200, 241–255"),
    "missing Ground folder": (lambda raw: shutil.rmtree(mr(raw) / "Ground"), "1/T2SPIR/Ground", "missing folder"),
    "missing DICOM folder": (lambda raw: shutil.rmtree(mr(raw) / "DICOM_anon"), "1/T2SPIR/DICOM_anon",
        "missing folder"),
    "DICOM folder without DICOM": (lambda raw: [slice_path(raw, n).unlink() for n in range(1, NUM_SLICES + 1)],
        "1/T2SPIR/DICOM_anon", "no DICOM files"),
    "no data set at all": (lambda raw: shutil.rmtree(raw / "btcv"), "raw", "no BTCV cases found: expected img/img0001"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_gives_one_clear_line_and_changes_nothing(name, healthy, tmp_path):
    damage, file, words = DAMAGES[name]
    raw, out = shutil.copytree(healthy[0], tmp_path / "raw"), shutil.copytree(healthy[1], tmp_path / "out")
    before = snapshot(out)
    damage(raw)

    lines = prepare(raw, out)

    assert len(lines) == 1, lines
    assert "\n" not in lines[0]
    named, *rest = lines[0].split(": ")
    assert named.endswith(file)
    assert words in ": ".join(rest)
    assert rest[-1]  # the fix
    assert snapshot(out) == before


def test_each_damage_has_a_line_of_its_own():
    words = [words for _, file, words in DAMAGES.values()]
    assert {w for w in words if words.count(w) > 1} <= {
        "damaged or truncated NIfTI", "empty file (0 bytes)", "3 NaN or infinite voxels", "missing folder"
    }  # fmt: skip


def test_all_problems_are_reported_at_once_and_nothing_is_created(healthy, tmp_path):
    raw = shutil.copytree(healthy[0], tmp_path / "raw")
    empty(ct(raw, "img", "0001"))
    change_label(raw, put(2.5))
    ct(raw, "label", "0002").unlink()
    png_path(raw, 3).unlink()
    assert [line.split(": ")[0].removeprefix(str(raw)) for line in prepare(raw, tmp_path / "out")] == [
        "/btcv/img/img0002.nii.gz",
        "/btcv/img/img0001.nii.gz",
        "/btcv/label/label0001.nii.gz",
        "/chaos/Train_Sets/MR/1/T2SPIR/Ground",
    ]
    assert not (tmp_path / "out").exists()


def test_program_prints_the_lines_and_fails(healthy, tmp_path):
    raw = shutil.copytree(healthy[0], tmp_path / "raw")
    empty(ct(raw, "img"))
    for name, flags in (("verify", [f"--raw={raw}"]), ("prepare", [f"--raw={raw}", f"--out={tmp_path / 'out'}"])):
        done = program(f"data_prep.{name}", "--source=abdomen", "--workers=1", *flags)
        assert done.returncode == 1
        printed = done.stderr.splitlines()[-2:]
        assert printed == [
            f"{ct(raw, 'img')}: empty file (0 bytes): copy or download it again",
            "error: 1 problem(s), nothing was written",
        ]
    assert not (tmp_path / "out").exists()


# --- permissions and disk --------------------------------------------------------------------------------------------


def _message_as_nobody(read, path, pipe):
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        read(path)
        pipe.send("read")
    except InputError as error:
        pipe.send(str(error))


@pytest.mark.parametrize(
    ("read", "name", "words"),
    [
        (read_volume, "btcv/img/img0001.nii.gz", "not readable: check the file's permissions"),
        (read_volume, "chaos/Train_Sets/MR/1/T2SPIR/DICOM_anon", "Permission denied: check the path"),
        (DicomSeries.open, "chaos/Train_Sets/MR/1/T2SPIR/DICOM_anon/IMG-0004-00002.dcm", "not readable: check"),
    ],
)
def test_unreadable_files(read, name, words, healthy):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        raw = shutil.copytree(healthy[0], Path(folder) / "raw")
        (raw / name).chmod(0)
        context = multiprocessing.get_context("fork")  # the new user may not be allowed to start Python
        receive, send = context.Pipe(duplex=False)
        path = (raw / name).parent if read == DicomSeries.open else raw / name
        child = context.Process(target=_message_as_nobody, args=(read, path, send))
        child.start()
        message = receive.recv() if receive.poll(20) else "no answer"
        child.join(20)
        (raw / name).chmod(0o755)
    assert message.startswith(f"{raw / name}: {words}")


def test_full_disk_is_noticed_before_anything_is_written(healthy, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(InputError, match=r"out: disk full, 1 MiB free: expected \d MiB; make room"):
        prepare(healthy[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_while_writing(healthy, tmp_path, monkeypatch):
    """The case being written stays as it was, and no half file is left."""
    raw, out = shutil.copytree(healthy[0], tmp_path / "raw"), shutil.copytree(healthy[1], tmp_path / "out")
    before = snapshot(out)
    change_image(raw, lambda array: array + 1)

    def no_space(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", no_space)
    with pytest.raises(InputError, match=r"ct_0001.h5: could not be written \(No space left on device\)"):
        prepare(raw, out)
    monkeypatch.undo()
    assert snapshot(out) == before


def test_really_full_disk(healthy, tmp_path, monkeypatch):
    """A small file system in memory, where the machine lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")
    try:
        case = SOURCES["btcv"].find(RawOptions(raw=healthy[0])).cases[0]
        with pytest.raises(InputError, match="disk full, 0 MiB free"):
            prepare(healthy[0], disk / "out")
        assert list(disk.iterdir()) == []
        (disk / "filler").write_bytes(os.urandom(60_000))
        with pytest.raises(InputError, match=r"ct_0001.h5: could not be written \(No space left on device\)"):
            monkeypatch.setattr(pipeline, "check_space", lambda out, size: None)
            pipeline.visit(case, get_task("abdomen"), disk / "out")
        assert list((disk / "out" / pipeline.STAGING).iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# --- own data --------------------------------------------------------------------------------------------------------

HEADER = "case,modality,image,label,split"
ROWS = [
    *(f"ct_{n},ct,btcv/img/img{n}.nii.gz,btcv/label/label{n}.nii.gz," for n in raw_data.CT_IDS),
    *(f"t2_{n},t2,t2/img{n}.nii.gz,t2/label{n}.nii.gz," for n in raw_data.CT_IDS),
]
LABEL_MAP = {"6": "liver", "2": 2, "3": "left_kidney", "1": "spleen"}
# What is wrong: (lines of the CSV, label map, start of the line, words of the line)
CSV_DAMAGES = {
    "no such image": ([HEADER, *ROWS[1:], ROWS[0].replace("img0001", "img0099")], LABEL_MAP, "own.csv line 7",
        "btcv/img/img0099.nii.gz does not exist: correct the path"),
    "no label named": ([HEADER, *ROWS[1:], "ct_0001,ct,btcv/img/img0001.nii.gz,,"], LABEL_MAP, "own.csv line 7",
        "no label: give one, or remove the row"),
    "the same case twice": ([HEADER, *ROWS, ROWS[0]], LABEL_MAP, "own.csv line 8", "the same case twice (ct_0001)"),
    "columns": ([HEADER.replace("split", "part"), *ROWS], LABEL_MAP, "own.csv",
        "columns case,modality,image,label,part"),
    "semicolons": ([line.replace(",", ";") for line in (HEADER, *ROWS)], LABEL_MAP, "own.csv",
        "save the table with commas, not semicolons"),
    "unknown class behind blanks": ([HEADER.replace(",", " , "), *ROWS], LABEL_MAP | {"6": "lever"}, "map.json",
        "6 → 'lever': expected a class, one of"),
    "no header": (ROWS, LABEL_MAP, "own.csv", "expected case,modality,image,label and, if wanted, split"),
    "empty CSV": ([], LABEL_MAP, "own.csv", "columns missing"),
    "too few fields": ([HEADER, *ROWS, "a,b"], LABEL_MAP, "own.csv line 8", "not 5 fields"),
    "unknown part": ([HEADER, *(row + "test" for row in ROWS[1:]), ROWS[0] + "testing"], LABEL_MAP, "own.csv line 7",
        "split 'testing'"),
    "split half filled": ([HEADER, *ROWS[1:], ROWS[0] + "test"], LABEL_MAP, "own.csv",
        "no split for ct_0002, ct_0003,"),
    "path as a name": ([HEADER, *ROWS, "../x" + ROWS[0][7:]], LABEL_MAP, "own.csv line 8", "case name '../x'"),
    "odd modality": ([HEADER, *ROWS, ROWS[0].replace("ct_0001,ct", "x,c/t")], LABEL_MAP, "own.csv line 8",
        "modality 'c/t'"),
    "unknown class": ([HEADER, *ROWS], LABEL_MAP | {"6": "lever"}, "map.json", "6 → 'lever': expected a class, one of"),
    "class out of range": ([HEADER, *ROWS], LABEL_MAP | {"6": 5}, "map.json", "6 → 5: expected a class, one of"),
    "map of other kind": ([HEADER, *ROWS], [6, 2, 3, 1], "map.json", "not a label map"),
    "no number": ([HEADER, *ROWS], {"six": "liver"}, "map.json", "'six' stands where a label value"),
    "one value twice": ([HEADER, *ROWS], {"6": "liver", "06": "spleen"}, "map.json",
        "a label value stands there twice"),
    "0 as a class": ([HEADER, *ROWS], LABEL_MAP | {"0": "liver"}, "map.json",
        "0 is 'liver', but in label files it is background"),
    "a patient's name in two ways": (
        [f"{HEADER},patient", *(f"{row},{row[:4]}" for row in ROWS[1:]), f"{ROWS[0]},CT_0"], LABEL_MAP,
        "own.csv", "patient ct_0 and patient CT_0: write one patient's name alike"),
    "too large a value": ([HEADER, *ROWS], {"70000": "liver"}, "map.json",
        "where a label value from 0 to 65535 should"),
    "no label map": ([HEADER, *ROWS], None, "label0001.nii.gz", "unknown label value 6"),
}  # fmt: skip


@pytest.mark.parametrize("name", CSV_DAMAGES)
def test_damaged_csv_gives_a_clear_line_and_writes_nothing(name, healthy, tmp_path):
    lines, label_map, file, words = CSV_DAMAGES[name]
    (tmp_path / "btcv").symlink_to(healthy[0] / "btcv")
    (tmp_path / "t2").mkdir()
    for number, case in enumerate(raw_data.CT_IDS):
        write_nifti(tmp_path / f"t2/img{case}.nii.gz", raw_data.image(100 + number))
        shutil.copy(tmp_path / f"btcv/label/label{case}.nii.gz", tmp_path / "t2")
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    map_file = None if label_map is None else tmp_path / "map.json"
    if map_file:
        map_file.write_text(json.dumps(label_map), encoding="utf-8")

    problems = prepare(None, tmp_path / "out", "csv", csv=tmp_path / "own.csv", label_map=map_file, task="abdomen")

    assert len(problems) == (6 if name == "no label map" else 1), problems
    named, *rest = problems[0].split(": ")
    assert named.endswith(file)
    assert words in ": ".join(rest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("btcv", {}, "--raw: no folder given: expected"),
        ("csv", {"task": "abdomen"}, "--csv: no file given: expected"),
    ],
)
def test_missing_flag_is_a_problem(source, options, message, tmp_path):
    (problem,) = prepare(None, tmp_path / "out", source, **options)
    assert problem.startswith(message)


def test_task_that_is_not_the_sources(tmp_path):
    with pytest.raises(InputError, match="--task=cardiac: expected abdomen for btcv"):
        prepare(tmp_path, tmp_path / "out", "btcv", task="cardiac")
    with pytest.raises(InputError, match="no task: --source=csv can be prepared for any; give --task"):
        prepare(tmp_path, tmp_path / "out", "csv")


def test_a_json_document_with_a_key_twice_is_refused(tmp_path):
    """Python's own parser takes the last one."""
    (tmp_path / "map.json").write_text('{"1": "liver", "1": "spleen"}', encoding="utf-8")
    with pytest.raises(ValueError, match="'1' stands there twice"):
        read_json(tmp_path / "map.json")
