"""Volumes: places of voxels, files, DICOM folders and resampling, compared with scipy and SimpleITK."""

import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from raw_data import write_png, write_slice
from scipy import ndimage

from ummkd_tf.common.errors import InputError
from ummkd_tf.common.files import replacing
from ummkd_tf.scans.dicom import DicomSeries
from ummkd_tf.scans.geometry import Grid, Volume, corners_apart_voxels, reorient, resample, same_geometry, to_sitk
from ummkd_tf.scans.itk import read_png
from ummkd_tf.scans.nifti import write_nifti
from ummkd_tf.scans.reading import as_labels, on_grid_of, read_label, read_volume

LAS = np.array([[-2.0, 0, 0, 10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])


def oblique(spacing=(1.5, 2.0, 4.0), angle=0.3, origin=(-20, 10, 5)):
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ tilt * spacing, origin
    return affine


def random_volume(shape=(12, 10, 8), affine=None, seed=0):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume(array, oblique() if affine is None else affine)


# --- places ----------------------------------------------------------------------------------------------------------


def test_grid_by_hand():
    grid = Grid(LAS, (4, 5, 6))
    assert grid.spacing_mm == (2.0, 3.0, 5.0)
    assert grid.axes == "LAS"
    assert grid.world((1, 2, 3)).tolist() == [8, -14, 45]
    assert grid.index((8, -14, 45)).tolist() == [1, 2, 3]


def test_reorient_by_hand():
    """RAS → PLS: rows run from front to back, columns from right to left, slices stay."""
    array = np.arange(24).reshape(2, 3, 4)
    turned = reorient(Volume(array, np.eye(4)), "PLS")
    assert turned.array.shape == (3, 2, 4)
    assert turned.grid.axes == "PLS"
    assert turned.array[0, 0, 1] == array[1, 2, 1]  # most anterior and most right
    assert turned.grid.world((0, 0, 1)).tolist() == [1, 2, 1]


@pytest.mark.parametrize("axes", ["PLS", "ILP", "RAS", "SAR", "LPI"])
def test_reorient_keeps_every_voxel_in_its_place(axes):
    volume = random_volume()
    turned = reorient(volume, axes)
    assert turned.grid.axes == axes
    there = np.round(turned.grid.index(volume.grid.world(np.argwhere(np.ones(volume.array.shape))))).astype(int)
    assert np.array_equal(turned.array[tuple(there.T)], volume.array.ravel())


@pytest.mark.parametrize(
    ("affine", "shape", "difference"),
    [
        (LAS, (4, 5, 6), None),
        (LAS * (1 + 1e-6), (4, 5, 6), None),  # header noise
        (LAS + 0.01 * np.eye(4)[:, 3:] @ np.eye(4)[3:], (4, 5, 6), None),
        (LAS, (4, 5, 7), "shape (4, 5, 7), expected (4, 5, 6)"),
        (LAS @ np.diag([1, 1, 1.01, 1]), (4, 5, 6), "spacing 2.000 × 3.000 × 5.050 mm, expected 2.000 × 3.000 × 5.000"),
        (LAS @ np.diag([-1, 1, 1, 1]), (4, 5, 6), "orientation RAS, expected LAS"),
        (LAS + np.eye(4)[:, :1] @ np.eye(4)[3:], (4, 5, 6), "position or direction off by 1.00 mm"),
    ],
)
def test_same_geometry(affine, shape, difference):
    found = same_geometry(Grid(LAS, (4, 5, 6)), Grid(affine, shape))
    assert found is None if difference is None else found.startswith(difference)


@pytest.mark.parametrize(
    ("header", "apart", "taken"),
    [
        (np.diag([0.68, 0.68, 5, 1]), 0.0003 * 511.5 / 0.6797, True),  # two decimals
        (np.diag([0.6801, 0.6797, 5, 1]), 0.0004 * 511.5 / 0.6797, True),
        (np.diag([0.69, 0.69, 5, 1]), 0.0103 * 511.5 / 0.6797, False),
        (np.array([[0.6797, 0, 0, 0], [0, 0.6797, 0, 0], [0, 0, 5, 2.5], [0, 0, 0, 1]]), 0.5, False),
        (np.diag([-0.6797, 0.6797, 5, 1]), 1023, False),
    ],
)
def test_a_label_with_a_rounded_header_is_taken_on_the_images_grid(header, apart, taken, caplog):
    image, label = Grid(np.diag([0.6797, 0.6797, 5, 1]), (512, 512, 2)), Volume(np.zeros((512, 512, 2)), header)
    assert corners_apart_voxels(image, label.grid) == pytest.approx(apart)
    assert np.array_equal(on_grid_of(image, label, "label.nii").affine, image.affine if taken else header)
    assert (f"label.nii: its header lies up to {apart:.2f} of a voxel off the image's" in caplog.text) == taken


# --- resampling ------------------------------------------------------------------------------------------------------


def target_grid():
    return Grid(oblique(spacing=(1.1, 1.3, 3.0), angle=0.1, origin=(-24, 14, 10)), (11, 12, 9))


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "bspline"])
def test_resample_agrees_with_scipy(interpolation):
    volume, grid = random_volume(), target_grid()
    ours = resample(volume, grid, interpolation, outside=np.nan)
    index = volume.grid.index(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)))
    inside = ((index >= 0) & (index <= np.array(volume.array.shape) - 1)).all(axis=-1)
    assert 50 < inside.sum() < inside.size
    order = {"nearest": 0, "linear": 1, "bspline": 3}[interpolation]
    theirs = ndimage.map_coordinates(volume.array, index[inside].T, order=order, mode="mirror")
    np.testing.assert_allclose(ours[inside], theirs, atol=2e-4)
    far = ((index < -0.51) | (index > np.array(volume.array.shape) - 0.49)).any(axis=-1)
    assert np.isnan(ours[far]).all()


