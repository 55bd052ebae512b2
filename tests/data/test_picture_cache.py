"""Pictures decoded and reduced once: the same as the detector would make them, and mended where they are damaged."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data.picture_cache import PictureCache
from detkt.data.transforms import TrainTransforms
from detkt.data.voc import VOCDetection
from detkt.engine.run import train

SIZES = {"wide": (90, 60), "tall": (50, 75), "long": (120, 30), "small": (30, 25)}


@pytest.fixture
def folder(tmp_path):
    """Noise pictures of several sizes with a box over most of each."""
    root, random = tmp_path / "voc", np.random.default_rng(0)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for name, (width, height) in SIZES.items():
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
        box = f"<xmin>4</xmin><ymin>6</ymin><xmax>{width - 5}</xmax><ymax>{height - 2}</ymax>"
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>dog</name><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
        )
    (root / "ImageSets/Main/train.txt").write_text("\n".join(SIZES))
    return root


def cached(folder, cache, min_size=40, max_size=64, transforms=None):
    kept = PictureCache(cache, min_size, max_size)
    return VOCDetection(folder, "train", transforms=transforms, picture_cache=kept)


def files(cache):
    return {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((90, 60), (60, 40)),  # the shorter side decides
        ((120, 30), (64, 16)),  # the longer one: 30 * 64 / 120
        ((30, 25), (30, 25)),  # nothing is enlarged
        ((49, 49), (40, 40)),  # 49 * (40 / 49) is below 40 in floating point
        ((1000, 2), (64, 1)),
    ],
)
def test_size_by_hand(tmp_path, size, expected):
    assert PictureCache(tmp_path, 40, 64).size(*size) == expected


def test_a_kept_picture_is_not_resized_again(tmp_path):
    """Else pictures would be blurred twice: the detector's own scale must be exactly 1."""
    cache, transform = PictureCache(tmp_path, 60, 100), GeneralizedRCNNTransform(60, 100, [0] * 3, [1] * 3).eval()
    for width in range(61, 140):
        for height in (61, 67, 100, 103):
            kept = cache.size(width, height)
            picture, _ = transform.resize(torch.empty(1, *kept[::-1]))
            assert tuple(picture.shape[:0:-1]) == kept
            whole, _ = transform.resize(torch.empty(1, height, width))
            assert max(abs(a - b) for a, b in zip(whole.shape[:0:-1], kept, strict=True)) <= 1


def test_the_detector_sees_what_it_would_see_without(folder, tmp_path):
    transform = GeneralizedRCNNTransform(40, 64, [0] * 3, [1] * 3).eval()
    for dataset in (cached(folder, tmp_path / "cache"), cached(folder, tmp_path / "cache")):  # written, then read
        for (image, target), (plain, wanted) in zip(dataset, VOCDetection(folder, "train"), strict=True):
            seen, boxes = transform([image], [target])
            batch, targets = transform([plain], [wanted])
            assert seen.tensors.shape == batch.tensors.shape
            assert (seen.tensors - batch.tensors).abs().max() <= 0.5 / 255 + 1e-5
            assert torch.allclose(boxes[0]["boxes"], targets[0]["boxes"], atol=1e-3)
            assert target["labels"].tolist() == wanted["labels"].tolist()


def test_small_pictures_and_their_boxes_are_as_they_were(folder, tmp_path):
    image, target = cached(folder, tmp_path / "cache")[3]
    plain, wanted = VOCDetection(folder, "train")[3]
    assert torch.equal(image, plain)
    assert torch.equal(target["boxes"], wanted["boxes"])


def test_boxes_by_hand(folder, tmp_path):
    dataset = cached(folder, tmp_path / "cache")
    assert dataset.picture_sizes == [(60, 40), (40, 60), (64, 16), (30, 25)]
    assert dataset.sizes == list(SIZES.values())
    # 90 x 60 becomes 60 x 40; the file's box is 4 6 85 58, as corners 3 5 85 58.
    assert dataset[0][1]["boxes"][0].tolist() == pytest.approx([2, 10 / 3, 170 / 3, 116 / 3])


