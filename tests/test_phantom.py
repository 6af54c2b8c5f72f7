"""The phantom generator: bytes, layouts, geometry and glitches, read back with nibabel and SimpleITK alone."""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from programs import program

from data_prep.phantom import __main__ as phantom
from data_prep.phantom import layouts, sets, templates
from data_prep.phantom.patient import Anatomy, PhantomCase, Solid, Waves, draw_anatomy
from data_prep.phantom.templates import ABDOMEN, CARDIAC
from ummkd_tf.common.errors import InputError
from ummkd_tf.scans.geometry import Grid

SEED = 5
SIZE = 40  # pixels of about 9 mm (abdomen) or 5 to 8 mm (cardiac)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "abdomen"
    sets.write_abdomen(out, num_ct=3, num_mr=4, seed=SEED, size=SIZE, t1=True, outlier_ct=True)
    return out


@pytest.fixture(scope="module")
def cardiac(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "cardiac"
    sets.write_cardiac(out, num_ct=3, num_mr=3, seed=SEED, size=SIZE)
    return out


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_nifti(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def centroid_ras(mask, affine):
    return nib.affines.apply_affine(affine, np.argwhere(mask).mean(axis=0))


def patient(out, case_id, scan="T2SPIR"):
    return out / "chaos/Train_Sets/MR" / case_id / scan


def header(path):
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def position(path):
    return np.array(header(path).GetMetaData("0020|0032").split("\\"), float)


def read_chaos(out, case_id, scan="T2SPIR", subfolder=""):
    """Image and PNG stack [i, j, k] by ascending z, and the RAS affine, without the code under test."""
    home = patient(out, case_id, scan)
    files = sorted((home / "DICOM_anon" / subfolder).iterdir())
    pngs = sorted((home / "Ground").iterdir())
    order = np.argsort([position(f)[2] for f in files])
    image = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(files[n])))[0].T for n in order], axis=-1)
    label = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(pngs[n]))).T for n in order], axis=-1)
    first, last = position(files[order[0]]), position(files[order[-1]])
    spacing = header(files[0]).GetSpacing()
    affine = np.diag([-spacing[0], -spacing[1], (last - first)[2] / (len(files) - 1), 1.0])
    affine[:3, 3] = first * (-1, -1, 1)
    return image, label, affine


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [sets.write_abdomen, sets.write_cardiac])
def test_same_seed_gives_the_same_bytes_at_another_time(tmp_path, monkeypatch, write):
    arguments = {"num_ct": 1, "num_mr": 1, "size": 24, "outlier_ct": True}
    write(tmp_path / "first", seed=3, **arguments)
    for dicom in (tmp_path / "first").rglob("*.dcm"):
        header(dicom)  # see the tags of _DicomSeries
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 4e8)
    write(tmp_path / "second", seed=3, **arguments)
    write(tmp_path / "other", seed=4, **arguments)

    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert len(first) > 5
    assert first == second
    # a black PNG is the same for every seed
    scans = [{d for name, d in which.items() if not name.endswith(".png")} for which in (first, other)]
    assert not scans[0] & scans[1]


def test_files_carry_no_clock(abdomen):
    packed = (abdomen / "btcv/img/img0001.nii.gz").read_bytes()
    assert packed[:2] == b"\x1f\x8b"
    assert packed[4:8] == bytes(4)  # the gzip header's time
    assert packed[3] == 0  # no file name in it either
    dicom = header(patient(abdomen, "1") / "DICOM_anon/IMG-0004-00001.dcm")
    assert dicom.GetMetaData("0008|0020") == "20180101"
    dated = [k for k in dicom.GetMetaDataKeys() if time.strftime("%Y%m%d") in dicom.GetMetaData(k)]
    assert not dated


@pytest.mark.parametrize(("write", "fixture"), [(sets.write_abdomen, "abdomen"), (sets.write_cardiac, "cardiac")])
def test_a_case_does_not_depend_on_the_number_of_cases(tmp_path, request, write, fixture):
    write(tmp_path / "few", num_ct=1, num_mr=2, seed=SEED, size=SIZE)
    few, many = digests(tmp_path / "few"), digests(request.getfixturevalue(fixture))
    del few["phantom.json"]
    assert few.items() <= many.items()


