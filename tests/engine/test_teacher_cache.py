"""Cached maps are the teacher's: of each picture and flip, refused when stale, completed when writing was cut off."""

from __future__ import annotations

import copy
import errno
import fcntl
import io
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from run_comparison import assert_same_run

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data.loading import EndlessBatches, training_loader
from detkt.distiller import Distiller
from detkt.engine import teacher_cache
from detkt.engine.run import build_net, train
from detkt.engine.teacher_cache import TeacherCache
from detkt.engine.teacher_maps import HEADER, MAPS, Layout
from detkt.kinds import kind_of
from detkt.methods.base import Needs
from detkt.tasks.detectors import Detector

BOTH = Needs.STUDENT | Needs.TEACHER_FEATURES
LOGITS = BOTH | Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS
SIZES = [(80, 64), (64, 80), (90, 50), (80, 64), (48, 96), (64, 64)]


class Run:
    """What a training run makes of a config before it trains."""

    def __init__(self, config):
        self.config, self.kind = config, kind_of(config)
        self.dataset = self.kind.training_set(config)
        torch.manual_seed(0)
        pair = config.student, config.teacher
        self.nets = [build_net(self.kind, net, "net", self.dataset.classes) for net in pair]
        self.distiller = self.with_cache(None)
        self.task = self.distiller.task

    def with_cache(self, cache):
        """A distiller of these networks, always with the same nets of the method."""
        nets, settings, classes = copy.deepcopy(self.nets), self.config.method_settings(), self.dataset.classes
        torch.manual_seed(0)
        size = self.kind.image_size(self.dataset)
        own = {"teacher_cache": cache, "own_size": self.config.teacher.own_size}
        distiller = Distiller(*nets, self.config.method, settings, classes, classes, size, **own)
        return distiller.train()

    def open(self, folder):
        cache = TeacherCache(folder)
        cache.fill(self.distiller, self.dataset, self.config, quiet=True)
        return cache

    def batches(self, count):
        order = EndlessBatches(len(self.dataset), self.config.train.batch_size, seed=0)
        return list(islice(training_loader(self.dataset, order, 0, False), count))

    def both(self, batch, needs, cache):
        """Student's and teacher's knowledge of a batch, without the cache and with it."""
        found = []
        for distiller in (self.distiller, self.with_cache(cache)):
            torch.manual_seed(1)
            found.append(distiller.task.run(*batch, needs))
        return found


def rounded(feature):
    return feature.to(torch.bfloat16).float()


def close(found, expected):
    """Equal but for the last bit of a bfloat16: in batches of another size sums come out a little different."""
    return torch.allclose(found, expected, rtol=2**-7, atol=1e-6) and (found == expected).float().mean() > 0.99


@pytest.fixture
def run(tiny_config):
    return lambda *overrides: Run(tiny_config("method=fitnet", *overrides))


