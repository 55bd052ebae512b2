"""Classification data with something wrong in them."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
from commands import CLASSIFICATION_DATA, TRAIN_CLS, also
from faults import Case, Place, Shell, picture, rooted

_CLS_ROOT = {"train_cls": f"{TRAIN_CLS} --data-root {{root}}"}


def _idx(shape: tuple[int, ...], values: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values


def _mnist(images: bytes = b"", labels: bytes = b""):
    """A folder of four idx files, two pictures each; the training ones may be given."""
    good = _idx((2, 28, 28), bytes(2 * 28 * 28)), _idx((2,), bytes((3, 7)))

    def prepare(place: Place) -> None:
        for split, (pictures, numbers) in (("train", (images or good[0], labels or good[1])), ("t10k", good)):
            place.write(f"mnist/{split}-images-idx3-ubyte", pictures)
            place.write(f"mnist/{split}-labels-idx1-ubyte", numbers)
        place["root"] = place.tmp / "mnist"

    return prepare


_MNIST = {"train_cls": f"{TRAIN_CLS} --data-root {{root}} data.format=mnist"}
_CIFAR = {"train_cls": f"{TRAIN_CLS} --data-root {{root}} data.format=cifar10"}


def _cifar(content: bytes | None, python: bool = False):
    """CIFAR-10 with a picture a file, *content* in the third of them; None leaves it out."""
    record = bytes(3073)
    entries = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}

    def prepare(place: Place) -> None:
        folder = "cifar/cifar-10-batches-" + ("py" if python else "bin")
        suffix, good = ("", pickle.dumps(entries)) if python else (".bin", record)
        for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
            given = content if name == "data_batch_3" else good
            if given is not None:
                place.write(f"{folder}/{name}{suffix}", given)
        place["root"] = place.tmp / "cifar"

    return prepare


PHOTO = "photos/train/dark/3.png"
CLASSIFICATION = [
    Case(
        "photos-missing",
        "a folder of photos that is not there",
        _CLS_ROOT,
        "nowhere: no such folder; give the one that holds train/CLASS/… (--data-root)",
        rooted("nowhere"),
    ),
    Case(
        "photos-split",
        "a split of photos that is not there",
        also(CLASSIFICATION_DATA, "data.test=tset"),
        "photos: no split 'tset' (did you mean 'test'?); the folders there: 'test', 'train', 'val'",
    ),
    Case(
        "photos-part",
        "a part of a split that holds no picture",
        also(CLASSIFICATION_DATA, "data.train=train[16:]"),
        "train[16:] holds no picture: 'train' has 16; give other bounds",
    ),
    Case(
        "photos-split-name",
        "a split that is no name",
        also(CLASSIFICATION_DATA, "data.train='train[1'"),
        "'train[1' is no split; write its name, or a part as train[:-5000] or train[-5000:]",
    ),
    Case(
        "photos-flat",
        "photos that are not in a folder a class",
        CLASSIFICATION_DATA,
        "photos/test: holds no folders; pictures must lie in one folder a class, photos/test/CLASS/…",
        lambda p: (p.remove("photos/test"), p.write("photos/test/1.png", picture("RGB", (16, 16)))),
    ),
    Case(
        "photos-class",
        "a class without pictures",
        CLASSIFICATION_DATA,
        "photos/train/dark: holds no picture, by the suffix; add some, or remove the folder",
        lambda p: (p.remove("photos/train/dark"), (p["photos"] / "train" / "dark").mkdir()),
    ),
    Case(
        "photos-classes",
        "a test split with other classes",
        CLASSIFICATION_DATA,
        "photos/test: its class folders are not the expected classes: it lacks 'dark' and has also 'drak'; "
        "the training and test splits must have the same folders, and data.classes, where given, must name "
        "them all",
        lambda p: (p["photos"] / "test" / "dark").rename(p["photos"] / "test" / "drak"),
    ),
    Case(
        "photo-none",
        "a text file for a photo",
        CLASSIFICATION_DATA,
        "photos/train/dark/3.png: not a picture, or damaged at its start",
        lambda p: p.write(PHOTO, "no picture"),
    ),
    Case(
        "photo-truncated",
        "a photo cut off",
        CLASSIFICATION_DATA,
        "photos/train/dark/3.png: the picture is truncated or damaged: …",
        lambda p: p.truncate(PHOTO),
    ),
    Case(
        "photo-size",
        "photos of unequal size, with no size to crop them to",
        CLASSIFICATION_DATA,
        "photos/train/dark/3.png: the picture is 16 x 20 pixels, but photos/train/dark/0.png is 16 x 16; give"
        " data.image_size=N to crop them all to N x N",
        lambda p: p.write(PHOTO, picture("RGB", (16, 20))),
    ),
    Case(
        "mnist-missing",
        "MNIST's files not there",
        _MNIST,
        "empty: holds neither MNIST/raw/train-images-idx3-ubyte nor train-images-idx3-ubyte, plain or .gz; "
        "get it with: python tools/prepare_data.py mnist",
        rooted("empty", lambda p: (p.tmp / "empty").mkdir()),
    ),
    Case(
        "mnist-other",
        "a file that is not MNIST's",
        _MNIST,
        "mnist/train-images-idx3-ubyte: not an idx file of bytes in 3 dimensions: it must start with 00 00 08"
        " 03, but starts with '3c 68 74 6d'; get the file anew",
        _mnist(images=b"<html>not found</html>"),
    ),
    Case(
        "mnist-truncated",
        "a file of MNIST's cut off",
        _MNIST,
        "mnist/train-images-idx3-ubyte: its header announces 2 x 28 x 28 bytes, so 1584 with the header, but "
        "it holds 816; get the file anew",
        _mnist(images=_idx((2, 28, 28), bytes(800))),
    ),
    Case(
        "mnist-count",
        "not as many labels as pictures",
        _MNIST,
        "mnist/train-images-idx3-ubyte holds 2 pictures, but mnist/train-labels-idx1-ubyte 3 labels; they do "
        "not belong together",
        _mnist(labels=_idx((3,), bytes(3))),
    ),
    Case(
        "mnist-label",
        "a label that is none of the classes",
        _MNIST,
        "mnist/train-labels-idx1-ubyte: label 12 of picture 1 is none of 0 … 9: damaged, or another data set;"
        " get the file anew",
        _mnist(labels=_idx((2,), bytes((3, 12)))),
    ),
    Case(
        "mnist-gzip",
        "a damaged gzip file",
        _MNIST,
        "mnist/train-images-idx3-ubyte.gz: damaged or truncated (…); get the file anew",
        lambda p: (
            _mnist()(p),
            p.remove("mnist/train-images-idx3-ubyte"),
            p.write("mnist/train-images-idx3-ubyte.gz", gzip.compress(bytes(99), mtime=0)[:-6]),
        ),
    ),
    Case(
        "cifar-missing",
        "a file of CIFAR's missing",
        _CIFAR,
        "cifar/cifar-10-batches-bin/data_batch_3.bin: no such file, though cifar/cifar-10-batches-bin holds "
        "others; unpack the archive anew",
        _cifar(None),
    ),
    Case(
        "cifar-truncated",
        "a file of CIFAR's cut off",
        _CIFAR,
        "cifar/cifar-10-batches-bin/data_batch_3.bin: holds 3000 bytes, which is no whole number of cifar10 "
        "records of 3073 bytes: truncated, or another data set; unpack the archive anew",
        _cifar(bytes(3000)),
    ),
    Case(
        "cifar-label",
        "a label out of range",
        _CIFAR,
        "cifar/cifar-10-batches-bin/data_batch_3.bin: label 200 of picture 0 is none of 0 … 9: damaged, or "
        "another data set; get the file anew",
        _cifar(bytes([200]) + bytes(3072)),
    ),
    Case(
        "cifar-code",
        "a pickle of CIFAR's that would run a command",
        _CIFAR,
        "cifar/cifar-10-batches-py/data_batch_3: it asks for posix.system, which no CIFAR file needs: do not "
        "trust it; unpack the archive anew",
        _cifar(pickle.dumps(Shell()), python=True),
    ),
    Case(
        "cifar-pickle",
        "a pickle cut off",
        _CIFAR,
        "cifar/cifar-10-batches-py/data_batch_3: no CIFAR file, or damaged (…); unpack the archive anew",
        _cifar(pickle.dumps({b"data": 1})[:-2], python=True),
    ),
    Case(
        "cifar-data",
        "a pickle without pictures",
        _CIFAR,
        "cifar/cifar-10-batches-py/data_batch_3: holds no pictures as bytes (n, 3072) under 'data'; unpack "
        "the archive anew",
        _cifar(pickle.dumps({b"data": 1}), python=True),
    ),
]
SECTIONS = {"Classification data": CLASSIFICATION}
