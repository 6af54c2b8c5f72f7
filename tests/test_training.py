"""The loop: what it writes, exact resume, stopping, and a model that learns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_networks import toy

from ummkd_tf import UnpairedSegmenter
from ummkd_tf.common import errors
from ummkd_tf.common.errors import InputError
from ummkd_tf.data.cases import Case
from ummkd_tf.data.sampling import PatchExamples, SliceExamples, UnpairedSampler
from ummkd_tf.runs import checkpoints, history, training
from ummkd_tf.runs.checkpoints import CheckpointFolder, Progress, read_checkpoint, write_checkpoint
from ummkd_tf.runs.tensorboard import ValidationPicture
from ummkd_tf.scans.geometry import Grid
from ummkd_tf.tasks import get_task


@pytest.fixture(autouse=True)
def _toy_networks(monkeypatch):
    monkeypatch.setattr(
        "ummkd_tf.model.networks.NETWORKS", {"toy2d": toy(2, dropout=0.25), "toy3d": toy(3, dropout=0.0)}
    )


class Cubes:
    """Examples of one modality: a bright or dark cube at a random place."""

    def __init__(self, sign, rank):
        self.sign, self.rank = sign, rank

    def origin(self, rng):
        row, column = rng.integers(0, 9, 2)
        rng.normal(0, 0.2, (16, 16, 8))  # the image's noise comes from the same generator
        return f"cube {row} {column}"

    def draw(self, rng):
        label = np.zeros((16, 16, 8), np.uint8)
        row, column = rng.integers(0, 9, 2)
        label[row : row + 8, column : column + 8] = 1
        image = (self.sign * label.astype(np.float32) + rng.normal(0, 0.2, label.shape)).astype(np.float32)
        return (image[..., None], label) if self.rank == 3 else (image[..., :3], label[..., 1])


def compiled_model(network="toy3d", setting="ours", rate=1e-2, absent="uniform", xla=False, **of_adam):
    keras.utils.set_random_seed(0)
    model = UnpairedSegmenter(network=network, setting=setting, width=4, num_classes=2)
    model.compile(keras.optimizers.Adam(rate, epsilon=1e-8, **of_adam), l2_weight=0.0, absent=absent, jit_compile=xla)
    return model


def cubes(rank=3):
    return UnpairedSampler({"ct": Cubes(1, rank), "mr": Cubes(-1, rank)}, batch_size=2, seed=0)


def run(model, run_dir, steps, **arguments):
    defaults = {
        "validate": lambda: {"dice": float(int(model.optimizer.iterations) % 5)},
        "validate_every": 4,
        "checkpoint_every": 3,
        "norm_batches": 2,
        "log_every": 1,
    }
    return training.train(model, cubes(model.network.rank), run_dir, steps=steps, **{**defaults, **arguments})


def weights(model):
    """Everything a checkpoint holds, by name."""
    return {name: np.asarray(v.value) for name, v in checkpoints._variables(model).items()}


class Killed(Exception):
    pass


# The others hold the same kinds of variables as these.
KILLED = [("toy3d", setting, "uniform") for setting in ("individual", "joint", "x_shaped", "ours")]
KILLED += [("toy2d", "ours", "uniform"), ("toy3d", "ours", "memory")]


@pytest.mark.parametrize(("network", "setting", "absent"), KILLED)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, network, setting, absent):
    """Weights, statistics, Adam's moments, dropout's state, the classes' memory and the log, bit for bit."""
    whole = compiled_model(network, setting, absent=absent)

    def validate():
        step = int(whole.optimizer.iterations)
        if step == 4:  # what a run killed here leaves; its newest checkpoint is of step 3
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        return {"dice": float(step % 5)}

    run(whole, tmp_path / "whole", 9, validate=validate)
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000003.npz"]
    again = compiled_model(network, setting, absent=absent)
    progress = run(again, tmp_path / "cut", 9)
    assert progress.step == 9
    resumed = weights(again)
    for path, value in weights(whole).items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    histories = [(tmp_path / name / history.HISTORY).read_text(encoding="utf-8") for name in ("whole", "cut")]
    assert histories[0] == histories[1]
    steps = [json.loads(line)["step"] for line in histories[0].splitlines()]
    assert steps == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9]  # each step, and after it the validation