@pytest.fixture(scope="module")
def whole_folder(tiny_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    Run(load_config(tiny_file, ["method=fitnet"])).open(folder)
    return folder


@pytest.fixture
def whole(whole_folder, tmp_path):
    """The maps of a complete cache, of which a copy is in tmp_path / "whole"."""
    shutil.copytree(whole_folder, tmp_path / "whole")
    return (whole_folder / MAPS).read_bytes()


@pytest.fixture
def classifier(tiny_classifier_file):
    plain = ["data.crop_padding=0", "method=fitnet"]
    return lambda *overrides: Run(load_config(tiny_classifier_file, [*plain, *overrides]))


@pytest.fixture(scope="module")
def uneven_folder(tmp_path_factory):
    """A VOC-format folder of noise pictures of SIZES."""
    root, random = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
        (root / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>disc</name>"
            "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(map(str, range(len(SIZES)))))
    return root


@pytest.fixture
def uneven(run, uneven_folder):
    """A run on these pictures, with inputs of up to 64 x 96 pixels, padded to multiples of 32."""
    sizes = [f"{net}.options.max_size=96" for net in ("student", "teacher")]
    classes = "data.classes=[cross, disc, star]"
    return lambda *overrides: run(f"data.root={uneven_folder}", classes, "teacher.checkpoint=null", *sizes, *overrides)


def backbone_passes(monkeypatch):
    """Counts the passes of teachers' backbones from now on."""
    passes, original = [], Detector.features

    def features(self, images):
        if self.role == "teacher":
            passes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Detector, "features", features)
    return passes


# -- the maps --------------------------------------------------------------------------------------------------------


def test_a_step_sees_the_teachers_maps_of_each_picture_and_flip(run, tmp_path):
    tiny = run("methods.fitnet.layers=[layer2, output]")
    cache = tiny.open(tmp_path / "cache")
    flips = []
    for images, targets in tiny.batches(6):
        plain, cached = tiny.both((images, targets), BOTH, cache)
        assert list(cached[1].features) == list(plain[1].features) == ["output", "layer2"]
        for name, expected in plain[1].features.items():
            found = cached[1].features[name]
            assert found.dtype == torch.float32
            assert close(found, rounded(expected))
            assert torch.allclose(found, expected, rtol=2**-7, atol=1e-6)
        assert all(torch.equal(cached[0].losses[name], loss) for name, loss in plain[0].losses.items())
        assert cached[1].valid == plain[1].valid
        flips += [bool(target["flipped"]) for target in targets]
    assert 5 < sum(flips) < 19


@pytest.mark.parametrize("method", ["fitnet", "dln", "kd"])
def test_the_losses_of_a_step_are_those_of_rounded_maps(method, run, tmp_path, monkeypatch):
    tiny = run(f"method={method}")
    cache, (batch,) = tiny.open(tmp_path / "cache"), tiny.batches(1)
    original = Detector.features

    def features(self, images):
        found = original(self, images)
        return {name: rounded(feature) for name, feature in found.items()} if self.role == "teacher" else found

    monkeypatch.setattr(Detector, "features", features)
    pair = tiny.distiller, tiny.with_cache(cache)
    for stage in tiny.distiller.stages:
        losses = []
        for distiller in pair:
            torch.manual_seed(1)
            (update,) = distiller.updates(stage, *batch)
            losses.append({name: float(loss.detach()) for name, loss in update.losses.items()})
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_maps_of_unequal_pictures_lie_in_the_batchs_corner(uneven, tmp_path):
    found = uneven()
    cache = found.open(tmp_path / "cache")
    # 80 x 64 and 64 x 80 fill 96 x 64 and 64 x 96 once padded; 90 x 50 becomes 96 x 53; 48 x 96 stays.
    inputs = {0: (64, 96), 1: (96, 64), 2: (64, 96), 3: (64, 96), 4: (96, 64), 5: (64, 64)}
    pictures, flipped = [5, 1, 2, 0], [False, True, True, False]
    batch = cache.read(pictures, flipped, torch.device("cpu"))["output"]
    assert batch.shape[-2:] == (6, 6)
    plain = found.dataset.plain()
    for feature, picture, mirrored in zip(batch, pictures, flipped, strict=True):
        image = plain[picture][0]
        alone = found.task.teacher_maps([image.flip(-1) if mirrored else image])["output"][0]
        height, width = alone.shape[-2:]
        assert (height * 16, width * 16) == inputs[picture]
        assert close(feature[:, :height, :width], rounded(alone))
        assert not feature[:, height:].any() and not feature[:, :, width:].any()
    # A batch of one input size, though not of one picture size, is what the teacher makes of it.
    images, targets = zip(*(plain[index] for index in (0, 2, 3)), strict=True)
    plain_run, cached_run = found.both((list(images), list(targets)), BOTH, cache)
    assert close(cached_run[1].features["output"], rounded(plain_run[1].features["output"]))
    # In one that is padded further, what counts as picture lies where the maps are.
    images, targets = zip(*(plain[index] for index in (5, 0)), strict=True)
    _, cached_run = found.both((list(images), list(targets)), BOTH, cache)
    feature = cached_run[1].features["output"]
    assert cached_run[1].mask(feature)[0, 0].tolist() == [[1] * 4 + [0] * 2] * 4
    assert feature[0, :, :4, :4].any(dim=0).all() and not feature[0, :, :, 4:].any()


def test_maps_of_the_teachers_own_size_are_kept_apart(run, whole, tmp_path):
    """Of 96 pixels where the student has 64: kept as they are, and refused by a run that has the student's."""
    tiny = run("teacher.own_size=true")
    tiny.nets[1].transform.min_size, tiny.nets[1].transform.max_size = (96,), 96
    tiny.distiller = tiny.with_cache(None)
    tiny.task = tiny.distiller.task
    assert tiny.task.input_size(64, 64) == (64, 64, 96, 96)
    cache = tiny.open(tmp_path / "cache")
    for batch in tiny.batches(2):
        (_, plain, _), (_, cached, _) = tiny.both(batch, LOGITS, cache)
        assert plain.features["output"].shape[-2:] == (6, 6)
        assert close(cached.features["output"], rounded(plain.features["output"]))
        assert torch.allclose(cached.logits, plain.logits, atol=2e-3)
    with pytest.raises(InputError, match="own transform"):
        tiny.open(tmp_path / "whole")


def test_input_sizes_are_the_transforms(uneven):
    task, sizes = uneven().task, [*SIZES, (500, 375), (33, 100), (100, 33), (49, 49), (1, 50)]
    for width, height in sizes:
        batch, _ = task.student.transform.eval()([torch.rand(3, height, width)])
        assert task.input_size(width, height) == tuple(batch.tensors.shape[-2:])


def test_under_autocast_maps_come_in_its_type(run, tmp_path):
    tiny = run()
    cache = tiny.open(tmp_path / "cache")
    expected = cache.read([3], [True], torch.device("cpu"))["output"]
    with torch.autocast("cpu", torch.bfloat16):
        found = cache.read([3], [True], torch.device("cpu"))["output"]
        _, teacher, _ = tiny.both(tiny.batches(1)[0], BOTH, cache)[1]
    assert found.dtype == teacher.features["output"].dtype == torch.bfloat16
    assert torch.equal(found.float(), expected)


def test_scores_are_the_teachers_head_on_cached_maps(run, tmp_path, monkeypatch):
    tiny = run("method=kd")
    cache, (batch,) = tiny.open(tmp_path / "cache"), tiny.batches(1)
    for teacher in (tiny.distiller.teacher, tiny.nets[1]):
        monkeypatch.setattr(teacher.rpn, "forward", lambda *args: pytest.fail("the teacher's RPN ran"))
    (student, plain, _), (_, cached, _) = tiny.both(batch, LOGITS, cache)
    assert cached.logits.shape == student.logits.shape
    assert torch.allclose(cached.logits, plain.logits, atol=2e-3)
    assert not torch.equal(cached.logits[0], cached.logits[1])


def test_classifiers_maps_and_scores(classifier, tmp_path, monkeypatch):
    tiny = classifier("methods.fitnet.layers=[layer2, output]")
    cache = tiny.open(tmp_path / "cache")
    for batch in tiny.batches(4):
        (_, plain, _), (_, cached, heads) = tiny.both(batch, LOGITS, cache)
        assert batch[1]["flipped"].sum() + 1 > 0
        for name, expected in plain.features.items():
            assert close(cached.features[name], rounded(expected))
        assert torch.allclose(cached.logits, plain.logits, atol=0.02, rtol=0.02)
        assert heads.task_losses(cached.features, "teacher")["cross_entropy"] > 0
    distiller = tiny.with_cache(cache)
    monkeypatch.setattr(distiller.teacher.backbone, "forward", lambda *args: pytest.fail("the teacher ran"))
    distiller.task.run(*batch, LOGITS)


@pytest.mark.parametrize(("flip", "states"), [(0, [False]), (1, [True]), (0.5, [False, True])])
def test_only_the_flips_that_happen_are_kept(flip, states, run, tmp_path):
    tiny = run(f"data.flip={flip}")
    cache = tiny.open(tmp_path)
    channels = tiny.distiller.method.teacher_spec.features["output"].channels
    assert (tmp_path / MAPS).stat().st_size == 16 * len(states) * channels * 4 * 4 * 2
    plain, cached = tiny.both(tiny.batches(1)[0], BOTH, cache)
    assert close(cached[1].features["output"], rounded(plain[1].features["output"]))


def test_layout_by_hand():
    shapes = {"a": {"x": [1, 2, 3], "y": [2, 1, 1]}, "b": {"x": [1, 1, 2], "y": [2, 1, 1]}}  # 8 and 4 values
    layout = Layout(["b", "a", "b", "b"], shapes, [False, True])
    assert layout.order == [1, 0, 2, 3]
    assert layout.ends == [16, 24, 32, 40]
    assert [layout.start(picture, False) for picture in range(4)] == [16, 0, 24, 32]
    assert [layout.start(picture, True) for picture in range(4)] == [20, 8, 28, 36]
    assert layout.batches(0, 2) == [[1], [0, 2], [3]]
    assert layout.batches(2, 2) == [[2, 3]]


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fitnet", "ktan"])
def test_training_runs_no_teacher_and_does_not_depend_on_who_wrote_the_cache(
    method, tiny_config, tmp_path, monkeypatch, caplog
):
    passes = backbone_passes(monkeypatch)
    config = tiny_config(f"method={method}", f"train.cache_teacher={tmp_path / 'cache'}")
    with caplog.at_level(logging.INFO, logger="detkt"):
        train(config, tmp_path / "writing", quiet=True)
    assert sum(passes) == 1 + 1 + 32  # the probe of the maps' channels, that of their sizes, 16 pictures and mirrored
    assert f"cache {tmp_path / 'cache'}: writing 0.1 MiB, the maps output of 16 pictures and their" in caplog.text
    passes.clear()
    train(config, tmp_path / "reading", quiet=True)
    assert passes == [1]
    assert_same_run(tmp_path / "reading", tmp_path / "writing")


def test_writing_draws_no_random_number(run, tmp_path):
    tiny = run("train.workers=1")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    modes = [part.training for part in tiny.distiller.student.modules()]
    tiny.open(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert [part.training for part in tiny.distiller.student.modules()] == modes


def test_a_run_is_resumed_with_its_cache(tiny_config, tmp_path, monkeypatch):
    config = tiny_config("method=dln", f"train.cache_teacher={tmp_path / 'cache'}", "train.checkpoint_every=2")
    train(config, tmp_path / "whole", quiet=True)
    original, calls = Distiller.updates, []

    def updates(self, *arguments):
        calls.append(1)
        if len(calls) == 8:
            raise OSError("pulled the plug")
        return original(self, *arguments)

    monkeypatch.setattr(Distiller, "updates", updates)
    with pytest.raises(OSError, match="plug"):
        train(config, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    passes = backbone_passes(monkeypatch)
    resumed = load_config(tmp_path / "run" / "config.yaml")
    assert resumed.train.cache_teacher == str(tmp_path / "cache")
    train(resumed, tmp_path / "run", resume=tmp_path / "run" / "last.pt", quiet=True)
    assert passes == [1]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_flag(tool, tiny_file, tmp_path, monkeypatch, capsys):
    arguments = ["--config", str(tiny_file), "--method", "fitnet", "--epochs", "1", "--quiet"]
    arguments += ["--output", str(tmp_path / "run"), "--cache-teacher", str(tmp_path / "cache")]
    tool("train_det").main(arguments)
    assert json.loads((tmp_path / "cache" / HEADER).read_text())["written"] == 16
    with pytest.raises(InputError, match="data.color=0.5 pictures are changed at random"):
        tool("train_det").main([*arguments, "--overwrite", "data.color=0.5"])


def test_a_run_without_teacher_needs_no_cache(tiny_config, tmp_path, caplog):
    caplog.set_level("INFO")
    config = tiny_config("method=none", "train.epochs=1", f"train.cache_teacher={tmp_path / 'c'}")
    train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "c").exists()
    assert "method 'none' learns from no teacher: train.cache_teacher is not used" in caplog.messages


def test_the_picture_cache_serves_the_pass(tiny_config, tmp_path):
    config = tiny_config(
        "method=fitnet", "train.epochs=1", f"train.cache_teacher={tmp_path / 't'}", f"data.cache={tmp_path / 'p'}"
    )
    train(config, tmp_path / "run", quiet=True)
    assert len(list((tmp_path / "p").rglob("*.npy"))) == 16
    config.data.cache = None  # pictures of 64 x 64 are kept as they are: the maps are the same
    train(config, tmp_path / "other", quiet=True)


# -- stale and unfit -------------------------------------------------------------------------------------------------


def stale(run, folder):
    with pytest.raises(InputError) as caught:
        run.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the teacher cache {folder} " in message
    assert message.endswith("; give another --cache-teacher, or delete the folder to have it made anew")
    return message


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["data.flip=1"], "the list of flips is [False, True] there, [True] here"),
        (["methods.fitnet.layers=[layer2]"], "the list of layers is ['output'] there, ['output', 'layer2'] here"),
        (["student.options.min_size=48"], "min_size of the image transform is [64] there, [48] here"),
        (["student.options.max_size=80"], "max_size of the image transform is 64 there, 80 here"),
        (["data.train=test"], "the hash of the pictures' list, sizes and times is"),
        (["teacher.checkpoint=null"], "the hash of the teacher's weights is"),
        (
            ["teacher.checkpoint=null", "teacher.architecture=fasterrcnn_resnet18x0.25_c4"],
            "the teacher's architecture is fasterrcnn_resnet10x0.25_c4 there, fasterrcnn_resnet18x0.25_c4 here",
        ),
        (
            ["teacher.checkpoint=null", "teacher.options.norm=frozen"],
            "the teacher's option norm is batch there, frozen here",
        ),
        (
            [f"{net}.options.image_mean=[0.5,0.5,0.5]" for net in ("student", "teacher")] + ["teacher.checkpoint=null"],
            "the teacher's option image_mean is [0.485, 0.456, 0.406] there, [0.5, 0.5, 0.5] here",
        ),
    ],
)
def test_a_stale_cache_is_refused(overrides, what, run, whole, tmp_path, monkeypatch):
    cache = tmp_path / "whole"
    passes = backbone_passes(monkeypatch)
    other = run(*overrides)
    del passes[:]
    assert f"does not fit: {what}" in stale(other, cache)
    assert passes == []
    assert (cache / MAPS).read_bytes() == whole


