"""idx and CIFAR files written byte by byte, as their formats are published."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.data.raw_files import read_cifar, read_idx, read_mnist


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# -- idx -------------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def test_an_idx_file_is_its_header_and_its_bytes_row_by_row(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"\0\0\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x02" + b"\0\0\0\x03" + bytes(range(12)))
    found = read_idx(path, 3)
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_a_gzipped_idx_file_reads_the_same(tmp_path):
    values = random_bytes(3, 4, 5)
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(values)))
    assert np.array_equal(read_idx(tmp_path / "images.gz", 3), values)


def test_a_damaged_idx_file_is_refused(tmp_path):
    path, whole = tmp_path / "images", idx(random_bytes(2, 3, 3))
    for content, expected in (
        (whole[:-1], "announces 2 x 3 x 3 bytes, so 34 with the header, but it holds 33"),
        (whole + b"\0", "but it holds 35"),
        (whole[:10], "not an idx file"),
        (b"", "not an idx file"),
        (idx(random_bytes(2)), "must start with 00 00 08 03, but starts with '00 00 08 01'"),
        (b"\0\0\x0d\x03" + whole[4:], "'00 00 0d 03'"),  # floats
        (b"\0\0\x08\x03" + b"\xff" * 12, "but it holds 16"),  # 2^96 bytes, which must not be allocated
        (idx(random_bytes(0, 3, 3)), "announces 0 x 3 x 3"),
    ):
        path.write_bytes(content)
        message = refusal(read_idx, path, 3)
        assert message.startswith(f"{path}: ")
        assert expected in message


@pytest.mark.parametrize("content", [gzip.compress(idx(random_bytes(2, 9, 9)))[:-20], b"no gzip", b""])
def test_a_damaged_gzip_file_is_refused(tmp_path, content):
    (tmp_path / "images.gz").write_bytes(content)
    assert str(tmp_path / "images.gz") in refusal(read_idx, tmp_path / "images.gz", 3)


# -- MNIST -----------------------------------------------------------------------------------------------------------


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray, prefix: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


@pytest.mark.parametrize("folder", [".", "raw", "MNIST/raw"])
def test_mnist_is_found_where_torchvision_puts_it_or_in_the_folder_itself(tmp_path, folder):
    images, labels = random_bytes(4, 28, 28), np.array([3, 0, 9, 1], np.uint8)
    write_mnist(tmp_path / folder, images, labels)
    write_mnist(tmp_path / folder, images[:1], labels[:1], "t10k")
    pictures, numbers = read_mnist(tmp_path, "mnist", "train")
    assert np.array_equal(pictures, images[:, None])
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [3, 0, 9, 1]
    assert read_mnist(tmp_path, "mnist", "test")[1].tolist() == [3]


def test_mnist_and_fashion_mnist_lie_in_one_root(tmp_path):
    for folder, label in (("MNIST", 1), ("FashionMNIST", 2)):
        write_mnist(tmp_path / folder / "raw", random_bytes(1, 28, 28), np.array([label], np.uint8))
    assert read_mnist(tmp_path, "mnist", "train")[1].tolist() == [1]
    assert read_mnist(tmp_path, "fashion-mnist", "train")[1].tolist() == [2]


def test_faulty_mnist_folders_are_refused(tmp_path):
    message = refusal(read_mnist, tmp_path / "none", "mnist", "train")
    assert "no such folder; get the data with: python tools/prepare_data.py mnist" in message
    assert "did you mean 'train'" in refusal(read_mnist, tmp_path, "mnist", "trian")
    message = refusal(read_mnist, tmp_path, "fashion-mnist", "test")
    assert "FashionMNIST/raw/t10k-images-idx3-ubyte" in message
    assert "tools/prepare_data.py fashion-mnist" in message
    write_mnist(tmp_path, random_bytes(3, 28, 28), np.array([1, 2], np.uint8))
    assert "holds 3 pictures" in refusal(read_mnist, tmp_path, "mnist", "train")
    write_mnist(tmp_path, random_bytes(3, 28, 28), np.array([1, 10, 2], np.uint8))
    assert "label 10 of picture 1 is none of 0 … 9" in refusal(read_mnist, tmp_path, "mnist", "train")


# -- CIFAR, binary version -------------------------------------------------------------------------------------------

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def records(pixels: np.ndarray, *labels: list[int]) -> bytes:
    columns = [np.array(column, np.uint8)[:, None] for column in labels]
    return np.concatenate([*columns, pixels], axis=1).tobytes()


def write_cifar10(root: Path, per_file: int = 2) -> tuple[np.ndarray, list[int]]:
    """The binary version with *per_file* pictures a file; pictures and labels of the training files."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    pixels = random_bytes(5 * per_file, 3072)
    labels = [number % 10 for number in range(5 * per_file)]
    for number, name in enumerate(BATCHES):
        part = slice(number * per_file, (number + 1) * per_file)
        (folder / f"{name}.bin").write_bytes(records(pixels[part], labels[part]))
    (folder / "test_batch.bin").write_bytes(records(random_bytes(1, 3072, seed=1), [7]))
    return pixels.reshape(-1, 3, 32, 32), labels