def test_xla_changes_no_more_than_rounding(tmp_path):
    plain, compiled = (compiled_model(absent="memory", xla=xla) for xla in (False, True))
    before = weights(plain)
    for model, name in ((plain, "plain"), (compiled, "compiled")):
        run(model, tmp_path / name, 4)
    after = weights(compiled)
    assert any(not np.array_equal(before[path], value) for path, value in after.items())
    for path, value in weights(plain).items():
        np.testing.assert_allclose(after[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def test_memory_of_classes_moves_in_training_steps_only_and_is_stored_where_chosen():
    model = compiled_model(absent="memory")
    images, labels = cubes().batch(0)

    def memory():
        return {m: model.memory[m].numpy() for m in ("ct", "mr")}

    assert {name for name in weights(model) if name.startswith("memory/")} == {"memory/ct", "memory/mr"}
    assert not any(name.startswith("memory/") for name in weights(compiled_model()))
    model.batch_losses(images, labels, training=False)
    assert not any(z.any() for z in memory().values())
    broken = {**images, "mr": np.full_like(images["mr"], np.nan)}
    model.optimize(broken, labels)
    assert not any(z.any() for z in memory().values())
    terms = model.optimize(images, labels)
    first = memory()
    assert all(z.all() for z in first.values()) and float(terms["alone"]) == 0
    empty = {**labels, "mr": np.zeros_like(labels["mr"])}
    assert float(model.optimize(images, empty)["alone"]) == 1
    second = memory()
    np.testing.assert_array_equal(second["mr"][1], first["mr"][1])
    for m, row in (("mr", 0), ("ct", 0), ("ct", 1)):
        assert np.any(second[m][row] != first[m][row])
    model.optimize({"ct": images["ct"]}, {"ct": labels["ct"]})  # one modality: no distillation, its memory still moves
    np.testing.assert_array_equal(memory()["mr"], second["mr"])


@pytest.mark.parametrize("setting", ["ours", "individual"])
def test_averaged_weights_validate_and_are_the_best_checkpoint(tmp_path, setting):
    """After n steps 0.5ⁿ⁻¹ w₁ + Σ 0.5ⁿ⁻ᵏ⁺¹ wₖ; the weights themselves go on as without averaging, also after a kill."""
    averaging = {"use_ema": True, "ema_momentum": 0.5}
    seen, expected = [], {}

    def kernels(model):
        return {v.path: v.numpy() for v in model.trainable_variables}

    plain = compiled_model(setting=setting)

    def plain_score():
        for path, value in kernels(plain).items():
            expected[path] = 0.5 * expected[path] + 0.5 * value if path in expected else value
        return {"dice": 0.5}

    run(plain, tmp_path / "plain", 5, validate=plain_score, validate_every=1, norm_batches=0)

    def averaged_score(model):
        seen.append(kernels(model))
        return {"dice": 0.1 * len(seen)}

    first, again = (compiled_model(setting=setting, **averaging) for _ in range(2))
    run(first, tmp_path / "cut", 3, validate=lambda: averaged_score(first), validate_every=1, norm_batches=0)
    run(again, tmp_path / "cut", 5, validate=lambda: averaged_score(again), validate_every=1, norm_batches=0)
    best, _ = read_checkpoint(tmp_path / "cut/checkpoints/best.npz")
    assert len(seen) == 5
    for path, value in kernels(plain).items():
        np.testing.assert_array_equal(again_value := kernels(again)[path], value, err_msg=path)
        np.testing.assert_allclose(seen[-1][path], expected[path], rtol=1e-5, atol=1e-7, err_msg=path)
        np.testing.assert_array_equal(best[f"model/{path}"], seen[-1][path])
        assert np.any(again_value != seen[-1][path])


def test_killed_between_the_best_checkpoint_and_the_next_one(tmp_path, monkeypatch):
    """best.npz is then newer than the newest checkpoint; both runs still end alike, with the same best one."""
    save_best = CheckpointFolder.save_best

    def save_and_copy(self, model, progress, modalities):
        save_best(self, model, progress, modalities)
        if progress.step == 4:
            shutil.copytree(self.run_dir, tmp_path / "cut")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "save_best", save_and_copy)
        run(compiled_model(), tmp_path / "whole", 9)
    saved = {p.name for p in (tmp_path / "cut/checkpoints").iterdir()}
    assert saved == {"best.npz", "step-00000003.npz"}
    run(compiled_model(), tmp_path / "cut", 9)
    for path in sorted((tmp_path / "whole/checkpoints").iterdir()):
        (arrays, progress), (found, again) = (
            read_checkpoint(p) for p in (path, tmp_path / "cut/checkpoints" / path.name)
        )
        assert progress == again
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, found[name], err_msg=f"{path.name} {name}")