def test_other_pictures_times_or_weights_make_it_stale(uneven, uneven_folder, tmp_path):
    folder = shutil.copytree(uneven_folder, tmp_path / "voc")
    cache = tmp_path / "cache"
    found = uneven(f"data.root={folder}")
    found.open(cache)
    os.utime(folder / "JPEGImages/3.png", ns=(10**9, 10**9))
    assert "the hash of the pictures' list, sizes and times" in stale(found, cache)
    shutil.copystat(uneven_folder / "JPEGImages/3.png", folder / "JPEGImages/3.png")
    found.open(cache)
    with torch.no_grad():
        next(found.distiller.teacher.parameters())[0, 0, 0, 0] += 1e-3
    assert "the hash of the teacher's weights" in stale(found, cache)


def test_the_classifiers_normalisation_is_of_the_key(classifier, tmp_path):
    classifier().open(tmp_path)
    other = classifier("data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]")
    assert "the hash of the pictures' list, sizes and times" in stale(other, tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda header: header | {"format": 0}, "another version of detkt (format 0, not 1)"),
        (lambda header: header | {"key": header["key"] | {"the precision": "half"}}, "the precision is half there"),
        (lambda header: header | {"key": header["key"] | {"a": 1}}, "a is 1 there, None here"),
        (lambda header: header | {"written": "many"}, f"is damaged: {HEADER} cannot be read"),
        (lambda header: [], f"is damaged: {HEADER} cannot be read"),
        (None, f"is damaged: {HEADER} cannot be read"),
    ],
)
def test_another_version_or_a_damaged_header_is_refused(change, what, run, whole, tmp_path):
    path = tmp_path / "whole" / HEADER
    path.write_text("{" if change is None else json.dumps(change(json.loads(path.read_text()))))
    assert what in stale(run(), tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["data.color=0.1"], "data.color=0.1"),
        (["data.scale=[0.8,1.2]"], r"data.scale=\[0.8, 1.2\]"),
    ],
)
def test_detectors_pictures_may_only_be_flipped(overrides, name, run, tmp_path):
    with pytest.raises(InputError, match=rf"{name} pictures are changed at random in other ways; switch that off"):
        run(*overrides).open(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["data.crop_padding=2", "data.image_size=16"])