def test_augmentation_comes_after(folder, tmp_path):
    plain, mirrored = cached(folder, tmp_path), cached(folder, tmp_path, transforms=TrainTransforms(flip=1))
    assert torch.equal(mirrored[0][0], plain[0][0].flip(-1))
    left, top, right, bottom = plain[0][1]["boxes"][0].tolist()
    assert mirrored[0][1]["boxes"][0].tolist() == pytest.approx([60 - right, top, 60 - left, bottom], abs=2e-3)


def test_later_reads_decode_nothing(folder, tmp_path, monkeypatch):
    first = [image for image, _ in cached(folder, tmp_path / "cache")]
    dataset = cached(folder, tmp_path / "cache")
    monkeypatch.setattr("detkt.data.detection.read_image", lambda *args: pytest.fail("decoded again"))
    assert all(torch.equal(image, before) for (image, _), before in zip(dataset, first, strict=True))
    assert len(files(tmp_path / "cache")) == 4


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "of another size", "of another type"])
def test_a_damaged_file_is_written_again(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    before = cached(folder, cache)[0][0]
    ((path, content),) = files(cache).items()
    if damage.startswith("of"):
        np.save(path, np.zeros((40, 60, 3), np.uint16) if damage.endswith("type") else np.zeros((30, 60, 3), np.uint8))
    else:
        path.write_bytes({"truncated": content[:-10], "garbage": b"\x80\x04pickle", "empty": b""}[damage])
    assert torch.equal(cached(folder, cache)[0][0], before)
    assert files(cache) == {path: content}


def test_another_picture_of_the_same_name_or_size_is_another_entry(folder, tmp_path):
    cache, picture = tmp_path / "cache", folder / "JPEGImages/wide.png"
    before = cached(folder, cache)[0][0]
    time = picture.stat().st_mtime_ns
    Image.new("RGB", SIZES["wide"], (255, 0, 0)).save(picture)
    os.utime(picture, ns=(time + 10**9, time + 10**9))
    assert cached(folder, cache)[0][0][0].min() == 1
    assert cached(folder, cache, min_size=50, max_size=80)[0][0].shape == (3, 50, 75)
    assert len(files(cache)) == 3
    assert not torch.equal(cached(folder, cache)[0][0], before)


def test_a_picture_that_is_gone_or_has_changed_its_size_is_named(folder, tmp_path):
    dataset = cached(folder, tmp_path / "cache")
    dataset[0]
    picture = folder / "JPEGImages/wide.png"
    Image.new("RGB", (50, 50)).save(picture)
    with pytest.raises(InputError, match=r"wide.png: the picture is 50 x 50 pixels"):
        dataset[0]
    picture.unlink()
    with pytest.raises(InputError, match=r"wide.png: cannot read the picture"):
        dataset[0]


def test_a_full_disk_is_one_line_and_leaves_no_half_file(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def full(stream, picture):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        InputError, match=r"cannot write the picture cache .*cache: No space left on device; free space"
    ):
        cached(folder, cache)[0]
    assert files(cache) == {}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; choose another data.cache"):
        PictureCache(tmp_path / "file" / "cache", 40, 64)


def test_training_uses_it_for_the_training_pictures_alone(tiny_config, tmp_path):
    cache = tmp_path / "cache"
    sizes = [f"student.options.{key}=48" for key in ("min_size", "max_size")]
    config = tiny_config("train.epochs=1", f"data.cache={cache}", *sizes)
    first = train(config, tmp_path / "first", quiet=True)
    kept = files(cache)
    assert len(kept) == 16
    assert {np.load(path).shape for path in kept} == {(48, 48, 3)}
    second = train(config, tmp_path / "second", quiet=True)
    assert files(cache) == kept
    assert second["map_area"] == first["map_area"]
    name = "model.safetensors"
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_it_is_not_for_classifiers(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {format: cifar10, cache: somewhere}")
    with pytest.raises(InputError, match="'data.cache' is for detectors"):
        train(load_config(tmp_path / "c.yaml", ["method=none"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
