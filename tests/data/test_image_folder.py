"""Folders of pictures, a folder a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detkt.base.errors import InputError
from detkt.data.image_folder import PhotoTransforms, check_pictures, list_pictures, read_equal_pictures


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path, size=(4, 3), colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


# -- listing ---------------------------------------------------------------------------------------------------------


def test_pictures_are_listed_by_class_and_name(tmp_path):
    for name in ("dog/b.png", "dog/a.JPEG", "cat/deep/er/1.ppm", "cat/2.jpg"):
        write(tmp_path / "train" / name)
    for name in ("cat/notes.txt", "cat/.hidden.png", ".cache/x.png", "stray.png", "cat/.thumbs/1.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    names, labels, classes = list_pictures(tmp_path, "train")
    assert names == ["train/cat/2.jpg", "train/cat/deep/er/1.ppm", "train/dog/a.JPEG", "train/dog/b.png"]
    assert labels == [0, 0, 1, 1]
    assert classes == ["cat", "dog"]
    names, labels, classes = list_pictures(tmp_path, "train", ["dog", "cat"])
    assert names[0] == "train/dog/a.JPEG"
    assert labels == [0, 0, 1, 1]
    assert classes == ["dog", "cat"]


def test_faulty_folders_are_refused(tmp_path):
    assert "no such folder" in refusal(list_pictures, tmp_path / "none", "train")
    write(tmp_path / "train/cat/1.png")
    message = refusal(list_pictures, tmp_path, "trian")
    assert "no split 'trian' (did you mean 'train'?); the folders there: 'train'" in message
    (tmp_path / "val").mkdir()
    write(tmp_path / "val/1.png")
    assert f"{tmp_path / 'val'}: holds no folders" in refusal(list_pictures, tmp_path, "val")
    (tmp_path / "train/dog").mkdir()
    (tmp_path / "train/dog/readme.txt").touch()
    assert f"{tmp_path / 'train/dog'}: holds no picture" in refusal(list_pictures, tmp_path, "train")


def test_other_classes_than_expected_are_refused(tmp_path):
    write(tmp_path / "test/cat/1.png")
    write(tmp_path / "test/cow/1.png")
    message = refusal(list_pictures, tmp_path, "test", ["cat", "dog"])
    assert f"{tmp_path / 'test'}: " in message
    assert "lacks 'dog' and has also 'cow'" in message
    assert "it lacks 'dog';" in refusal(list_pictures, tmp_path, "test", ["cat", "cow", "dog"])
    assert "it has also 'cow';" in refusal(list_pictures, tmp_path, "test", ["cat"])
    assert "no two folders of one name" in refusal(list_pictures, tmp_path, "test", ["cat", "cat", "cow"])


# -- reading ---------------------------------------------------------------------------------------------------------


def test_pictures_of_every_kind_are_read_as_rgb(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    write(tmp_path / "cmyk.tif", colour=(255, 0, 0), mode="CMYK")
    write(tmp_path / "alpha.png", mode="RGBA")
    pictures = read_equal_pictures(tmp_path, ["grey.png", "deep.png", "cmyk.tif", "alpha.png"])
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (4, 3, 3, 4)
    for channel in range(3):
        assert np.array_equal(pictures[0, channel], values)
        assert np.array_equal(pictures[1, channel], values)
    assert pictures[2:, :, 0, 0].tolist() == [[255, 0, 0], [10, 20, 30]]


def test_pictures_of_two_sizes_cannot_be_kept_as_they_are(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png", size=(5, 3))
    message = refusal(read_equal_pictures, tmp_path, ["a.png", "b.png"])
    assert message.startswith(f"{tmp_path / 'b.png'}: the picture is 5 x 3 pixels, but {tmp_path / 'a.png'} is 4 x 3")
    assert "data.image_size" in message


def test_a_file_that_is_no_picture_is_named(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    for function in (read_equal_pictures, check_pictures):
        assert f"{tmp_path / 'b.png'}: not a picture" in refusal(function, tmp_path, ["a.png", "b.png"])
    check_pictures(tmp_path, ["a.png"])


# -- photos ----------------------------------------------------------------------------------------------------------


def ramp(height=60, width=90):
    """Red says the column, green the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows, torch.zeros_like(rows)]).to(torch.uint8)


def test_a_test_picture_is_its_centre():
    # 60 x 90 -> 32 x 48 (the shorter side to 28 * 256 / 224 = 32) -> the central 28 x 28, from row 2, column 10.
    found = PhotoTransforms(28, train=False)(ramp(), seed=0)
    assert found.shape == (3, 28, 28)
    scale = 60 / 32
    columns = (torch.arange(28) + 10 + 0.5) * scale - 0.5
    rows = (torch.arange(28) + 2 + 0.5) * scale - 0.5
    assert (found[0, 14].float() - columns).abs().max() < 0.75
    assert (found[1, :, 14].float() - rows).abs().max() < 0.75


def test_a_training_picture_is_a_part_of_the_whole_whose_size_and_place_vary():
    transforms = PhotoTransforms(16, train=True, flip=0.0)
    parts, ratios, lefts = [], [], []
    for seed in range(300):
        found = transforms(ramp(), seed).float()
        assert found.shape == (3, 16, 16)
        # The slope of the ramp is the crop's width, and height, over 16.
        width, height = (16 / 15 * (found[0, 8, -1] - found[0, 8, 0]), 16 / 15 * (found[1, -1, 8] - found[1, 0, 8]))
        parts.append(float(width * height) / (60 * 90))
        ratios.append(float(width / height))
        lefts.append(float(found[0, 8, 0]))
    assert 0.05 < min(parts) < 0.15
    assert 0.7 < max(parts) < 1.05
    assert 0.6 < min(ratios) < 0.85
    assert 1.15 < max(ratios) < 1.6
    assert min(lefts) < 5
    assert max(lefts) > 50


def test_a_training_picture_is_flipped_as_often_as_asked():
    transforms = PhotoTransforms(8, train=True, flip=0.25)
    pictures = [transforms(ramp(), seed) for seed in range(400)]
    flipped = [int(picture[0, 4, 0]) > int(picture[0, 4, -1]) for picture in pictures]
    assert np.mean(flipped) == pytest.approx(0.25, abs=0.09)


def test_colours_change_only_when_asked():
    grey = torch.full((3, 20, 20), 100, dtype=torch.uint8)
    assert torch.equal(PhotoTransforms(8, train=True)(grey, 3), grey[:, :8, :8])
    means = [PhotoTransforms(8, train=True, color=0.4)(grey, seed).float().mean() for seed in range(20)]
    assert min(means) < 80
    assert max(means) > 120


def test_the_seed_alone_decides_and_torchs_generator_is_left_as_it_was():
    transforms = PhotoTransforms(16, train=True, color=0.4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = transforms(ramp(), 8)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(transforms(ramp(), 8), first)
    assert not torch.equal(transforms(ramp(), 9), first)