def test_what_is_recorded_as_best_is_what_the_file_holds_although_a_step_done_again_scores_less(tmp_path, monkeypatch):
    """Without deterministic operations: killed behind best.npz of step 4, before any checkpoint of that step."""
    save_best = CheckpointFolder.save_best

    def save_and_die(self, model, progress, modalities):
        save_best(self, model, progress, modalities)
        if progress.step == 4:
            raise Killed

    arguments = {"validate_every": 2, "norm_batches": 0}
    scores = iter([0.5, 0.9])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointFolder, "save_best", save_and_die)
        run(compiled_model(), tmp_path, 6, validate=lambda: {"dice": next(scores)}, **arguments)
    progress = run(compiled_model(), tmp_path, 6, validate=lambda: {"dice": 0.7}, **arguments)
    assert (progress.best_dice, progress.best_step) == (0.9, 4)
    best_of = {"ct": 0.9, "mr": 0.9}
    assert read_checkpoint(tmp_path / "checkpoints" / checkpoints.BEST)[1] == Progress(4, 0.9, 4, best_of)


@pytest.mark.parametrize(
    ("setting", "steps", "ends"), [("individual", {"ct": 4, "mr": 6}, [5, 8]), ("joint", {"ct": 4, "mr": 4}, [8])]
)
def test_what_shares_nothing_is_chosen_by_its_own_modality(tmp_path, setting, steps, ends):
    """Individual is two trainings: the best CT network does not wait for the MR one. Also in a continued run."""
    dice = {2: (0.5, 0.5), 4: (0.7, 0.4), 5: (0.0, 0.0), 6: (0.1, 0.8), 8: (0.2, 0.6)}
    seen = {}

    def train(steps):
        model = compiled_model(setting=setting)

        def validate():
            step = int(model.optimizer.iterations)
            seen[step] = {name: np.asarray(v.value) for name, v in checkpoints.weights(model).items()}
            ct, mr = dice[step]
            return {"dice": (ct + mr) / 2, "ct_dice": ct, "mr_dice": mr}

        return run(model, tmp_path, steps, validate=validate, validate_every=2, checkpoint_every=5)

    progress = [train(end) for end in ends][-1]
    best, _ = read_checkpoint(tmp_path / "checkpoints" / checkpoints.BEST)
    for name in checkpoints.weights(compiled_model(setting=setting)):
        step = steps["mr" if "/mr/" in name else "ct"]
        np.testing.assert_array_equal(best[name], seen[step][name], err_msg=name)
    assert progress.best_dice == pytest.approx(0.75 if setting == "individual" else 0.55)
    assert progress.best_step == max(steps.values())


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    scores = iter([float("nan"), 0.2, float("nan"), 0.2])  # nor is one that is only as good
    progress = run(compiled_model(), tmp_path, 8, validate=lambda: {"dice": next(scores)}, validate_every=2)
    assert (progress.best_dice, progress.best_step) == (0.2, 4)


def test_validation_sees_the_statistics_of_the_last_training_batches(tmp_path, monkeypatch, eager):
    """Two batches: validated after 2 and 3 steps, those of steps 0 and 1 (from 0), then of 1 and 2."""
    events = []

    def look(model, batches):
        events.append([images["ct"].numpy().tobytes() for images in batches])

    def validate():
        events.append("validation")
        return {"dice": 0.0}

    monkeypatch.setattr(UnpairedSegmenter, "estimate_statistics", look)
    run(compiled_model(), tmp_path, 3, validate=validate, validate_every=2)
    batches = [cubes().batch(step)[0]["ct"].tobytes() for step in range(3)]
    assert events == [batches[:2], "validation", batches[1:], "validation"]