def test_a_record_is_a_label_and_the_planes_row_by_row(tmp_path):
    record = bytearray(3073)
    record[0] = 4
    record[1 + 1024 + 2 * 32 + 5] = 99  # green, row 2, column 5
    for name in BATCHES:
        (tmp_path / f"{name}.bin").write_bytes(bytes(record))
    pictures, labels = read_cifar(tmp_path, "cifar10", "train")
    assert pictures.shape == (5, 3, 32, 32)
    assert np.argwhere(pictures[0]).tolist() == [[1, 2, 5]]
    assert pictures[0, 1, 2, 5] == 99
    assert labels.tolist() == [4] * 5


def test_cifar10_is_its_batches_in_order(tmp_path):
    expected, numbers = write_cifar10(tmp_path)
    for root in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        pictures, labels = read_cifar(root, "cifar10", "train")
        assert np.array_equal(pictures, expected)
        assert labels.tolist() == numbers
        assert read_cifar(root, "cifar10", "test")[1].tolist() == [7]


def test_cifar100_has_fine_labels_after_the_coarse_ones(tmp_path):
    (tmp_path / "train.bin").write_bytes(records(random_bytes(3, 3072), [11, 12, 13], [0, 99, 50]))
    pictures, labels = read_cifar(tmp_path, "cifar100", "train")
    assert np.array_equal(pictures, random_bytes(3, 3072).reshape(3, 3, 32, 32))
    assert labels.tolist() == [0, 99, 50]


def test_faulty_cifar_folders_are_refused(tmp_path):
    assert "no such folder" in refusal(read_cifar, tmp_path / "none", "cifar10", "train")
    assert "no split 'trainval'" in refusal(read_cifar, tmp_path, "cifar10", "trainval")
    assert "tools/prepare_data.py cifar100" in refusal(read_cifar, tmp_path, "cifar100", "train")
    write_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-bin"
    whole = (folder / "data_batch_3.bin").read_bytes()
    for content, expected in (
        (whole[:-1], "holds 6145 bytes, which is no whole number of cifar10 records of 3073 bytes"),
        (b"", "holds 0 bytes"),
        (whole[:3073] + b"\x0a" + whole[3074:], "label 10 of picture 1 is none of 0 … 9"),
    ):
        (folder / "data_batch_3.bin").write_bytes(content)
        message = refusal(read_cifar, tmp_path, "cifar10", "train")
        assert message.startswith(f"{folder / 'data_batch_3.bin'}: ")
        assert expected in message
    (folder / "data_batch_3.bin").unlink()
    assert f"{folder / 'data_batch_3.bin'}: no such file" in refusal(read_cifar, tmp_path, "cifar10", "train")


# -- CIFAR, Python version -------------------------------------------------------------------------------------------


