"""Tasks as files: the paper's two by hand, a user's own, and a broken file for every check."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from ummkd_tf.common.errors import InputError
from ummkd_tf.tasks import (
    DEFAULT_CLIP,
    PALETTE,
    TASKS,
    Clip,
    check_same_task,
    differences,
    distinct_colors,
    get_task,
    stored_task,
    task_from_dict,
)

OWN = {
    "name": "pelvis",
    "network": "unet3d",
    "class_names": ["prostate", "bladder"],
    "axes": "PLS",
    "spacing_mm": [1, 1.5, 3],
    "size": [160, 192],
    "region": "image_center",
}


def own(**changes):
    """A task file's content; a change to None takes the key away."""
    return {key: value for key, value in {**OWN, **changes}.items() if value is not None}


def test_the_papers_tasks():
    """Sec. IV-A and the captions of Fig. 4 and Fig. 5."""
    abdomen, cardiac = TASKS["abdomen"], TASKS["cardiac"]
    assert sorted(TASKS) == ["abdomen", "cardiac"]
    assert abdomen.class_names == ("background", "liver", "right_kidney", "left_kidney", "spleen")
    assert abdomen.table_classes == ("liver", "spleen", "right_kidney", "left_kidney")
    assert abdomen.class_colors == {"liver": "red", "spleen": "yellow", "right_kidney": "blue", "left_kidney": "green"}
    assert (abdomen.network, abdomen.axes, abdomen.spacing_mm, abdomen.size, abdomen.region) == (
        *("unet3d", "PLS", (1.5, 1.5, 8.0), (256, 256), "body"),
    )
    assert abdomen.clip_for("ct") == Clip(-125.0, 275.0, "value")
    assert abdomen.clip_for("t1_in") == abdomen.clip_for("mr") == Clip(0.0, 99.5, "percentile")
    assert cardiac.class_names == (
        *("background", "lv_myocardium", "left_atrium", "left_ventricle", "ascending_aorta"),
    )
    assert (cardiac.network, cardiac.axes, cardiac.spacing_mm, cardiac.size, cardiac.region) == (
        *("dilated2d", "ILP", (1.0, 1.0, 1.0), (256, 256), "label_centroid"),
    )
    assert cardiac.clip_for("ct") == cardiac.clip_for("mr") == Clip(0.0, 98.0, "percentile")


def test_own_task_with_defaults():
    task = task_from_dict(own(), "own.json")
    assert task.class_names == ("background", "prostate", "bladder") and task.num_classes == 3
    assert task.table_classes == ("prostate", "bladder")
    assert task.class_colors == {"prostate": "#e69f00", "bladder": "#56b4e9"}  # Okabe and Ito's first two
    assert task.spacing_mm == (1.0, 1.5, 3.0) and task.size == (160, 192)
    assert task.clip_for("anything") == DEFAULT_CLIP


def test_background_may_be_named_and_the_rest_chosen():
    content = own(
        class_names=["background", "prostate", "bladder"],
        table_classes=["bladder", "prostate"],
        class_colors={"bladder": "#00ff00"},
        clip={"ct": {"low": -100, "high": 300, "unit": "value"}},
    )
    task = task_from_dict(content, "own.json")
    assert task.class_names == ("background", "prostate", "bladder")
    assert task.table_classes == ("bladder", "prostate")
    assert task.class_colors == {"prostate": "#e69f00", "bladder": "#00ff00"}
    assert task.clip == {"default": DEFAULT_CLIP, "ct": Clip(-100.0, 300.0, "value")}


def test_notes_are_left_out():
    clip = {"_why": "organs are bright", "ct": {"low": 0, "high": 1, "unit": "value", "_who": "me"}}
    content = own(clip=clip, notes={"size": "large enough"}, _draft=True)
    assert task_from_dict(content, "x") == task_from_dict(own(clip={"ct": {"low": 0, "high": 1, "unit": "value"}}), "x")


@pytest.mark.parametrize("number", [1, 14, 254])
def test_colors_are_distinct(number):
    colors = distinct_colors(number)
    assert len(set(colors)) == number and colors[:7] == list(PALETTE[: min(7, number)])
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)