def test_resample_on_its_own_grid_changes_nothing():
    volume = random_volume()
    assert np.allclose(resample(volume, volume.grid, "linear"), volume.array, atol=1e-5)


def test_to_sitk_agrees_on_world_positions():
    volume = random_volume()
    x, y, z = to_sitk(volume.array, volume.affine).TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose((-x, -y, z), volume.grid.world((3, 2, 1)))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_formats_give_the_same_volume(suffix, tmp_path):
    volume, path = random_volume(), tmp_path / f"a{suffix}"
    if suffix.startswith(".nii"):
        write_nifti(path, volume)
    else:
        sitk.WriteImage(to_sitk(volume.array, volume.affine), str(path))
    read = read_volume(path)
    assert np.array_equal(read.array, volume.array)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-5)
    assert same_geometry(read.grid, volume.grid) is None


def test_scaled_integers_are_read_in_their_unit(tmp_path):
    """In little memory: beside the result, the stored values (half of it) and a mask of finite ones (a quarter)."""
    stored = np.arange(64**3, dtype=np.int32).reshape(64, 64, 64) % 4096
    image = nib.Nifti1Image(stored.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    image.to_filename(tmp_path / "a.nii")
    tracemalloc.start()
    array = read_volume(tmp_path / "a.nii").array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.dtype == np.float32 and np.array_equal(array, 2 * stored - 1024)
    assert peak < 1.9 * array.nbytes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii", b"", "empty file"),
        ("a.mha", b"", "empty file"),
        ("a.nrrd", b"NRRD0001\n", "damaged or unreadable image"),
        ("a.txt", b"text", "unknown image format"),
    ],
)
def test_unreadable_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: {message}"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(("read", "name"), [(read_volume, "none.nii"), (DicomSeries.open, "none.dcm")])
def test_missing_file(tmp_path, read, name):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / name)


def test_colour_volume_is_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), str(tmp_path / "a.mha"))
    with pytest.raises(InputError, match="a colour image"):
        read_volume(tmp_path / "a.mha")


def test_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([1.0, 1, 1, 1]))
    image.header["srow_z"] = image.header["srow_y"]
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4 + 16))
    with pytest.raises(InputError, match="the affine is singular"):
        read_volume(tmp_path / "a.nii")


def test_labels_are_whole_numbers(tmp_path):
    write_nifti(tmp_path / "whole.nii", Volume(np.full((2, 2, 2), 205.0), np.eye(4)))
    label = read_label(tmp_path / "whole.nii")
    assert label.array.dtype == np.int32
    assert (label.array == 205).all()
    with pytest.raises(InputError, match=r"1 label voxels are not whole numbers \(first: 0\.5\)"):
        as_labels(np.array([0.5, 1.0]), "a.nii")
    with pytest.raises(InputError, match=r"label values up to 1e\+20"):
        as_labels(np.array([1e20]), "a.nii")


