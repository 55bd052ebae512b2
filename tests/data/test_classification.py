"""Classifiers' data sets: published files, folders, parts of them, and whole batches."""

from __future__ import annotations

import os
import struct
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data.batch_transforms import crop_and_flip
from detkt.data.classification import CIFAR10_CLASSES, CIFAR100_CLASSES, classification_set
from detkt.data.loading import EndlessBatches, evaluation_loader, training_loader

REAL = Path(os.environ.get("DETKT_TEST_DATA", Path(__file__).parents[2].parent / "shared/data"))
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it

CIFAR10_MEAN, CIFAR10_STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
CIFAR100_MEAN, CIFAR100_STD = torch.tensor([0.5071, 0.4865, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2762])


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        classification_set(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def standardised(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    return (pixels.double() / 255 - mean[:, None, None]) / std[:, None, None]


@pytest.fixture
def cifar10(tmp_path):
    """CIFAR-10's binary version with 4 + 3 pictures: config, training pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3072), dtype=np.uint8)
    labels = np.array([[6], [9], [9], [4], [1], [0], [2]], dtype=np.uint8)
    content = np.concatenate([labels, pixels], axis=1)
    for number in range(1, 6):
        rows = {1: content[:2], 2: content[2:3], 3: content[3:4], 4: content[4:5], 5: content[5:]}[number]
        (tmp_path / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(content[:3].tobytes())
    return DataConfig(format="cifar10", root=str(tmp_path)), torch.from_numpy(pixels).reshape(7, 3, 32, 32)


@pytest.fixture
def cifar100(tmp_path):
    """CIFAR-100's binary version with 40 pictures in both splits, the same ones: root, pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 3072), dtype=np.uint8)
    labels = np.stack([np.zeros(40), np.arange(40) * 2 + 1], axis=1).astype(np.uint8)
    for split in ("train", "test"):
        (tmp_path / f"{split}.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    return str(tmp_path), torch.from_numpy(pixels).reshape(40, 3, 32, 32)


@pytest.fixture
def folder(tmp_path):
    """train: 3 classes of 4 pictures of 8 x 6; test: of 2. Red tells them apart."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((6, 8, 3), np.uint8)
                pixels[..., 0] = 60 * label + 10 * number
                pixels[..., 1] = np.arange(8) * 30
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


# -- published files -------------------------------------------------------------------------------------------------


def test_the_class_lists_are_complete_and_in_the_files_order():
    assert len(CIFAR10_CLASSES) == 10
    assert len(CIFAR100_CLASSES) == 100
    assert list(CIFAR10_CLASSES) == sorted(CIFAR10_CLASSES)
    assert list(CIFAR100_CLASSES) == sorted(set(CIFAR100_CLASSES))


def test_an_evaluation_batch_is_the_normalised_pictures(cifar10):
    config, pixels = cifar10
    dataset = classification_set(config, "train", train=False)
    assert len(dataset) == 7
    assert dataset.classes == list(CIFAR10_CLASSES)
    assert dataset.labels.tolist() == [6, 9, 9, 4, 1, 0, 2]
    assert dataset.ids[:2] == ["train/00000", "train/00001"]
    assert dataset.image_size == (32, 32)
    images, targets = dataset.__getitems__([5, 0, (2, 77), -1])
    assert images.dtype == torch.float32
    assert torch.allclose(images.double(), standardised(pixels[[5, 0, 2, 6]], CIFAR10_MEAN, CIFAR10_STD), atol=1e-5)
    assert targets["labels"].tolist() == [0, 6, 9, 2]
    assert targets["image_id"].tolist() == [5, 0, 2, 6]
    assert targets["flipped"].tolist() == [False] * 4
    image, target = dataset[1]
    assert torch.equal(image, dataset.__getitems__([1])[0][0])
    assert target["labels"] == 9
    with pytest.raises(IndexError):
        dataset[7]


def test_a_training_batch_is_padded_with_black_cropped_and_flipped(cifar10):
    config, pixels = cifar10
    config.crop_padding, config.flip = 3, 0.5
    images, _ = classification_set(config, "train", train=True).__getitems__([(5, 900), (0, 901), (5, 902), (3, 903)])
    expected = crop_and_flip(pixels[[5, 0, 5, 3]], range(900, 904), padding=3, flip=0.5)
    assert torch.allclose(images.double(), standardised(expected, CIFAR10_MEAN, CIFAR10_STD), atol=1e-5)


def test_a_training_batch_says_what_was_mirrored(cifar10, folder):
    config, pixels = cifar10
    config.crop_padding, config.flip = 0, 0.5
    dataset = classification_set(config, "train", train=True)
    samples = [(picture % 7, 900 + picture) for picture in range(20)]
    images, targets = dataset.__getitems__(samples)
    flipped = targets["flipped"]
    assert flipped.dtype == torch.bool and 3 < flipped.sum() < 17
    plain, told = dataset.plain().__getitems__(samples)
    assert not told["flipped"].any()
    assert torch.equal(images, torch.where(flipped[:, None, None, None], plain.flip(-1), plain))
    photos = DataConfig(format="folder", root=str(folder), image_size=4)
    assert "flipped" not in classification_set(photos, "train", train=True).__getitems__([0])[1]


def test_the_fingerprint_is_of_pixels_names_and_normalisation(cifar10):
    config, _ = cifar10
    found = classification_set(config, "train", train=True).fingerprint()
    assert classification_set(config, "train", train=False).fingerprint() == found
    config.mean, config.std = [0.5] * 3, [0.25] * 3
    normalised = classification_set(config, "train", train=True).fingerprint()
    assert len({found, normalised, classification_set(config, "train[2:]", train=True).fingerprint()}) == 3
    config.mean, config.std = [], []
    file = Path(config.root) / "data_batch_2.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert classification_set(config, "train", train=True).fingerprint() != found


def test_augmentation_is_the_same_in_any_batch_and_any_worker(cifar10):
    config, _ = cifar10
    dataset = classification_set(config, "train", train=True)
    for workers in (0, 1):
        seen = {}
        for size in (2, 7):
            batches = EndlessBatches(7, size, seed=3)
            for images, targets in islice(training_loader(dataset, batches, workers, False), 7 // size):
                assert images.shape == (size, 3, 32, 32)
                for image, number in zip(images, targets["image_id"].tolist(), strict=True):
                    assert torch.equal(seen.setdefault(number, image), image)
        assert len(seen) == 7
    assert torch.equal(dataset[(2, 5)][0], dataset[(2, 5)][0])
    assert not torch.equal(dataset[(2, 5)][0], dataset[(2, 6)][0])
    assert torch.equal(dataset[2][0], dataset[(2, 2)][0])  # a plain index is its own seed


def test_an_evaluation_loader_gives_every_picture_once_in_order(cifar10):
    config, _ = cifar10
    dataset = classification_set(config, "train", train=False)
    batches = list(evaluation_loader(dataset, 3, 0))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    assert torch.cat([targets["labels"] for _, targets in batches]).tolist() == dataset.labels.tolist()


def test_mean_and_std_of_the_config_come_before_the_data_sets_own(cifar10):
    config, pixels = cifar10
    config.mean, config.std = [0.0, 0.5, 1.0], [1.0, 0.5, 0.25]
    images, _ = classification_set(config, "test", train=False).__getitems__([0])
    expected = standardised(pixels[:1], torch.tensor(config.mean), torch.tensor(config.std))
    assert torch.allclose(images.double(), expected, atol=1e-5)
    config.mean, config.std = [0.5], [0.5]
    assert "pictures of cifar10 have 3 channels" in refusal(config, "test", train=False)


def test_mnist_has_one_channel(tmp_path):
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2, 28, 28) + images.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes([8, 1]))
    for data_format, mean, std in (("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)):
        dataset = classification_set(DataConfig(format=data_format, root=str(tmp_path)), "test", train=False)
        found, targets = dataset.__getitems__([1, 0])
        assert found.shape == (2, 1, 28, 28)
        assert found[0, 0, 3, 4].item() == pytest.approx((images[1, 3, 4] / 255 - mean) / std, abs=1e-5)
        assert targets["labels"].tolist() == [1, 8]
    assert dataset.classes[8] == "Bag"


def test_other_classes_than_the_files_are_refused(cifar10):
    config, _ = cifar10
    assert classification_set(config, "test", False, list(CIFAR10_CLASSES)).classes == list(CIFAR10_CLASSES)
    for classes in (CIFAR10_CLASSES[::-1], CIFAR10_CLASSES[:9]):
        assert "not those of cifar10" in refusal(config, "test", False, classes)


# -- TCIFAR-100 ------------------------------------------------------------------------------------------------------


def test_tcifar_pictures_are_cifars_with_noise_of_standard_deviation_one_once_standardised(cifar100):
    root, pixels = cifar100
    for split in ("train", "test"):
        dataset = classification_set(DataConfig(format="tcifar100", root=root), split, train=False)
        images, targets = dataset.__getitems__(range(40))
        noise = images.double() - standardised(pixels, CIFAR100_MEAN, CIFAR100_STD)
        assert targets["labels"].tolist() == list(range(1, 81, 2))
        assert noise.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=0.015)
        assert noise.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 3, abs=0.025)
        assert torch.equal(dataset.__getitems__(range(40))[0], images)


def test_a_tcifar_pictures_noise_is_its_own_in_every_part_and_other_in_the_other_split(cifar100):
    root, _ = cifar100
    config = DataConfig(format="tcifar100", root=root)
    whole = classification_set(config, "train", train=False)
    part = classification_set(config, "train[-10:]", train=False)
    for place, name in enumerate(part.ids):
        assert torch.equal(part[place][0], whole[whole.ids.index(name)][0])
    test = classification_set(config, "test", train=False)  # of the same pictures
    assert (test[0][0] - whole[0][0]).std() == pytest.approx(2**0.5, abs=0.1)


def test_a_tcifar_training_picture_has_no_noise_in_its_margin(cifar100):
    root, _ = cifar100
    config = DataConfig(format="tcifar100", root=root, crop_padding=40, flip=0.0)
    dataset = classification_set(config, "train", train=True)
    black = -CIFAR100_MEAN / CIFAR100_STD
    corners = torch.stack([dataset[(0, seed)][0][:, 0, 0] for seed in range(40)])
    margins = (corners - black).abs().max(dim=1).values < 1e-4
    assert 20 <= margins.sum() < 40  # 1 - (32 / 81)^2 = 84 % of the crops begin outside the picture


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_small_pictures_is_kept_as_it_is(folder):
    config = DataConfig(format="folder", root=str(folder), mean=[0.0] * 3, std=[1.0] * 3)
    dataset = classification_set(config, "train", train=False)
    assert dataset.classes == ["ant", "bee", "cat"]
    assert dataset.image_size == (6, 8)
    assert dataset.ids[4] == "train/bee/0.png"
    images, targets = dataset.__getitems__([4, 11])
    assert targets["labels"].tolist() == [1, 2]
    assert (images[:, 0] * 255).unique().tolist() == pytest.approx([60, 150], abs=1e-3)
    assert (images[0, 1, 2] * 255).tolist() == pytest.approx([30 * column for column in range(8)], abs=1e-3)
    assert classification_set(config, "test", False, dataset.classes).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_photos_are_cropped_to_one_size_and_normalised_as_imagenets(folder):
    Image.new("RGB", (50, 90), (255, 0, 51)).save(folder / "test/ant/0.png")
    for data_format in ("imagenet", "folder"):
        config = DataConfig(format=data_format, root=str(folder), image_size=16)
        dataset = classification_set(config, "test", train=False)
        images, _ = dataset.__getitems__([0, 1])
        assert dataset.image_size == (16, 16)
        assert images.shape == (2, 3, 16, 16)
        expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
        assert images[0, :, 5, 9].tolist() == pytest.approx(expected, abs=1e-5)


def test_photos_are_augmented_by_their_seed_in_any_worker(folder):
    config = DataConfig(format="folder", root=str(folder), image_size=4, color=0.3)
    dataset = classification_set(config, "train", train=True)
    whole = {}
    for workers in (0, 1):
        for images, targets in islice(training_loader(dataset, EndlessBatches(12, 5, seed=1), workers, False), 2):
            for image, number in zip(images, targets["image_id"].tolist(), strict=True):
                assert torch.equal(whole.setdefault(number, image), image)
    assert len(whole) == 10
    assert not torch.equal(dataset[(0, 1)][0], dataset[(0, 2)][0])


def test_a_damaged_photo_is_one_line_even_from_a_worker(folder):
    path = folder / "test/bee/1.png"
    path.write_bytes(path.read_bytes()[:50])  # the header is whole
    dataset = classification_set(DataConfig(format="folder", root=str(folder), image_size=4), "test", train=False)
    with pytest.raises(InputError) as caught:
        list(evaluation_loader(dataset, 2, 1))
    assert str(caught.value).startswith(f"{path}: the picture is truncated or damaged")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_picture_is_known_at_once_but_in_imagenet(folder):
    (folder / "test/bee/1.png").write_bytes(b"no picture")
    for size in (0, 4):
        config = DataConfig(format="folder", root=str(folder), image_size=size)
        assert f"{folder / 'test/bee/1.png'}: not a picture" in refusal(config, "test", train=False)
    config.format = "imagenet"
    dataset = classification_set(config, "test", train=False)
    with pytest.raises(InputError, match="bee/1.png: not a picture"):
        dataset[3]


def test_training_and_test_folders_must_agree(folder):
    config = DataConfig(format="folder", root=str(folder))
    (folder / "test/cat").rename(folder / "test/cats")
    classes = classification_set(config, "train", train=True).classes
    assert "lacks 'cat' and has also 'cats'" in refusal(config, "test", False, classes)


# -- parts of a split ------------------------------------------------------------------------------------------------


def test_the_parts_of_a_split_are_disjoint_mixed_and_always_the_same(folder):
    config = DataConfig(format="folder", root=str(folder))
    whole = classification_set(config, "train", train=True)
    learned = classification_set(config, "train[:-4]", train=True)
    held_out = classification_set(config, "train[-4:]", train=False)
    assert len(learned) == 8
    assert len(held_out) == 4
    assert sorted(learned.ids + held_out.ids) == sorted(whole.ids)
    for part in (learned, held_out):
        assert part.ids == sorted(part.ids)
        assert part.classes == whole.classes
        for place, name in enumerate(part.ids):
            assert part.labels[place] == whole.labels[whole.ids.index(name)]
            plain = classification_set(config, "train", train=False)[whole.ids.index(name)][0]
            if part is held_out:
                assert torch.equal(part[place][0], plain)
    assert len(set(held_out.labels.tolist())) > 1  # the last four of the folder are all cats
    order = np.random.RandomState(0).permutation(12)
    assert held_out.ids == [whole.ids[number] for number in sorted(order[-4:])]
    assert len(classification_set(config, "train[2:5]", train=True)) == 3
    assert classification_set(config, "train[:]", train=True).ids == whole.ids


@pytest.mark.parametrize("split", ["train[5]", "train[", "train[:-2", "[3:]", "", "train[a:b]", "train[::2]"])
def test_what_is_no_split_is_refused(folder, split):
    assert f"'{split}' is no split" in refusal(DataConfig(format="folder", root=str(folder)), split, train=True)


def test_an_empty_part_is_refused(folder):
    config = DataConfig(format="folder", root=str(folder))
    message = refusal(config, "train[:-12]", train=True)
    assert "train[:-12] holds no picture: 'train' has 12" in message


# -- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_fit_the_format_are_refused(folder, cifar10):
    small, _ = cifar10
    for config, changes, expected in (
        (small, {"image_size": 224}, "data.image_size=224"),
        (small, {"color": 0.4}, "data.color"),
        (small, {"scale": [0.5, 1.0]}, "data.scale"),
        (small, {"root": None}, "data.root is not set"),
        (DataConfig(format="imagenet", root=str(folder)), {}, "data.image_size=0"),
    ):
        changed = DataConfig(**{**vars(config), **changes})
        assert refusal(changed, "test", train=False).startswith(expected)


# -- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "cifar10_subset/test").is_dir(), reason="real data is not there")
def test_real_cifar_pictures_have_cifars_classes_and_mean():
    config = DataConfig(
        format="folder", root=str(REAL / "cifar10_subset"), mean=CIFAR10_MEAN.tolist(), std=CIFAR10_STD.tolist()
    )
    dataset = classification_set(config, "test", train=False)
    assert dataset.classes == list(CIFAR10_CLASSES)
    assert dataset.labels.bincount().tolist() == [200] * 10
    images, _ = dataset.__getitems__(range(2000))
    assert images.shape == (2000, 3, 32, 32)
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 3, abs=0.06)
    assert images.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 3, abs=0.03)


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_whole_and_its_training_pixels_are_standardised():
    config = DataConfig(format="fashion-mnist", root=str(FASHION))
    dataset = classification_set(config, "train", train=False)
    assert dataset.labels.bincount().tolist() == [6000] * 10
    images, targets = dataset.__getitems__(range(0, 60000, 4))
    assert images.mean().item() == pytest.approx(0, abs=0.005)
    assert images.std().item() == pytest.approx(1, abs=0.005)
    test = classification_set(config, "test", train=False, classes=dataset.classes)
    assert test.labels.bincount().tolist() == [1000] * 10
    # The class means of the training pictures tell two thirds of the test pictures right: labels and pictures agree.
    means = torch.stack([images[targets["labels"] == label].mean(dim=0) for label in range(10)]).flatten(1)
    found, truth = test.__getitems__(range(10000))
    nearest = torch.cdist(found.flatten(1), means).argmin(dim=1)
    assert (nearest == truth["labels"]).float().mean() > 0.65
