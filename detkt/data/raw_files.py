"""Readers of the files in which MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 are published."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from detkt.base.commands import command
from detkt.base.errors import InputError, suggestion

_MNIST_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # torchvision's names
_MNIST_PREFIXES = {"train": "train", "test": "t10k"}

_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
# Format -> (folder, files of each split), the binary version before the Python version.
_CIFAR_VERSIONS: dict[str, tuple[tuple[str, dict[str, tuple[str, ...]]], ...]] = {
    "cifar10": (
        (
            "cifar-10-batches-bin",
            {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)},
        ),
        ("cifar-10-batches-py", {"train": _BATCHES, "test": ("test_batch",)}),
    ),
    "cifar100": (
        ("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}),
        ("cifar-100-python", {"train": ("train",), "test": ("test",)}),
    ),
}
_CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
_CIFAR_LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_BYTES = 3 * 32 * 32


def read_mnist(root: Path, data_format: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, 1, H, W) and labels int64 (n,) in 0 … 9 of MNIST's or Fashion-MNIST's idx files.

    root: holds torchvision's ``MNIST/raw`` (``FashionMNIST/raw``), or the four files themselves; each may end in .gz.
    data_format: ``mnist`` or ``fashion-mnist``. split: ``train`` or ``test``.

    Raises InputError: no such folder, split or file; see `read_idx`; not as many labels as pictures, other labels.
    """
    prefix = _MNIST_PREFIXES[_checked_split(root, data_format, split)]
    images = _find_idx(root, data_format, f"{prefix}-images-idx3-ubyte")
    labels = _find_idx(root, data_format, f"{prefix}-labels-idx1-ubyte")
    pictures, numbers = read_idx(images, 3), read_idx(labels, 1)
    if len(pictures) != len(numbers):
        raise InputError(
            f"{images} holds {len(pictures)} pictures, but {labels} {len(numbers)} labels; they do not belong together"
        )
    return pictures[:, None], _checked_labels(labels, numbers, 10)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, plain or gzipped (.gz): http://yann.lecun.com/exdb/mnist, "file format".

    Raises InputError: damaged, truncated or too long, or not unsigned bytes in as many *dimensions*.
    """
    content = _read_bytes(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise InputError(f"{path}: damaged or truncated ({error}); get the file anew") from None
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        raise InputError(
            f"{path}: not an idx file of bytes in {dimensions} dimensions: it must start with {magic.hex(' ')}, but "
            f"starts with '{content[:4].hex(' ')}'; get the file anew"
        )
    shape = tuple(int(side) for side in np.frombuffer(content, ">u4", dimensions, offset=4))
    expected = header + math.prod(shape)
    if len(content) != expected or 0 in shape:
        raise InputError(
            f"{path}: its header announces {' x '.join(map(str, shape))} bytes, so {expected} with the header, but it "
            f"holds {len(content)}; get the file anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def read_cifar(root: Path, data_format: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, 3, 32, 32) and labels int64 (n,) of CIFAR, as https://www.cs.toronto.edu/~kriz/cifar.html.

    root: holds the unpacked folder, of the binary version (``cifar-10-batches-bin``, ``cifar-100-binary``; preferred)
        or of the Python version (``cifar-10-batches-py``, ``cifar-100-python``), or is that folder.
    data_format: ``cifar10`` or ``cifar100``, whose fine labels are taken. split: ``train`` or ``test``.

    The Python version is pickled. Nothing that a pickle asks for is ever called: see `_read_cifar_pickle`.

    Raises InputError: no such folder, split or file; a file that is truncated, damaged or something else; a label out
        of range.
    """
    _checked_split(root, data_format, split)
    read = []
    for path in _find_cifar(root, data_format, split):
        pictures, numbers = (_read_cifar_records if path.suffix == ".bin" else _read_cifar_pickle)(path, data_format)
        read.append((pictures, _checked_labels(path, numbers, _CIFAR_CLASSES[data_format])))
    pictures, labels = (np.concatenate(parts) for parts in zip(*read, strict=True))
    return pictures.reshape(-1, *_CIFAR_SHAPE), labels