def test_a_damaged_or_missing_log_does_not_stop_a_run(tmp_path, caplog):
    """Good lines are kept; a warning tells of the others."""
    run(compiled_model(), tmp_path, 3, validate=None, norm_batches=0)
    path = tmp_path / history.HISTORY
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"\xff\xfe{", b"3", b'{"step": "1"}', lines[2], b'{"step": 3, "lo']))
    assert history.last_step(path) == 3
    run(compiled_model(), tmp_path, 4, validate=None, norm_batches=0)
    assert [line["step"] for line in history.read_history(path)] == [1, 3, 4]
    assert history.last_step(path) == 4 and history.last_step(tmp_path / "none.jsonl") == 0
    assert [f"line {n} is damaged" in caplog.text for n in range(1, 7)] == [False, True, True, True, False, False]
    path.unlink()
    run(compiled_model(), tmp_path, 5, validate=None, norm_batches=0)
    assert "history.jsonl: missing: what it told of the first 4 steps is lost" in caplog.text


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Synced, renamed, and then the rename synced: also a machine that loses its power keeps one of the two."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(old, new):
        done.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_checkpoint(tmp_path / "step-00000001.npz", compiled_model(), Progress(step=1))
    assert done == ["file", "step-00000001.npz", "folder"]


def test_what_a_run_leaves_behind(tmp_path):
    model = compiled_model()
    progress = run(model, tmp_path, 8, checkpoint_every=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.npz",
        "step-00000006.npz",
        "step-00000008.npz",
    ]
    assert progress == Progress(
        8, best_dice=4.0, best_step=4, best_of={"ct": 4.0, "mr": 4.0}
    )  # validated at 4 (4.0) and 8 (3.0)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.npz")[1].step == 4
    line = json.loads((tmp_path / history.HISTORY).read_text(encoding="utf-8").splitlines()[0])
    assert {"loss", "kd_loss", "l2_loss", "ct_segmentation_loss", "mr_segmentation_loss", "ct_dice_loss"} < set(line)
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    tags = {value.tag for event in written for value in event.summary.value}
    assert {"learning_rate", "loss/total", "loss/kd", "loss/l2", "loss/ct/dice", "loss/mr/cross_entropy"} < tags
    assert "validation/dice" in tags and all("/" in tag or tag == "learning_rate" for tag in tags)
    assert run(model, tmp_path, 8) == progress  # nothing left to do


def test_a_validation_s_picture_shows_one_case_of_each_modality(tmp_path):
    """RGB, prediction and reference over the scan; nothing without a case, as of released records."""
    task, rng = get_task("abdomen"), np.random.default_rng(0)
    label = np.zeros((32, 32, 4), np.uint8)
    label[4:12, 4:12], label[20:28, 20:28] = 1, 4
    grid = Grid(np.eye(4), label.shape)
    picture = ValidationPicture(task)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        picture.write(1)
        for name, modality in (("ct_1", "ct"), ("ct_2", "ct"), ("mr_1", "mr")):
            image = rng.normal(size=label.shape).astype(np.float32)
            case = Case(case_id=name, modality=modality, image=image, label=label, grid=grid, original=grid)
            picture.watch(case, np.roll(label, 2, axis=0))
        picture.write(2)
    (events,) = tmp_path.iterdir()
    written = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    (event,) = (event for event in written if event.summary.value)
    assert (event.step, event.summary.value[0].tag) == (2, "validation/prediction")
    drawn = tf.io.decode_png(event.summary.value[0].tensor.string_val[2]).numpy()
    assert drawn.shape == (360, 640, 3)  # two panels of 4 inches at 80 dots
    assert (drawn.max(-1) != drawn.min(-1)).any()  # colours