def test_cases_differ(abdomen, cardiac):
    for folder, pattern in (
        (abdomen, "btcv/label/*"),
        (abdomen, "chaos/Train_Sets/MR/*/T2SPIR/Ground/IMG-0004-00015.png"),
        (cardiac, "*/*_label.nii.gz"),
    ):
        files = list(folder.glob(pattern))
        assert len(files) >= 4
        assert len({hashlib.sha256(f.read_bytes()).hexdigest() for f in files}) == len(files)


# --- layouts and labels ----------------------------------------------------------------------------------------------


def test_btcv_layout(abdomen):
    ids = ("0001", "0002", "0003", "0004")  # three and the outlier
    assert sorted(p.name for p in (abdomen / "btcv/img").iterdir()) == [f"img{n}.nii.gz" for n in ids]
    assert sorted(p.name for p in (abdomen / "btcv/label").iterdir()) == [f"label{n}.nii.gz" for n in ids]
    values = set()
    for case_id in ids:
        image, affine = read_nifti(abdomen / f"btcv/img/img{case_id}.nii.gz")
        label, _ = read_nifti(abdomen / f"btcv/label/label{case_id}.nii.gz")
        assert (image.dtype, label.dtype) == (np.int16, np.uint8)
        assert image.shape == label.shape
        assert nib.aff2axcodes(affine) == ("L", "A", "S")
        assert affine[2, 2] == (5 if case_id == "0003" else 3)
        assert {1, 2, 3, 6} <= set(np.unique(label))
        values |= set(np.unique(label).tolist())
        assert abs(image[0, -1].mean() + 1000) < 100  # air beside the patient
    assert values == {0, 1, 2, 3, 4, 6, 7, 8, 9}


def test_chaos_layout(abdomen):
    assert {p.name for p in (abdomen / "chaos/Train_Sets/MR").iterdir()} == {"1", "2", "3", "5"}
    for case_id in ("1", "2", "3", "5"):
        home = patient(abdomen, case_id)
        dicom = sorted(p.name for p in (home / "DICOM_anon").iterdir())
        assert dicom == [f"IMG-0004-{n:05d}.dcm" for n in range(1, len(dicom) + 1)]
        assert sorted(p.stem for p in (home / "Ground").iterdir()) == [Path(n).stem for n in dicom]
        for png in (home / "Ground").iterdir():
            picture = sitk.ReadImage(str(png))
            assert picture.GetPixelID() == sitk.sitkUInt8
        image, label, _ = read_chaos(abdomen, case_id)
        assert set(np.unique(label)) == {0, 63, 126, 189, 252}
        assert image.dtype == np.uint16
        assert 500 < image.max() <= 4095


def test_chaos_t1_layout(abdomen):
    home = patient(abdomen, "1", "T1DUAL")
    in_phase, out_phase, ground = (
        sorted(p.stem for p in (home / folder).iterdir())
        for folder in ("DICOM_anon/InPhase", "DICOM_anon/OutPhase", "Ground")
    )
    assert in_phase[:2] == ["IMG-0004-00002", "IMG-0004-00004"]
    assert out_phase[:2] == ["IMG-0004-00001", "IMG-0004-00003"]
    assert ground == in_phase
    image_in, label, _ = read_chaos(abdomen, "1", "T1DUAL", "InPhase")
    image_out, _, _ = read_chaos(abdomen, "1", "T1DUAL", "OutPhase")
    liver = label == 63
    assert image_in[liver].mean() > 1.15 * image_out[liver].mean()  # 0.56 against 0.44 of one gain


def test_t1_is_left_out_by_default(tmp_path):
    sets.write_abdomen(tmp_path / "set", num_ct=0, num_mr=1, seed=0, size=16)
    assert {p.name for p in patient(tmp_path / "set", "1").parent.iterdir()} == {"T2SPIR"}
    assert not (tmp_path / "set/btcv").exists()


