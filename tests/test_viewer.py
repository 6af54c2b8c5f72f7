"""The slice viewer: what is packed is what was given, and a browser shows it where it belongs."""

import base64
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
from browser import BROWSER, in_browser

from ummkd_tf.common.errors import InputError
from ummkd_tf.output import viewer
from ummkd_tf.output.pictures import gray_range, planes
from ummkd_tf.output.viewer import SliceViewer
from ummkd_tf.tasks import TASKS

TASK = TASKS["abdomen"]
SHAPE = (6, 8, 5)
SPACING_MM = (1.5, 1.5, 8.0)


def _case(seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=SHAPE).astype(np.float32), random.integers(0, 5, SHAPE)


def _viewer(task=TASK, **options):
    shown = SliceViewer(task, ("prediction", "reference"), cases=2)
    for number in range(2):
        image, label = _case(number)
        shown.add(f"ct_{number}", image, [label, np.roll(label, 1, 0)], spacing_mm=SPACING_MM, **options)
    return shown


def _data(shown):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', shown.html(), re.DOTALL)[1])


def test_the_picture_holds_image_and_maps_slice_by_slice(tmp_path):
    data = _data(_viewer())
    assert data["maps"] == ["prediction", "reference"]
    assert data["classes"][0] == ["liver", "#ff0000", [255, 0, 0]]
    case = data["cases"][1]
    (tmp_path / "a.png").write_bytes(base64.b64decode(case["png"]))
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png")))
    assert case["across"] == 3 and pixels.shape[:2] == (2 * 6, 3 * 8)  # 5 slices: 3 and 2 in a row
    image, label = _case(1)
    fourth = pixels[6:12, 0:8]
    np.testing.assert_array_equal(fourth[..., 1], label[:, :, 3])
    np.testing.assert_array_equal(fourth[..., 2], np.roll(label, 1, 0)[:, :, 3])
    low, high = gray_range(image, label, np.roll(label, 1, 0))
    np.testing.assert_allclose(fourth[..., 0], 255 * np.clip((image[:, :, 3] - low) / (high - low), 0, 1), atol=1)


def test_large_scans_are_made_coarser_in_their_slices(monkeypatch):
    monkeypatch.setattr(viewer, "VOXELS_OF_A_PAGE", 2 * 64 * 64 * 4)
    shown = SliceViewer(TASK, cases=8)
    label = np.zeros((64, 64, 4), np.uint8)
    shown.add("ct_0", np.zeros(label.shape, np.float32), [label], spacing_mm=SPACING_MM)
    case = _data(shown)["cases"][0]
    assert (case["shape"], case["spacing_mm"]) == ([32, 32, 4], [3.0, 3.0, 8.0])


def test_a_hostile_name_is_data():
    page = _viewer(words="</script><script>alert(1)</script>").html()
    assert "alert(1)</script>" not in page
    assert _data(_viewer(words="</script>"))["cases"][0]["title"] == "ct_0 </script>"
    assert [case["id"] for case in _data(_viewer(words="ct"))["cases"]] == ["ct_0", "ct_1"]  # what links name


def test_a_map_that_does_not_fit_is_refused():
    image, label = _case()
    with pytest.raises(InputError, match=r"the label has shape \(6, 8, 4\) and the image \(6, 8, 5\)"):
        SliceViewer(TASK, cases=1).add("ct_0", image, [label[..., :4]], spacing_mm=SPACING_MM)


# Reads the colour in the middle of each voxel, in each slice of each plane, then plays with keys and wheel.
_PROBE = """<script>addEventListener("load", () => {
  const find = name => document.querySelector(`.viewer ${name}`), slice = find(".slice"), plane = find(".plane");
  const canvas = find("canvas"), told = {inner: innerWidth, width: document.documentElement.scrollWidth, planes: []};
  const data = JSON.parse(find("script").textContent), change = (control, value, event) => {
    control.value = value; control.dispatchEvent(new Event(event)); };
  change(find(".fill"), 1, "input");
  const start = slice.value;
  for (const n of [0, 1, 2]) {
    change(plane, n, "change");
    const {down, right} = data.planes[n], [h, w] = [data.cases[0].shape[down], data.cases[0].shape[right]], all = [];
    for (let s = 0; s <= slice.max; s++) {
      change(slice, s, "input");
      const rows = [];
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
        const at = Math.floor((y + 0.35) * canvas.height / h) * canvas.width + Math.floor((x + 0.3) * canvas.width / w);
        rows.push([...pixels.slice(4 * at, 4 * at + 3)]);
      }
      all.push(rows);
    }
    told.planes.push({name: data.planes[n].name, size: [canvas.width, canvas.height], all});
  }
  change(plane, 0, "change");
  const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", {key: name, cancelable: true}));
  told.slices = [[() => key("Home"), "home"], [() => key("ArrowUp"), "up"], [() => key("End"), "end"],
    [() => canvas.dispatchEvent(new WheelEvent("wheel", {deltaY: -100, cancelable: true})), "wheel"]].map(([act]) => {
      act(); return Number(slice.value); });
  told.label = canvas.getAttribute("aria-label");
  told.cases = [...find(".case").options].map(o => o.text);
  parent.document.title = JSON.stringify(told);
});</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize(("width", "task"), [(1280, "abdomen"), (390, "cardiac")])
def test_in_a_browser(width, task, tmp_path):
    """Each voxel's class is shown at its place in all three planes; keys and wheel move; no wider than the window."""
    task = TASKS[task]
    _viewer(task).write(tmp_path / "slices.html", "Slices")
    page = (tmp_path / "slices.html").read_text(encoding="utf-8").replace("</body>", f"{_PROBE}</body>")
    told = in_browser(page, width, tmp_path)
    assert told["inner"] == width and told["width"] <= width
    assert told["cases"] == ["ct_0", "ct_1"]
    data = _data(_viewer(task))
    colors = np.array([[-1, -1, -1], *(rgb for _, _, rgb in data["classes"])])
    label = _case(0)[1]
    for plane, shown in zip(planes(task.axes), told["planes"], strict=True):
        assert shown["name"] == plane.name
        for index, pixels in enumerate(shown["all"]):
            cut = plane.cut(label, index)
            found = np.array(pixels).reshape(*cut.shape, 3)
            assert (np.abs(found - colors[cut])[cut > 0] <= 2).all(), (plane.name, index)
        height, width_ = cut.shape
        mm = (height * SPACING_MM[plane.down], width_ * SPACING_MM[plane.right])
        assert shown["size"][1] / shown["size"][0] == pytest.approx(mm[0] / mm[1], rel=0.01)
    assert told["slices"] == [0, 1, 4, 3]
    assert told["label"].startswith(f"ct_0, {planes(task.axes)[0].name} slice 4 of 5: ")