def test_classifiers_pictures_may_only_be_flipped(name, classifier, tmp_path):
    with pytest.raises(InputError, match=rf"{name} pictures are changed at random in other ways; switch that off"):
        classifier(name).open(tmp_path / "cache")


def test_other_refusals(run, tiny_config, tmp_path):
    tiny = run()
    tiny.distiller.student.transform.min_size = (48, 64)
    with pytest.raises(InputError, match="several min_size"):
        tiny.open(tmp_path / "cache")
    with pytest.raises(InputError, match="method 'none' learns from no teacher"):
        distiller = Distiller(tiny.distiller.student, None, "none")
        TeacherCache(tmp_path / "cache").fill(distiller, tiny.dataset, tiny_config(), quiet=True)
    with pytest.raises(InputError, match="cache was not filled: call fill"):
        run().with_cache(TeacherCache(tmp_path / "cache")).task.run(*tiny.batches(1)[0], BOTH)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; choose another --cache-teacher"):
        run().open(tmp_path / "file" / "cache")


# -- whole or not ----------------------------------------------------------------------------------------------------


def appending(monkeypatch, number, action):
    """Do *action* instead of the *number*-th write of maps."""
    original, calls = teacher_cache.append, []

    def append(file, content, folder):
        calls.append(1)
        if len(calls) == number:
            action(file, content)
        original(file, content, folder)

    monkeypatch.setattr(teacher_cache, "append", append)