def test_mmwhs_layout(cardiac):
    axes = []
    for modality in ("ct", "mr"):
        for case_id in ("1001", "1002", "1003"):
            stem = cardiac / f"{modality}_train/{modality}_train_{case_id}"
            image, affine = read_nifti(f"{stem}_image.nii.gz")
            label, label_affine = read_nifti(f"{stem}_label.nii.gz")
            assert image.shape == label.shape
            assert np.array_equal(affine, label_affine)
            values = set(np.unique(label).tolist())
            odd = {421} if (modality, case_id) == ("mr", "1001") else set()
            assert values == {0, 205, 420, 500, 550, 600, 820, 850} | odd
            assert np.count_nonzero(label == 421) == 5 * len(odd)
            axes.append("".join(nib.aff2axcodes(affine)))
    assert len(list(cardiac.rglob("*.nii.gz"))) == 12
    assert len(set(axes)) == 6  # another orientation in each case
    assert len({a.translate(str.maketrans("LPI", "RAS")) for a in axes}) > 2  # and not flips alone


def test_manifest(abdomen):
    manifest = json.loads((abdomen / "phantom.json").read_text(encoding="utf-8"))
    assert manifest["cases"] == {"ct": ["0001", "0002", "0003", "0004"], "mr": ["1", "2", "3", "5"]}
    assert manifest["outlier_ct"] == "0004"
    assert manifest["shared_intensities"]["ct"] == [["liver", "spleen"], ["right_kidney", "left_kidney"]]
    assert manifest["shared_intensities"]["t2spir"] == [["right_kidney", "left_kidney"]]
    assert manifest["glitches"] == {"label_header_noise": {"ct": "0002"}, "wrong_slice_thickness": {"mr": "2"}}
    assert manifest["seed"] == SEED
    assert manifest["options"] == {
        "size": SIZE,
        "t1": True,
        "anticorrelated_mr": False,
        "low_resolution_mr": 1.0,
    }


# --- geometry --------------------------------------------------------------------------------------------------------


def test_a_ball_is_where_its_coordinates_say():
    ball = Solid(
        1, np.array([5.0, -5.0, 10.0]), np.eye(3) / 10, cap=0.5, bump=0.0, frequencies=np.ones(3), phases=np.ones(3)
    )
    still = Waves(np.zeros((3, 3)), np.zeros(3))
    anatomy = Anatomy(ABDOMEN, np.eye(4), (ball,), still, warp_mm=0.0)
    # index (i, j, k) → world (−2k + 30, i − 31, −j + 27)
    affine = np.array([[0, 0, -2, 30], [1, 0, 0, -31], [0, -1, 0, 27], [0, 0, 0, 1]], float)
    tissues = anatomy.tissue_map(Grid(affine, (50, 40, 30)))

    i, j, k = np.indices((50, 40, 30))
    x, y, z = -2 * k + 30, i - 31, -j + 27
    # the ball, cut off half a radius above its centre
    expected = ((x - 5) ** 2 + (y + 5) ** 2 + (z - 10) ** 2 < 100) & (z < 15)
    assert np.array_equal(tissues == 1, expected)
    assert expected.sum() > 1000