@pytest.mark.parametrize("task", [*TASKS.values(), task_from_dict(own(), "x")], ids=lambda task: task.name)
def test_stored_whole(task):
    """What JSON keeps of a task is the task."""
    assert stored_task(json.loads(json.dumps(task.to_dict())), "dataset.json") == task


def test_old_data_store_a_name():
    assert stored_task("cardiac", "run.json") is TASKS["cardiac"]
    for value in ("pelvis", "own.json", 3, None):
        with pytest.raises(InputError, match=r"run\.json: unknown task .*: expected abdomen or cardiac"):
            stored_task(value, "run.json")


BROKEN = {
    "unknown key": (own(spacing=[1, 1, 1]), "unknown key 'spacing': did you mean 'spacing_mm'?"),
    "strange key": (own(zzz=1), "unknown key 'zzz': expected name, network"),
    **{f"no {key}": (own(**{key: None}), f"no {key}") for key in OWN},
    "name": (own(name="my task"), "name 'my task': expected a letter, then letters, digits"),
    "name of no text": (own(name=3), "name 3: expected a letter"),
    "network": (own(network="unet"), "network 'unet': expected dilated2d or unet3d"),
    "classes as text": (own(class_names="liver"), "class_names 'liver': expected a list of names"),
    "class twice": (own(class_names=["a", "b", "a"]), "class name 'a' is there 2 times: expected different names"),
    "class without name": (own(class_names=["a", ""]), "class name '': expected 1 to 60 printable characters"),
    "class with a line break": (own(class_names=["a\nb"]), r"class name 'a\nb': expected 1 to 60 printable"),
    "background in capitals": (
        own(class_names=["Background", "a"]),
        "class name 'Background': expected 'background', first in the list, or left out",
    ),
    "class named mean": (own(class_names=["mean"]), "class name 'mean': expected another name"),
    "background late": (
        own(class_names=["a", "background"]),
        "'background' is at position 1: expected it first, or left out",
    ),
    "no class": (own(class_names=["background"]), "class_names: 0 classes beside background: expected 1 to 254"),
    "too many": (own(class_names=[f"c{n}" for n in range(255)]), "class_names: 255 classes beside background"),
    "axes": (own(axes="PLR"), "axes 'PLR': expected three letters like PLS"),
    "axes as list": (own(axes=["P", "L", "S"]), "axes ['P', 'L', 'S']: expected three letters"),
    "two spacings": (own(spacing_mm=[1, 1]), "spacing_mm [1, 1]: expected three numbers from 0.05 to 50"),
    "spacing 0": (own(spacing_mm=[1, 0, 1]), "spacing_mm [1, 0, 1]: expected three numbers"),
    "spacing NaN": (own(spacing_mm=[1, float("nan"), 1]), "spacing_mm [1, nan, 1]: expected three numbers"),
    "spacing true": (own(spacing_mm=[1, True, 1]), "spacing_mm [1, True, 1]: expected three numbers"),
    "size": (own(size=[100, 128]), "size [100, 128]: expected rows and columns, multiples of 32 up to 1024"),
    "size of no number": (own(size="big"), "size 'big': expected rows and columns"),
    "size as fraction": (own(size=[64.0, 64]), "size [64.0, 64]: expected rows and columns"),
    "region": (own(region="heart"), "region 'heart': expected body or image_center or label_centroid"),
    "clip as list": (own(clip=[0, 1]), "clip [0, 1]: expected an object with an intensity range by modality"),
    "clip of no modality": (own(clip={"c t": {"low": 0, "high": 1, "unit": "value"}}), "clip of 'c t': expected the"),
    "clip entry": (own(clip={"ct": [0, 1]}), "clip of 'ct' is [0, 1]: expected an object with low, high and unit"),
    "clip key": (
        own(clip={"ct": {"low": 0, "high": 1, "units": "value"}}),
        "unknown key 'units' in clip of 'ct': did you mean 'unit'?; (2) clip of 'ct': no unit",
    ),
    "clip unit": (
        own(clip={"ct": {"low": 0, "high": 1, "unit": "HU"}}),
        "clip of 'ct': unit 'HU': expected value or percentile",
    ),
    "clip order": (
        own(clip={"ct": {"low": 5, "high": 5, "unit": "value"}}),
        "clip of 'ct' is from 5 to 5: expected two numbers, low below high",
    ),
    "clip text": (own(clip={"ct": {"low": "a", "high": 5, "unit": "value"}}), "clip of 'ct' is from 'a' to 5"),
    "percentile": (
        own(clip={"mr": {"low": 1, "high": 101, "unit": "percentile"}}),
        "clip of 'mr' is from 1 to 101: expected percentiles from 0 to 100",
    ),
    "table order": (
        own(table_classes=["bladder"]),
        "table_classes ['bladder']: expected each of prostate, bladder once",
    ),
    "colours as list": (own(class_colors=["red"]), "class_colors ['red']: expected an object with a colour by class"),
    "colour of no class": (
        own(class_colors={"blader": "red"}),
        "unknown key 'blader' in class_colors: did you mean 'bladder'?",
    ),
    "colour": (
        own(class_colors={"bladder": "#12"}),
        "class_colors: 'bladder' is '#12': expected #rrggbb or one of red",
    ),
}