def written(folder):
    return json.loads((folder / HEADER).read_text())["written"]


def completed(run, folder, whole, pictures, monkeypatch):
    """Whether opening *folder* runs the teacher on so many *pictures* and their mirror images, and makes it whole."""
    passes, tiny = backbone_passes(monkeypatch), run()
    del passes[:]
    tiny.open(folder)
    assert written(folder) == 16
    return sum(passes) == 2 * pictures and (folder / MAPS).read_bytes() == whole


def test_ctrl_c_keeps_what_is_written(run, whole, tmp_path, monkeypatch):
    def stop(file, content):
        file.write(content[:7])
        raise KeyboardInterrupt

    appending(monkeypatch, 3, stop)
    with pytest.raises(KeyboardInterrupt):
        run().open(tmp_path / "cache")
    assert written(tmp_path / "cache") == 8
    assert completed(run, tmp_path / "cache", whole, 8, monkeypatch)


@pytest.mark.parametrize("save_every", [1, 2**28])
def test_a_killed_process_leaves_what_it_had_saved(save_every, run, whole, tmp_path, monkeypatch):
    tiny, folder = run(), tmp_path / "cache"
    monkeypatch.setattr(teacher_cache, "SAVE_EVERY", save_every)
    appending(monkeypatch, 4, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
    process = multiprocessing.get_context("fork").Process(target=tiny.open, args=(folder,))
    process.start()
    process.join(60)
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    assert (folder / MAPS).stat().st_size == len(whole) * 12 // 16
    if save_every == 1:
        assert written(folder) == 12
        assert completed(run, folder, whole, 4, monkeypatch)
    else:
        assert not (folder / HEADER).exists()
        passes = backbone_passes(monkeypatch)
        run().open(folder)
        assert sum(passes) >= 32
        assert (folder / MAPS).read_bytes() == whole


def test_bytes_beyond_what_was_saved_are_not_trusted(run, whole, tmp_path, monkeypatch):
    """After a power cut the file may be as long as it was, without all of its content."""
    folder = tmp_path / "whole"
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | {"written": 10}))
    size = len(whole) // 16
    (folder / MAPS).write_bytes(whole[: 10 * size] + bytes(4 * size))
    assert completed(run, folder, whole, 6, monkeypatch)