def test_anatomy_does_not_depend_on_the_grid():
    anatomy = draw_anatomy(CARDIAC, PhantomCase(SEED, "cardiac", "ct", "1001"))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = anatomy.world_from_patient[:3, 3] - 90
    plain = anatomy.tissue_map(Grid(affine, (45, 46, 47)))
    # axes (k, i, j), the second one flipped
    turned = affine @ np.array([[0, -1, 0, 44], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    again = anatomy.tissue_map(Grid(turned, (47, 45, 46)))
    assert np.mean(plain.transpose(2, 0, 1)[:, ::-1] != again) < 1e-4  # rounding at the surfaces


@pytest.mark.parametrize("case_id", ["0001", "0002", "0003", "0004"])
def test_btcv_sides_and_volumes(abdomen, case_id):
    label, affine = read_nifti(abdomen / f"btcv/label/label{case_id}.nii.gz")
    check_sides_and_volumes(label, affine, layouts.BTCV_LABELS)


@pytest.mark.parametrize("case_id", ["1", "2", "3", "5"])
@pytest.mark.parametrize("scan", ["T2SPIR", "T1DUAL"])
def test_chaos_sides_and_volumes(abdomen, case_id, scan):
    _, label, affine = read_chaos(abdomen, case_id, scan, "InPhase" if scan == "T1DUAL" else "")
    check_sides_and_volumes(label, affine, layouts.CHAOS_GREYS)


def check_sides_and_volumes(label, affine, values):
    organs = ("liver", "spleen", "right_kidney", "left_kidney")
    x, _, _ = np.array([centroid_ras(label == values[organ], affine) for organ in organs]).T
    liver, spleen, right_kidney, left_kidney = x
    middle = (right_kidney + left_kidney) / 2
    assert liver > middle + 20  # +x is the patient's right
    assert spleen < middle - 50
    assert right_kidney > middle + 40
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    for organ, low, high in (
        ("liver", 700, 2000),
        ("spleen", 70, 350),
        ("right_kidney", 70, 280),
        ("left_kidney", 70, 280),
    ):
        assert low < voxel_ml * np.count_nonzero(label == values[organ]) < high, organ


@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize("case_id", ["1001", "1002", "1003"])
def test_heart_is_the_right_way_round(cardiac, modality, case_id):
    label, affine = read_nifti(cardiac / f"{modality}_train/{modality}_train_{case_id}_label.nii.gz")
    label[label == 421] = 420
    at = {name: centroid_ras(label == value, affine) for name, value in layouts.MMWHS_LABELS.items()}
    assert at["right_atrium"][0] > at["left_ventricle"][0] + 30  # right
    assert at["right_ventricle"][1] > at["left_atrium"][1] + 30  # anterior
    assert at["ascending_aorta"][2] > at["left_ventricle"][2] + 30  # superior
    # the cavity lies within its wall
    assert np.linalg.norm(at["left_ventricle"] - at["lv_myocardium"]) < 15


@pytest.mark.parametrize("case_id", ["1", "2"])
@pytest.mark.parametrize(("scan", "subfolder"), [("T2SPIR", ""), ("T1DUAL", "OutPhase")])
def test_series_reader_finds_the_geometry_asked_for(abdomen, case_id, scan, subfolder):
    case = PhantomCase(SEED, "abdomen", "mr", case_id)
    grid = layouts.chaos_grid(draw_anatomy(ABDOMEN, case), case, SIZE, scan)
    folder = str(patient(abdomen, case_id, scan) / "DICOM_anon" / subfolder)
    (series,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series))
    image = reader.Execute()

    assert image.GetSize() == grid.shape
    np.testing.assert_allclose(image.GetSpacing(), grid.spacing_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetOrigin(), grid.affine[:3, 3] * (-1, -1, 1), atol=1e-3)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.mark.parametrize("case_id", ["1", "2"])
def test_each_png_shows_the_anatomy_at_its_slice(abdomen, case_id):
    anatomy = draw_anatomy(ABDOMEN, PhantomCase(SEED, "abdomen", "mr", case_id))
    grey = np.array([layouts.CHAOS_GREYS.get(tissue, 0) for tissue in ABDOMEN.signals])
    home = patient(abdomen, case_id)
    for dicom, png in zip(sorted((home / "DICOM_anon").iterdir()), sorted((home / "Ground").iterdir()), strict=True):
        dx, dy, dz = header(dicom).GetSpacing()
        affine = np.diag([-dx, -dy, dz, 1.0])
        affine[:3, 3] = position(dicom) * (-1, -1, 1)
        expected = grey[anatomy.tissue_map(Grid(affine, (SIZE, SIZE, 1)))][:, :, 0]
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(png))).T
        assert np.count_nonzero(found != expected) <= 2  # rounding at the surfaces


@pytest.mark.parametrize(("case_id", "direction"), [("1", 1), ("2", -1), ("3", 1), ("5", 1)])
def test_slice_direction_by_patient(abdomen, case_id, direction):
    files = sorted((patient(abdomen, case_id) / "DICOM_anon").iterdir())
    steps = np.diff([position(f)[2] for f in files])
    assert np.all(np.sign(steps) == direction)
    numbers = [int(header(f).GetMetaData("0020|0013")) for f in files]
    assert numbers == list(range(1, len(files) + 1))


def test_slice_thickness_lies_in_one_patient(abdomen):
    for case_id, factor in (("1", 1.0), ("2", 1.6)):
        files = sorted((patient(abdomen, case_id) / "DICOM_anon").iterdir())
        distance = abs(position(files[1])[2] - position(files[0])[2])
        assert 6 <= distance <= 8
        assert float(header(files[0]).GetMetaData("0018|0050")) == pytest.approx(factor * distance, abs=1e-3)