def _read_cifar_records(path: Path, data_format: str) -> tuple[np.ndarray, np.ndarray]:
    """The binary version: a record is the label (CIFAR-100: coarse and fine) and the red, green and blue plane."""
    labels = 2 if data_format == "cifar100" else 1
    content = np.frombuffer(_read_bytes(path), np.uint8)
    if len(content) == 0 or len(content) % (labels + _CIFAR_BYTES):
        raise InputError(
            f"{path}: holds {len(content)} bytes, which is no whole number of {data_format} records of "
            f"{labels + _CIFAR_BYTES} bytes: truncated, or another data set; unpack the archive anew"
        )
    records = content.reshape(-1, labels + _CIFAR_BYTES)
    return records[:, labels:], records[:, labels - 1]


class _Inert:
    """Stands for whatever a pickle constructs: keeps the arguments and the state, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Loads builtin containers, numbers and bytes; arrays come out as `_Inert`, everything else is refused."""

    names = {("numpy", "ndarray"), ("numpy", "dtype")} | {
        (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self.names:
            raise InputError(f"it asks for {module}.{name}, which no CIFAR file needs: do not trust it")
        return _Inert


def _read_cifar_pickle(path: Path, data_format: str) -> tuple[np.ndarray, np.ndarray]:
    """The Python version: a pickled dict with "data", uint8 (n, 3072), and lists of labels.

    A pickle may call any function while it is loaded. Here every name that it looks up either raises or is `_Inert`:
    no code runs on the content before the array's shape, type and length are checked.
    """
    try:
        content = _InertUnpickler(io.BytesIO(_read_bytes(path)), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{path}: {error}; unpack the archive anew") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: no CIFAR file, or damaged ({reason}); unpack the archive anew") from None
    key = _CIFAR_LABELS[data_format]
    match content:
        case {
            b"data": _Inert(
                state=(_, (int(count), 3072), _Inert(arguments=(b"u1" | "u1", *_)), bool(fortran), bytes(raw))
            )
        } if 0 < count * _CIFAR_BYTES == len(raw):
            pictures = np.frombuffer(raw, np.uint8).reshape((count, _CIFAR_BYTES), order="F" if fortran else "C")
        case _:
            raise InputError(f"{path}: holds no pictures as bytes (n, 3072) under 'data'; unpack the archive anew")
    labels = content.get(key)
    if not isinstance(labels, list) or len(labels) != count or not all(type(label) is int for label in labels):
        raise InputError(
            f"{path}: '{key.decode()}' is no list of {count} numbers, one a picture: damaged, or not {data_format}; "
            "unpack the archive anew"
        )
    return pictures, np.array(labels, dtype=object)


def _checked_split(root: Path, data_format: str, split: str) -> str:
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder; get the data with: {command('prepare')} {data_format}, or give their "
            "folder (--data-root)"
        )
    if split not in ("train", "test"):
        raise InputError(f"{root}: no split '{split}'{suggestion(split, ('train', 'test'))}; there are train and test")
    return split


def _checked_labels(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"{path}: label {labels[wrong[0]]} of picture {wrong[0]} is none of 0 … {classes - 1}: damaged, or another "
            "data set; get the file anew"
        )
    return labels.astype(np.int64)


def _find_idx(root: Path, data_format: str, name: str) -> Path:
    folder = _MNIST_FOLDERS[data_format]
    for place in (root / folder / "raw", root / "raw", root):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    raise InputError(
        f"{root}: holds neither {folder}/raw/{name} nor {name}, plain or .gz; "
        f"get it with: {command('prepare')} {data_format}"
    )


def _find_cifar(root: Path, data_format: str, split: str) -> list[Path]:
    for name, files in _CIFAR_VERSIONS[data_format]:
        for folder in (root / name, root):
            paths = [folder / file for file in files[split]]
            missing = [path for path in paths if not path.is_file()]
            if not missing:
                return paths
            if len(missing) < len(paths):
                raise InputError(f"{missing[0]}: no such file, though {folder} holds others; unpack the archive anew")
    names = " nor ".join(name for name, _ in _CIFAR_VERSIONS[data_format])
    raise InputError(
        f"{root}: holds neither {names} with the {split} files; get them with: {command('prepare')} {data_format}"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