def test_a_truncated_or_missing_file_is_completed(run, whole, tmp_path, monkeypatch):
    folder, size = tmp_path / "whole", len(whole) // 16
    (folder / MAPS).write_bytes(whole[: 11 * size + 5])
    assert completed(run, folder, whole, 5, monkeypatch)
    (folder / MAPS).unlink()
    assert completed(run, folder, whole, 16, monkeypatch)
    (folder / MAPS).write_bytes(whole + b"more")
    assert completed(run, folder, whole, 0, monkeypatch)


def test_the_space_is_looked_at_before(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=65_535))
    with pytest.raises(InputError, match=r"needs 0.1 MiB in .*cache, but 0.1 MiB are free there; free space"):
        run().open(tmp_path / "cache")
    assert not (tmp_path / "cache" / HEADER).exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=65_536))
    run().open(tmp_path / "cache")


def test_a_disk_that_fills_up_is_one_line_and_what_is_written_is_kept(run, whole, tmp_path, monkeypatch):
    folder, size = tmp_path / "cache", len(whole) // 16

    class Full(io.FileIO):
        def write(self, content):
            room = 9 * size - self.seek(0, os.SEEK_END)
            if room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content[:room])

    monkeypatch.setattr(teacher_cache, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
    with pytest.raises(InputError, match=r"cannot write the teacher cache .*cache: No space left on device; free"):
        run().open(folder)
    monkeypatch.delattr(teacher_cache, "open")
    assert written(folder) == 8
    assert completed(run, folder, whole, 8, monkeypatch)


def test_a_second_run_waits_for_the_first(run, whole, tmp_path, caplog):
    folder, tiny = tmp_path / "cache", run()
    folder.mkdir()
    with open(folder / MAPS, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = threading.Thread(target=tiny.open, args=(folder,), daemon=True)
        with caplog.at_level(logging.INFO, logger="detkt"):
            second.start()
            second.join(1)
        assert second.is_alive()
        assert f"another run writes the teacher cache {folder}: waiting for it" in caplog.text
        assert (folder / MAPS).stat().st_size == 0
    second.join(60)
    assert (folder / MAPS).read_bytes() == whole


def test_a_whole_cache_is_read_where_nothing_can_be_written(run, whole, tmp_path, monkeypatch):
    folder = tmp_path / "whole"
    monkeypatch.setattr(teacher_cache, "make_folder", lambda *arguments: pytest.fail("writes"))
    run().open(folder)