def test_label_header_noise_in_one_case(abdomen):
    difference = {}
    for case_id in ("0001", "0002", "0003"):
        image, label = (nib.load(abdomen / f"btcv/{kind}/{kind}{case_id}.nii.gz") for kind in ("img", "label"))
        difference[case_id] = np.abs(image.affine - label.affine).max()
    assert difference["0001"] == difference["0003"] == 0
    assert 0 < difference["0002"] < 1e-3


# --- intensities -----------------------------------------------------------------------------------------------------


def organ_means(image, label, values, organs):
    return np.array([np.median(image[label == values[organ]]) for organ in organs])


def test_ct_liver_and_spleen_differ_by_shape_alone(abdomen):
    image, _ = read_nifti(abdomen / "btcv/img/img0001.nii.gz")
    label, _ = read_nifti(abdomen / "btcv/label/label0001.nii.gz")
    liver, spleen, kidney = organ_means(image, label, layouts.BTCV_LABELS, ("liver", "spleen", "right_kidney"))
    assert abs(liver - spleen) < 6
    assert kidney > liver + 30
    image, label, _ = read_chaos(abdomen, "1")
    liver, spleen = organ_means(image, label, layouts.CHAOS_GREYS, ("liver", "spleen"))
    assert spleen > 1.4 * liver


def test_mr_has_bias_gain_and_rician_noise(abdomen):
    gains = []
    for case_id in ("1", "2", "3", "5"):
        image, label, _ = read_chaos(abdomen, case_id)
        air = np.concatenate([image[:2].ravel(), image[-2:].ravel()]).astype(float)
        # Rayleigh: mean / standard deviation = sqrt(pi / (4 − pi)) = 1.913
        assert air.mean() / air.std() == pytest.approx(1.913, rel=0.05)
        gains.append(np.median(image[label == 63]))
    assert max(gains) > 1.3 * min(gains)


@pytest.mark.parametrize(
    ("write", "read", "organs"),
    [
        (sets.write_abdomen, "chaos", ("liver", "right_kidney", "left_kidney", "spleen")),
        (sets.write_cardiac, "mmwhs", ("lv_myocardium", "right_ventricle", "left_ventricle", "ascending_aorta")),
    ],
)
def test_anticorrelated_mr_turns_the_order_round(tmp_path, write, read, organs):
    write(tmp_path / "plain", num_ct=0, num_mr=1, seed=SEED, size=SIZE)
    write(tmp_path / "inverse", num_ct=0, num_mr=1, seed=SEED, size=SIZE, anticorrelated_mr=True)
    template, values = (ABDOMEN, layouts.CHAOS_GREYS) if read == "chaos" else (CARDIAC, layouts.MMWHS_LABELS)
    hu = np.array([template.signals[organ]["ct"] for organ in organs])

    def means(folder):
        if read == "chaos":
            image, label, _ = read_chaos(folder, "1")
        else:
            image, label = (
                read_nifti(folder / f"mr_train/mr_train_1001_{kind}.nii.gz")[0] for kind in ("image", "label")
            )
        return organ_means(image, label, values, organs), label

    inverse, inverse_label = means(tmp_path / "inverse")
    plain, plain_label = means(tmp_path / "plain")
    assert np.corrcoef(inverse, hu)[0, 1] < -0.6  # the bias field blurs it
    assert np.corrcoef(plain, hu)[0, 1] > 0
    assert np.array_equal(plain_label, inverse_label)


def test_low_resolution_mr_blurs_the_image_and_keeps_the_label(tmp_path, abdomen):
    sets.write_abdomen(tmp_path / "low", num_ct=0, num_mr=1, seed=SEED, size=SIZE, low_resolution_mr=4)
    sharp, label, _ = read_chaos(abdomen, "1")
    blurred, same_label, _ = read_chaos(tmp_path / "low", "1")
    assert np.array_equal(label, same_label)
    step = [np.percentile(np.abs(np.diff(image.astype(float), axis=0)), 98) for image in (sharp, blurred)]
    assert step[1] < 0.6 * step[0]


