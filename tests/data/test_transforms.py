from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.data.transforms import IMAGENET_MEAN, TrainTransforms

HEIGHT, WIDTH = 60, 90
BOXES = np.array([[10, 20, 40, 50], [0, 0, 90, 60], [89, 59, 90, 60], [50.25, 5, 70, 9.5]])
LABELS = np.array([3, 1, 2, 7])


def scene(boxes=BOXES):
    """Each pixel holds its own place: x in red, y in green, and 200 in blue."""
    image = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(WIDTH), np.arange(HEIGHT)[:, None], 200
    return image, boxes.copy(), LABELS[: len(boxes)].copy()


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def in_a_process(transforms):
    return transforms(*scene(), 5)


def test_nothing_asked_nothing_changed():
    result = TrainTransforms(flip=0)(*scene(), 1)
    assert equal(result[:3], scene())
    assert result[3] is False


def test_flip_mirrors_pixels_and_boxes():
    image, boxes, labels, flipped = TrainTransforms(flip=1)(*scene(), 1)
    assert flipped is True
    np.testing.assert_array_equal(image, scene()[0][:, ::-1])
    assert boxes.tolist() == [[50, 20, 80, 50], [0, 0, 90, 60], [0, 59, 1, 60], [20, 5, 39.75, 9.5]]
    assert labels.tolist() == LABELS.tolist()


def test_flip_keeps_its_probability():
    transforms = TrainTransforms(flip=0.25)
    found = [transforms(*scene(), seed) for seed in range(1000)]
    mirrored = [bool(image[0, 0, 0] != 0) for image, _, _, _ in found]
    assert 200 < sum(mirrored) < 300
    assert mirrored == [flipped for _, _, _, flipped in found]


@pytest.mark.parametrize("scale", [(1.2, 4.0), (0.25, 0.8), (0.5, 2.0)])
@pytest.mark.parametrize("flip", [0, 1])
def test_zoom_shows_the_right_pixels_and_the_boxes_stay_on_their_objects(scale, flip):
    transforms = TrainTransforms(flip=flip, scale=scale, min_visibility=0.3)
    zooms = []
    for seed in range(60):
        image, boxes, labels, flipped = transforms(*scene(), seed)
        assert flipped == flip
        height, width = image.shape[:2]
        zooms.append(WIDTH / width)
        assert abs(width / height - WIDTH / HEIGHT) < 0.1
        seen = image[..., 2] == 200
        assert (image[~seen] == IMAGENET_MEAN).all()
        # Where the picture's origin (before the flip) has come to lie, told by any pixel in view.
        y, x = np.argwhere(seen)[0]
        left, top = x - (WIDTH - 1 - image[y, x, 0] if flip else image[y, x, 0]), y - image[y, x, 1]
        moved = BOXES[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [WIDTH, 0, WIDTH, 0] if flip else BOXES
        moved = moved + [left, top, left, top]
        clipped = np.clip(moved, 0, [width, height] * 2)
        part = np.prod(clipped[:, 2:] - clipped[:, :2], 1) / np.prod(moved[:, 2:] - moved[:, :2], 1)
        whole_pixel = ((clipped[:, 2:] - clipped[:, :2]) >= 0.99).all(1)
        kept = (part >= 0.3 - 1e-5) & whole_pixel
        assert labels.tolist() == LABELS[kept].tolist()
        np.testing.assert_allclose(boxes, clipped[kept], atol=2e-3)
        assert seen.all() == (width <= WIDTH)
    assert scale[0] * 0.97 <= min(zooms)
    assert max(zooms) <= scale[1] * 1.05
    assert max(zooms) / min(zooms) > 0.75 * scale[1] / scale[0]


def test_zoom_never_loses_every_object():
    boxes = np.array([[2.0, 2, 12, 12]])
    transforms = TrainTransforms(flip=0.5, scale=(2, 4))
    for seed in range(200):
        image, found, labels, _ = transforms(*scene(boxes), seed)
        assert labels.tolist() == [3]
        assert (found >= 0).all()
        assert (found[:, 2:] <= image.shape[1::-1]).all()


@pytest.mark.parametrize("min_visibility", [0.0, 1.0])
def test_limits_of_visibility(min_visibility):
    transforms = TrainTransforms(flip=0, scale=(1.5, 3), min_visibility=min_visibility)
    parts = []
    for seed in range(100):
        _, boxes, labels, _ = transforms(*scene(), seed)
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides >= 0.99).all()
        parts += [side.prod() / 900 for side, label in zip(sides, labels, strict=True) if label == 3]
    assert (min(parts) > 0.99) == (min_visibility == 1)
    assert max(parts) < 1.001


def test_colour_moves_pixels_not_boxes():
    original = scene()
    image, boxes, labels, _ = TrainTransforms(flip=0, color=0.5)(*scene(), 3)
    assert image.dtype == np.uint8
    assert not np.array_equal(image, original[0])
    assert equal((boxes, labels), original[1:])
    weak, strong = (
        np.mean([np.abs(TrainTransforms(0, c)(*scene(), s)[0].astype(int) - original[0]).mean() for s in range(40)])
        for c in (0.1, 0.8)
    )
    assert weak < strong / 2


def test_picture_without_objects():
    empty = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    _, boxes, labels, _ = TrainTransforms(flip=1, color=0.3, scale=(0.5, 2))(scene()[0], *empty, 1)
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)
    assert labels.dtype == np.int64


def test_result_depends_on_the_seed_alone():
    transforms = TrainTransforms(flip=0.5, color=0.4, scale=(0.5, 2))
    first = transforms(*scene(), 5)
    for seed in range(20):
        transforms(*scene(), seed)
    random.seed(1)
    np.random.seed(1)
    assert equal(transforms(*scene(), 5), first)
    assert equal(TrainTransforms(flip=0.5, color=0.4, scale=(0.5, 2))(*scene(), 5), first)
    assert equal(pickle.loads(pickle.dumps(transforms))(*scene(), 5), first)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert equal(pool.apply(in_a_process, (transforms,)), first)
    assert len({transforms(*scene(), seed)[0].shape for seed in range(20)}) > 10


def test_flip_and_brightness_are_drawn_independently():
    transforms = TrainTransforms(flip=0.5, color=0.5)
    image, boxes, labels = scene()
    image[:] = 100
    image[:, : WIDTH // 2] = 110  # the brighter half tells whether the picture was flipped
    flipped, level = [], []
    for seed in range(400):
        picture, _, _, told = transforms(image, boxes, labels, seed)
        changed = picture.mean(axis=(0, 2))
        flipped.append(changed[-1] > changed[0])
        assert told == flipped[-1]
        level.append(changed.mean())
    assert abs(np.corrcoef(flipped, level)[0, 1]) < 0.2


def test_arguments_stay_as_they_were():
    arguments = scene()
    TrainTransforms(flip=1, color=0.5, scale=(2, 3))(*arguments, 1)
    assert equal(arguments, scene())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"flip": 1.5}, "'flip'"),
        ({"color": -0.1}, "'color'"),
        ({"color": float("nan")}, "'color'"),
        ({"min_visibility": 2}, "'min_visibility'"),
        ({"scale": (2, 1)}, "'scale'"),
        ({"scale": (0.01, 1)}, "'scale'"),
        ({"scale": (1,)}, "'scale'"),
    ],
)
def test_settings_out_of_range(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        TrainTransforms(**settings)


def test_import_does_not_ask_the_network():
    code = (
        "import urllib.request, sys\n"
        "def refuse(*a, **k): print('asked'); raise OSError\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "import detkt.data.transforms\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""