def python2_pickle(pixels: np.ndarray, labels: list[int], key: bytes = b"labels", fortran: bool = False) -> bytes:
    """Protocol 2 as Python 2's cPickle and numpy wrote it, opcode by opcode."""
    raw = pixels.tobytes(order="F" if fortran else "C")
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            b"U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03",
            b"U" + bytes([len(key)]) + key + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e",
            b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
            b"(K\x01M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            (b"\x88" if fortran else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + b"tb",
            b"U\x09filenamesq\x0c]q\x0dU\x05a.pngau.",
        ]
    )


def test_the_handwritten_pickle_is_what_numpy_reads():
    content = pickle.loads(python2_pickle(random_bytes(2, 3072), [3, 4]), encoding="bytes")
    assert np.array_equal(content[b"data"], random_bytes(2, 3072))
    assert content[b"labels"] == [3, 4]


@pytest.mark.parametrize("fortran", [False, True])
def test_the_python_version_reads_as_the_binary_one(tmp_path, fortran):
    pixels = random_bytes(3, 3072)
    (tmp_path / "cifar-100-python").mkdir()
    path = tmp_path / "cifar-100-python/test"
    path.write_bytes(python2_pickle(pixels, [5, 99, 0], b"fine_labels", fortran))
    pictures, labels = read_cifar(tmp_path, "cifar100", "test")
    assert np.array_equal(pictures, pixels.reshape(3, 3, 32, 32))
    assert labels.dtype == np.int64
    assert labels.tolist() == [5, 99, 0]


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_todays_numpy_are_read_too(tmp_path, protocol):
    content = {b"data": random_bytes(2, 3072), b"labels": [1, 2]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    pictures, labels = read_cifar(tmp_path, "cifar10", "test")
    assert np.array_equal(pictures.reshape(2, 3072), random_bytes(2, 3072))
    assert labels.tolist() == [1, 2]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "test_batch"
    contents = [f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()]
    contents += [b"c__builtin__\neval\n(S'1'\ntR.", b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01a\x85R."]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        contents.append(pickle.dumps({b"data": Touch(mark), b"labels": [0]}, protocol=protocol))
    for content in contents:
        path.write_bytes(content)
        message = refusal(read_cifar, tmp_path, "cifar10", "test")
        assert message.startswith(f"{path}: it asks for ")
        assert "do not trust it" in message
        assert not mark.exists()
    path.write_bytes(contents[0])
    assert "it asks for os.system" in refusal(read_cifar, tmp_path, "cifar10", "test")


def test_a_damaged_pickle_is_refused(tmp_path):
    path, whole = tmp_path / "test_batch", python2_pickle(random_bytes(2, 3072), [3, 4])
    ends = [*range(0, len(whole) - 6144, 7), *range(len(whole) - 6144, len(whole), 500), len(whole) - 1]
    for content in [whole[:end] for end in ends] + [b"\x80\x04", b"not a pickle", random_bytes(300).tobytes()]:
        path.write_bytes(content)
        assert str(path) in refusal(read_cifar, tmp_path, "cifar10", "test")


def test_a_pickle_of_something_else_is_refused(tmp_path):
    path, pixels = tmp_path / "test_batch", random_bytes(2, 3072)
    for content, expected in (
        ([1, 2], "no pictures"),
        ({b"labels": [1, 2]}, "no pictures"),
        ({b"data": [1, 2], b"labels": [1, 2]}, "no pictures"),
        ({b"data": pixels[:, :100], b"labels": [1, 2]}, "no pictures"),
        ({b"data": pixels.astype(np.float32), b"labels": [1, 2]}, "no pictures"),
        ({b"data": pixels, b"fine_labels": [1, 2]}, "'labels' is no list of 2 numbers"),
        ({b"data": pixels, b"labels": [1]}, "'labels' is no list of 2 numbers"),
        ({b"data": pixels, b"labels": [1, "2"]}, "'labels' is no list of 2 numbers"),
        ({b"data": pixels, b"labels": [1, -1]}, "label -1 of picture 1 is none of 0 … 9"),
        ({b"data": pixels, b"labels": [1, 10**30]}, "label 1000000000000000000000000000000 of picture 1"),
    ):
        path.write_bytes(pickle.dumps(content, protocol=4))
        assert expected in refusal(read_cifar, tmp_path, "cifar10", "test")