def test_tags_are_groups():
    names = {"loss": "loss/total", "ct_dice_loss": "loss/ct/dice", "validation_ct_left_kidney_dice":
             "validation/ct/left_kidney_dice", "validation_dice": "validation/dice"}  # fmt: skip
    assert {name: training.summary_tag(name, ("ct", "mr")) for name in names} == names


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_leave(tmp_path, number, code, capfd):
    """Also one that comes during a validation, however long: what it does is kept, and the user knows at once."""
    model = compiled_model()

    def validate():
        os.kill(os.getpid(), number)
        return {"dice": 0.0}

    with pytest.raises(errors.Stopped, match="at step 2; the same command continues") as stopped:
        run(model, tmp_path, 9, validate=validate, validate_every=2, checkpoint_every=100)
    assert stopped.value.exit_code == code
    assert f"{number.name}: saving after this step and its validation" in capfd.readouterr().err
    assert CheckpointFolder(tmp_path).restore_newest(compiled_model()).step == 2


def test_max_hours_stops_cleanly(tmp_path):
    with pytest.raises(errors.Stopped, match="max_hours") as stopped:
        run(compiled_model(), tmp_path, 9, max_hours=0.0)
    assert stopped.value.exit_code == 0


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(tmp_path):
    """One NaN in step 5's CT images: the terms are named, the examples too, and the saved state is that of step 4."""

    class Spoilt(UnpairedSampler):
        def batch(self, step, part=(0, 1)):
            images, labels = super().batch(step, part)
            if step == 4:
                images["ct"][0, 3, 3, 3] = np.nan
            return images, labels

    good, spoilt = compiled_model(), compiled_model()
    run(good, tmp_path / "good", 4, validate=None, norm_batches=0)
    run_dir = tmp_path / "spoilt"
    sampler = Spoilt(cubes().examples, batch_size=2, seed=0)
    with pytest.raises(
        InputError,
        match="step 5: ct_cross_entropy, ct_dice_loss, ct_segmentation_loss, gradient_norm, kd_loss, loss not finite: "
        "the state before it is saved",
    ):
        training.train(spoilt, sampler, run_dir, steps=9, validate=None, validate_every=9, checkpoint_every=3)
    report = json.loads((run_dir / training.NOT_FINITE).read_text(encoding="utf-8"))
    assert report["step"] == 5 and report["batch"]["ct"] == ["cube 4 7", "cube 2 6"]
    assert report["not_finite"]["ct_dice_loss"] == "nan" and "mr_dice_loss" not in report["not_finite"]
    assert CheckpointFolder(run_dir).restore_newest(spoilt).step == 4
    for path, value in weights(good).items():
        np.testing.assert_array_equal(value, weights(spoilt)[path], err_msg=path)


def test_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, caplog):
    model = compiled_model()
    run(model, tmp_path, 4, checkpoint_every=2)
    newest = tmp_path / "checkpoints" / "step-00000004.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    assert CheckpointFolder(tmp_path).restore_newest(compiled_model()).step == 2
    assert "step-00000004.npz: damaged checkpoint" in caplog.text


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(compiled_model(setting="joint"), Progress(step=1))
    with pytest.raises(InputError, match="another architecture"):
        folder.restore_newest(compiled_model(setting="ours"))


def test_no_pickle_is_loaded_from_a_checkpoint(tmp_path):
    path = tmp_path / "step-00000001.npz"
    np.savez(path, meta=np.array([{"step": 1}], dtype=object))
    with pytest.raises(InputError, match="damaged checkpoint"):
        read_checkpoint(path)