def test_png_is_column_first(tmp_path):
    pixels = np.zeros((5, 3), np.uint8)  # [column, row]
    pixels[4, 1] = 63
    write_png(tmp_path / "a.png", pixels)
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png")))[1, 4] == 63
    assert np.array_equal(read_png(tmp_path / "a.png"), pixels)


def test_replacing_writes_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "before"
    with replacing(path) as temporary:
        temporary.write_text("after", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "before"
    assert path.read_text(encoding="utf-8") == "after"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_replacing_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="could not be written"), replacing(tmp_path / "file/a.txt"):
        pass


# --- DICOM -----------------------------------------------------------------------------------------------------------

NAMES = {
    "padded": lambda n: f"IMG-{n:05d}.dcm",
    "numbers without padding": lambda n: f"{n}.dcm",  # 10 comes after 2
    "no suffix": lambda n: f"I{n:03d}",
}


def write_series(folder, scan, names=NAMES["padded"], descending=False, step=(0.0, 0.0, 2.5), **orientation):
    """Slice k of `scan` at k × `step`, as file k or, descending, as file n − 1 − k."""
    count = scan.shape[2]
    for k in range(count):
        position = np.array([10.0, -20.0, 30.0]) + k * np.asarray(step)
        name = names(count - k if descending else k + 1)
        write_slice(folder / name, scan[:, :, k], position, spacing=(1.5, 0.75), **orientation)


def read_with_itk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("names", NAMES)
def test_dicom_series_agrees_with_the_itk_series_reader(names, descending, tmp_path):
    scan = np.random.default_rng(1).integers(0, 4000, (7, 5, 12))
    write_series(tmp_path, scan, NAMES[names], descending)
    series = DicomSeries.open(tmp_path)
    volume, files = series.read(), list(series.file_of_slice)
    theirs = read_with_itk(tmp_path)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(theirs).T)
    assert np.array_equal(volume.array, scan)
    for index in ((0, 0, 0), (6, 4, 11)):
        x, y, z = theirs.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.grid.world(index), (-x, -y, z), atol=1e-4)
    assert volume.grid.spacing_mm == pytest.approx((1.5, 0.75, 2.5))
    assert volume.grid.axes == "LPS"
    assert files == (list(range(12))[::-1] if descending else list(range(12)))


def test_dicom_coronal_slices(tmp_path):
    """Rows run left, columns down, slices from front to back: j is I, k is P."""
    write_series(tmp_path, np.zeros((4, 3, 5)), step=(0, 3.0, 0), row=(1, 0, 0), column=(0, 0, -1))
    volume = DicomSeries.open(tmp_path).read()
    assert volume.grid.axes == "LIP"
    np.testing.assert_allclose(volume.grid.world((0, 0, 4)), (-10, 20 - 12, 30), atol=1e-4)


def test_dicom_slice_distance_comes_from_positions(tmp_path):
    """SimpleITK writes no SliceThickness here; one that lies is added to every file."""
    write_series(tmp_path, np.ones((4, 3, 3)))
    for path in tmp_path.iterdir():
        image = sitk.ReadImage(str(path))
        for key in image.GetMetaDataKeys():
            image.SetMetaData(key, image.GetMetaData(key))
        image.SetMetaData("0018|0050", "3.2")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path))
        writer.Execute(image)
    assert sitk.ReadImage(str(path)).GetMetaData("0018|0050").strip() == "3.2"
    assert DicomSeries.open(tmp_path).read().grid.spacing_mm[2] == pytest.approx(2.5)


def test_other_files_beside_dicom_are_left_out(tmp_path):
    write_series(tmp_path, np.ones((4, 3, 3)))
    (tmp_path / "notes.txt").write_text("not an image", encoding="utf-8")
    (tmp_path / ".hidden").write_text("", encoding="utf-8")
    assert DicomSeries.open(tmp_path).read().array.shape == (4, 3, 3)


def test_one_slice_is_no_volume(tmp_path):
    write_series(tmp_path, np.ones((4, 3, 1)))
    with pytest.raises(InputError, match="one DICOM slice: expected a volume of at least two"):
        DicomSeries.open(tmp_path).read()