def test_outlier_has_streaks_and_the_same_anatomy(tmp_path, abdomen):
    sets.write_abdomen(tmp_path / "clean", num_ct=4, num_mr=0, seed=SEED, size=SIZE)
    clean, _ = read_nifti(tmp_path / "clean/btcv/img/img0004.nii.gz")
    streaked, _ = read_nifti(abdomen / "btcv/img/img0004.nii.gz")
    labels = [(folder / "btcv/label/label0004.nii.gz").read_bytes() for folder in (tmp_path / "clean", abdomen)]
    assert labels[0] == labels[1]
    label = np.frombuffer(gzip.decompress(labels[0])[352:], np.uint8).reshape(clean.shape, order="F")
    liver = label == 6
    assert clean[liver].std() < 30
    assert streaked[liver].std() > 1.5 * clean[liver].std()
    assert np.array_equal(
        read_nifti(tmp_path / "clean/btcv/img/img0003.nii.gz")[0], read_nifti(abdomen / "btcv/img/img0003.nii.gz")[0]
    )


# --- refusals and the program ----------------------------------------------------------------------------------------


def test_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "mine.txt").write_text("do not touch", encoding="utf-8")
    for overwrite, text in ((False, "not empty: .* --overwrite"), (True, "holds no phantom.json")):
        with pytest.raises(InputError, match=text):
            sets.write_abdomen(tmp_path, num_ct=1, num_mr=0, seed=0, size=16, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_the_whole_set(tmp_path):
    out = tmp_path / "set"
    out.mkdir()  # an empty folder is welcome
    sets.write_abdomen(out, num_ct=2, num_mr=0, seed=0, size=16)
    sets.write_abdomen(out, num_ct=1, num_mr=0, seed=0, size=16, overwrite=True)
    assert [p.name for p in (out / "btcv/img").iterdir()] == ["img0001.nii.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("failing", ["_write_sitk", "_write_nifti"])
def test_a_full_disk_leaves_the_earlier_set(tmp_path, monkeypatch, failing):
    out = tmp_path / "set"
    sets.write_abdomen(out, num_ct=1, num_mr=1, seed=0, size=16)
    before = digests(out)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(layouts, failing, full)
    with pytest.raises(InputError, match=r"set: phantom not written \(No space left on device\)"):
        sets.write_abdomen(out, num_ct=1, num_mr=1, seed=1, size=16, overwrite=True)
    assert digests(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_ct": 31}, "31 ct cases: expected 0 to 30"),
        ({"num_ct": 30, "outlier_ct": True}, "30 ct cases: expected 0 to 29 beside the outlier"),
        ({"num_mr": -1}, "-1 mr cases: expected 0 to 20"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"size": 8}, "size 8: expected 16 to 512"),
        ({"low_resolution_mr": 0.5}, "low_resolution_mr 0.5: expected 1"),
    ],
)
def test_refuses_arguments_out_of_range(tmp_path, arguments, text):
    with pytest.raises(InputError, match=text):
        sets.write_abdomen(tmp_path / "set", **{"num_ct": 1, "num_mr": 1, "seed": 0} | arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["ct=6", "ct:x", "ct:1,ct:2", "pet:3", "ct:1,", ""])
def test_refuses_unreadable_cases(text):
    with pytest.raises(InputError, match="expected ct:NUMBER,mr:NUMBER"):
        phantom.parse_cases(text)


def test_reads_cases():
    assert phantom.parse_cases("ct:6, mr:12") == {"ct": 6, "mr": 12}
    assert phantom.parse_cases("mr:1") == {"mr": 1}


def test_organs_of_a_template_have_signals():
    for template in (ABDOMEN, CARDIAC):
        assert {organ.tissue for organ in template.organs} <= template.signals.keys()
        assert set(template.classes) <= template.signals.keys()
        assert next(iter(template.signals)) == "air"
    assert templates.TABLE.tissue in ABDOMEN.signals


def test_program_writes_what_the_library_writes(tmp_path, abdomen):
    # In a process that has read no DICOM file yet: GDCM remembers that it has.
    command = [sys.executable, "-m", "data_prep.phantom", "--task=abdomen", "--cases=ct:3,mr:4", f"--seed={SEED}"]
    command += [f"--size={SIZE}", "--t1", "--outlier_ct", f"--out={tmp_path}/set"]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert f"abdomen phantom: {tmp_path}/set" in first.stdout
    assert digests(tmp_path / "set") == digests(abdomen)


def test_program_fails_with_one_line(tmp_path):
    (tmp_path / "mine.txt").write_text("do not touch", encoding="utf-8")
    result = program("data_prep.phantom.__main__", "--task=cardiac", f"--out={tmp_path}")
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path}: not empty: expected a new or empty folder; " + (
        "give another --out or --overwrite\n"
    )