@pytest.mark.parametrize(("content", "text"), BROKEN.values(), ids=list(BROKEN))
def test_broken_file(content, text, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        get_task(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "problem" in message and "in the task: (1) " in message
    assert text in message, message
    assert message.endswith("; correct the file, docs/data.md explains every key")


def test_all_problems_at_once(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own(axes="XYZ", size=None, colour={}, network="resnet")), encoding="utf-8")
    with pytest.raises(InputError, match=r"4 problems in the task: \(1\) unknown key 'colour'.*; \(4\) axes 'XYZ'"):
        get_task(str(path))


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1e}', "\x00"])
def test_no_json(text, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.json: not a task file .*: expected a JSON object"):
        get_task(str(path))


def test_by_name_or_path(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN), encoding="utf-8")
    assert get_task(str(path)).name == "pelvis" and get_task("abdomen") is TASKS["abdomen"]
    with pytest.raises(
        InputError, match=r"unknown task 'liver': expected abdomen, cardiac, or the path of a task file"
    ):
        get_task("liver")
    with pytest.raises(InputError, match=r"none\.json: not a task file \(no such file\): "):
        get_task(str(tmp_path / "none.json"))


def test_an_upper_case_modality_in_a_task_file_is_refused(tmp_path):
    """It would have no effect, because modalities of scans are in lower case. What data hold of their task is read."""
    path, content = tmp_path / "own.json", own(clip={"CT": {"low": -100, "high": 300, "unit": "value"}})
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"own\.json: clip of CT: expected ct, because modalities are in lower case"):
        get_task(str(path))
    assert task_from_dict(content, "x").clip_for("ct") == DEFAULT_CLIP
    path.write_text(json.dumps(content | {"size": [1, 1]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"size \[1, 1\]: expected rows and columns"):  # all other mistakes first
        get_task(str(path))


def test_a_name_of_the_paper_is_taken(tmp_path):
    path = tmp_path / "own.json"
    abdomen = TASKS["abdomen"]
    path.write_text(json.dumps(abdomen.to_dict()), encoding="utf-8")
    assert get_task(str(path)) == abdomen
    path.write_text(json.dumps(replace(abdomen, spacing_mm=(2.0, 2.0, 8.0)).to_dict()), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"name 'abdomen' is that of the paper's task.*spacing_mm is 1\.5 × 1\.5 × 8, n"
    ):
        get_task(str(path))


def test_differences_name_the_fields():
    task = task_from_dict(own(), "x")
    other = task_from_dict(own(size=[160, 160], clip={"ct": {"low": -1, "high": 1, "unit": "value"}}), "x")
    assert differences(task, task) == []
    assert differences(task, other) == [
        "size is 160 × 192, not 160 × 160",
        "clip is default 0 to 99.5 (percentile), not default 0 to 99.5 (percentile), ct -1 to 1 (value)",
    ]
    shown = task_from_dict(own(table_classes=["bladder", "prostate"], class_colors={"bladder": "red"}), "x")
    check_same_task(task, shown, "runs/a", "train again")  # decides no result
    with pytest.raises(
        InputError, match=r"runs/a: has another task: size is 160 × 192, not 160 × 160; .*; train again"
    ):
        check_same_task(task, other, "runs/a", "train again")