def test_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model = compiled_model()
    path = tmp_path / "step-00000001.npz"
    write_checkpoint(path, model, Progress(step=1))
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        write_checkpoint(path, model, Progress(step=2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_really_full_disk_keeps_the_earlier_checkpoints(tmp_path):
    """A small file system in memory, where the machine lets us make one; it fills up at step 6."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")
    try:
        model = compiled_model()

        def fill_up():
            with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
                while filler.write(b"0" * 4096):
                    pass
            return {"dice": 0.0}

        with pytest.raises(InputError, match=r"could not be written .No space left on device.: make room"):
            run(model, disk / "run", 9, validate=fill_up, validate_every=5, checkpoint_every=2)
        checkpoints = disk / "run" / "checkpoints"
        assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000002.npz", "step-00000004.npz"]
        (disk / "filler").unlink()
        assert run(compiled_model(), disk / "run", 9).step == 9  # room was made: it continues
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_fit_and_the_loop_take_the_same_step():
    """`fit`, `train_on_batch` and `optimize` give the same losses and weights."""
    batches = list(cubes().batches(0, 2))
    by_loop, by_fit, by_batch = (compiled_model(rate=1e-3) for _ in range(3))
    for images, labels in batches:
        terms = by_loop.optimize(images, labels)
        logs = by_batch.train_on_batch(images, labels, return_dict=True)
        by_batch.reset_metrics()
        assert logs["loss"] == pytest.approx(float(terms["loss"]), rel=1e-4)
    history = by_fit.fit((b for b in batches), steps_per_epoch=2, epochs=1, verbose=0).history
    assert {"loss", "kd_loss", "l2_loss", "ct_segmentation_loss", "mr_cross_entropy"} <= set(history)
    for a, b in zip(by_loop.trainable_variables, by_fit.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4, err_msg=a.path)
    assert by_fit.evaluate((b for b in batches[:1]), steps=1, verbose=0, return_dict=True)["loss"] < 2


def test_learns_cubes_of_opposite_contrast(tmp_path):
    """Bright in CT, dark in MR: `ours` segments both after 40 steps, and the distillation loss is reported."""
    model = compiled_model()
    run(model, tmp_path, 40, validate_every=100)
    images, labels = cubes().batch(10_000)
    logits = model(images)
    for m in images:
        predicted = np.argmax(logits[m], -1)
        dice = 2 * np.sum((predicted == 1) & (labels[m] == 1)) / (np.sum(predicted == 1) + np.sum(labels[m] == 1))
        assert dice > 0.9, m


def test_samplers_of_a_prepared_data_set(prepared_dataset):
    for examples, shape in ((PatchExamples, (2, 64, 64, 8, 1)), (SliceExamples, (2, 64, 64, 3))):
        sources = {
            m: examples(prepared_dataset.stored_cases("train", m, factor=4)) for m in prepared_dataset.modalities
        }
        images, labels = UnpairedSampler(sources, 2, 0).batch(0)
        assert {m: x.shape for m, x in images.items()} == {"ct": shape, "mr": shape}
        assert set(np.unique(labels["ct"])) <= {0, 1, 2, 3, 4}


def test_without_validation_there_is_no_score_and_no_best_checkpoint(tmp_path):
    progress = run(compiled_model(), tmp_path, steps=2, validate=None)
    assert (progress.step, progress.best_dice) == (2, None)
    assert [line["step"] for line in history.read_history(tmp_path / history.HISTORY)] == [1, 2]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.npz")] == ["step-00000002.npz"]


def test_knowledge_is_recorded_before_the_first_step_and_with_each_validation(tmp_path):
    model = compiled_model()

    def knowledge():
        return {"kd_loss": float(int(model.optimizer.iterations)), "q": {}}

    run(model, tmp_path, 6, knowledge=knowledge)
    lines = history.read_history(tmp_path / history.KNOWLEDGE)
    assert [(line["step"], line["kd_loss"]) for line in lines] == [(0, 0.0), (4, 4.0), (6, 6.0)]


def test_the_time_a_run_will_take_is_told(monkeypatch):
    """The median step counts: neither the first, which traces, nor one with a validation behind it."""
    ends = [100.0, 102.0, 104.0, 150.0, 152.0, 154.0]
    assert training.time_left(ends, 1000) is None  # 33 minutes
    assert training.time_left(ends, 2000) == "2 s a step: 2000 more take about an hour, and validation comes on top"
    assert training.time_left(ends, 9000) == "2 s a step: 9000 more take about 5 hours, and validation comes on top"
    monkeypatch.setattr(training.tf.config, "list_physical_devices", lambda kind: [])
    assert training.time_left(ends, 90000).startswith("warning: no GPU: 2 s a step: 90000 more take about 50 hours")
    monkeypatch.setattr(training.tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    assert training.time_left(ends, 90000).startswith("2 s a step")
