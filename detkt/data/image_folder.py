"""Folders of pictures, a folder a class: ROOT/SPLIT/CLASS/PICTURE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from detkt.base.errors import InputError, suggestion
from detkt.data.annotated import shorten
from detkt.data.images import AS_USUAL, Decoding, picture_suffixes, read_image, read_image_size


def list_pictures(
    root: Path, split: str, classes: Sequence[str] | None = None
) -> tuple[list[str], list[int], list[str]]:
    """Pictures below *root* ("train/cat/1.jpg"), sorted by class; a label each, an index into the classes; the classes.

    A class is a folder of ROOT/SPLIT, its pictures are in it or in folders below; what is hidden (".name"), and files
    that have no picture's suffix, are passed over. classes: in the order of the labels; None: the names, sorted.

    Raises InputError: no such folder or split, no class, a class without pictures, classes other than *classes*.
    """
    folder = root / split
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that holds train/CLASS/… (--data-root)")
    if not folder.is_dir():
        there = subfolders(root)
        choices = f"the folders there: {shorten(there)}" if there else "there is no folder at all"
        raise InputError(f"{root}: no split '{split}'{suggestion(split, there)}; {choices}")
    found = subfolders(folder)
    if not found:
        raise InputError(f"{folder}: holds no folders; pictures must lie in one folder a class, {folder}/CLASS/…")
    if classes is not None and sorted(classes) != found:
        _reject_classes(folder, found, classes)
    names, labels = [], []
    classes = list(found if classes is None else classes)
    for label, name in enumerate(classes):
        pictures = sorted(walk_pictures(root, folder / name))
        if not pictures:
            raise InputError(f"{folder / name}: holds no picture, by the suffix; add some, or remove the folder")
        names += pictures
        labels += [label] * len(pictures)
    return names, labels, classes


def read_equal_pictures(root: Path, names: Sequence[str], decoding: Decoding = AS_USUAL) -> Tensor:
    """All of them decoded, uint8 (n, 3, H, W), RGB.

    Raises InputError: one that cannot be read (see `read_image`), or of another size than the first.
    """
    height, width = read_image(root / names[0], None, decoding).shape[:2]
    pictures = torch.empty(len(names), 3, height, width, dtype=torch.uint8)
    for place, name in enumerate(names):
        picture = read_image(root / name, None, decoding)
        if picture.shape[:2] != (height, width):
            raise InputError(
                f"{root / name}: the picture is {picture.shape[1]} x {picture.shape[0]} pixels, but {root / names[0]} "
                f"is {width} x {height}; give data.image_size=N to crop them all to N x N"
            )
        pictures[place] = torch.from_numpy(picture).permute(2, 0, 1)
    return pictures


def check_pictures(root: Path, names: Sequence[str], decoding: Decoding = AS_USUAL) -> None:
    """Raises InputError for the first file whose header is no picture's."""
    for name in names:
        read_image_size(root / name, None, decoding)


class PhotoTransforms:
    """Photos of any size to squares of *size* pixels, as torchvision's ImageNet recipe does it.

    train: a random part of the picture (8 to 100 % of its area, aspect ratio 3/4 to 4/3; Szegedy et al. 2015, section
    6), flipped with probability *flip*, jittered with strength *color* in [0, 1] (see
    `detkt.data.transforms.TrainTransforms`). Else: the shorter side to size · 256 / 224, and the centre.

    Calling ``transforms(image, seed)`` with image uint8 (3, H, W) gives uint8 (3, size, size), a function of the two.
    """

    def __init__(self, size: int, train: bool, flip: float = 0.5, color: float = 0.0) -> None:
        if train:
            jitter = [v2.ColorJitter(color, color, color, color / 4)] if color > 0 else []
            steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(flip), *jitter]
        else:
            steps = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        self.size, self._steps = size, v2.Compose(steps)

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        # torchvision draws from torch's global generator. torch.manual_seed would seed the GPUs' generators as well,
        # which nobody sets back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._steps(image)


def subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def walk_pictures(root: Path, folder: Path) -> list[str]:
    """Pictures in *folder* and below, relative to *root*."""
    found, suffixes = [], picture_suffixes()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(place, root)
        found += [f"{relative}/{f}" for f in files if f.lower().endswith(suffixes) and not f.startswith(".")]
    return found


def _reject_classes(folder: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    missing = [name for name in classes if name not in set(found)]
    foreign = [name for name in found if name not in set(classes)]
    parts = [f"lacks {shorten(missing)}"] if missing else []
    parts += [f"has also {shorten(foreign)}"] if foreign else []
    parts = parts or ["has no two folders of one name"]
    raise InputError(
        f"{folder}: its class folders are not the expected classes: it {' and '.join(parts)}; the training and test "
        "splits must have the same folders, and data.classes, where given, must name them all"
    )
