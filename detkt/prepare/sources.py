"""The published data sets: where they come from, how large they are, and the checksums of what arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from detkt.base.commands import command
from detkt.data.raw_files import read_cifar, read_mnist

_FOLDERS = ("Annotations", "ImageSets", "JPEGImages")


@dataclass(frozen=True)
class Archive:
    """A file to download.

    urls: the official place first, then mirrors; size: in bytes; md5: as torchvision publishes it, sha256: as
    TensorFlow Datasets (VOC, MNIST, Fashion-MNIST) or Keras (CIFAR) does; unpacked: the most bytes that may come out,
    with tar's headers; inner: the folder in it that holds the data.
    """

    urls: tuple[str, ...]
    size: int
    md5: str
    sha256: str
    unpacked: int
    inner: str = "."

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


@dataclass(frozen=True)
class Version:
    """A form in which a data set is published, as files with known content.

    places: the folders below the data set's root in which a reader looks, in its order.
    md5: name -> MD5 of the plain file, even where it may lie there gzipped; "" where none is published.
    sizes: name -> bytes of the plain file, where known.
    """

    places: tuple[str, ...]
    md5: Mapping[str, str]
    sizes: Mapping[str, int]

    def home(self, root: Path) -> Path | None:
        """The first place that holds any of the files."""
        for folder in (root / place for place in self.places):
            if any((folder / f"{name}{suffix}").is_file() for name in self.md5 for suffix in ("", ".gz")):
                return folder
        return None


@dataclass(frozen=True)
class PublishedSet:
    """A published data set.

    format: its ``data.format`` in a config, which has the default root; place: the folder below the root into which
    it is unpacked; archives: none where it cannot be downloaded, for which *manual* says what to do.
    VOC: year, and the lists that must be there. Others: versions, in the reader's order of preference.
    """

    name: str
    format: str
    place: str = "."
    archives: tuple[Archive, ...] = ()
    year: str = ""
    lists: tuple[str, ...] = ()
    versions: tuple[Version, ...] = ()
    manual: str = ""

    def home(self, root: Path) -> Path:
        """The folder below *root* that holds the data, the one its reader takes; where there is none yet, for it."""
        if self.year:
            places = [root / "VOCdevkit" / f"VOC{self.year}", root / f"VOC{self.year}", root]
            found = [folder for folder in places if any((folder / part).is_dir() for part in _FOLDERS)]
        else:
            found = [home for version in self.versions if (home := version.home(root))]
        return found[0] if found else root / self.place


def _voc(year: str, lists: tuple[str, ...], archives: tuple[tuple[str, int, str, str], ...]) -> PublishedSet:
    return PublishedSet(
        f"voc{year}",
        "voc",
        place=f"VOC{year}",
        year=year,
        lists=lists,
        archives=tuple(
            Archive(
                (
                    f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
                    f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}",
                    f"https://pjreddie.com/media/files/{name}",
                ),
                size,
                md5,
                sha256,
                unpacked=size,
                inner=f"VOCdevkit/VOC{year}",
            )
            for name, size, md5, sha256 in archives
        ),
    )


def _cifar(name: str, known: type[CIFAR10], size: int, sha256: str, binary: str, sizes: dict[str, int]) -> PublishedSet:
    folder = known.base_folder
    md5 = {file: digest for file, digest in (*known.train_list, *known.test_list)}
    md5[known.meta["filename"]] = known.meta["md5"]
    return PublishedSet(
        name,
        name,
        place=folder,
        archives=(Archive((known.url,), size, known.tgz_md5, sha256, unpacked=200_000_000, inner=folder),),
        versions=(
            Version((binary, "."), dict.fromkeys(sizes, ""), sizes),
            Version((folder, "."), md5, {}),
        ),
    )


def _mnist(
    name: str, folder: str, mirrors: tuple[str, ...], files: dict[str, tuple[int, str, str, int, str]]
) -> PublishedSet:
    return PublishedSet(
        name,
        name,
        place=f"{folder}/raw",
        archives=tuple(
            Archive(tuple(f"{mirror}{plain}.gz" for mirror in mirrors), size, md5, sha256, unpacked)
            for plain, (size, md5, sha256, unpacked, _) in files.items()
        ),
        versions=(
            Version(
                (f"{folder}/raw", "raw", "."),
                {plain: values[4] for plain, values in files.items()},
                {plain: values[3] for plain, values in files.items()},
            ),
        ),
    )


# fmt: off
_SOURCES = (
    _voc("2007", ("train", "val", "trainval", "test"), (
        ("VOCtrainval_06-Nov-2007.tar", 460_032_000, "c52e279531787c972589f7e41ab4ae64",
         "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508"),
        ("VOCtest_06-Nov-2007.tar", 451_020_800, "b6e924de25625d8de591ea690078ad9f",
         "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"),
    )),
    _voc("2012", ("train", "val", "trainval"), (
        ("VOCtrainval_11-May-2012.tar", 1_999_639_040, "6cd6e144f989b92b3379bac3b3de84fd",
         "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"),
    )),
    _cifar(
        "cifar10", CIFAR10, 170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-bin",
        # A record is one byte of label and 3 * 32 * 32 of pixels; 10,000 records a file.
        dict.fromkeys((*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"), 10_000 * 3073),
    ),
    _cifar(
        "cifar100", CIFAR100, 169_001_437, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "cifar-100-binary",
        {"train.bin": 50_000 * 3074, "test.bin": 10_000 * 3074},  # two labels a record
    ),
    _mnist(
        "mnist", "MNIST", ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        {
            "train-images-idx3-ubyte": (
                9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                47_040_016, "6bbc9ace898e44ae57da46a324031adb",
            ),
            "train-labels-idx1-ubyte": (
                28_881, "d53e105ee54ea40749a09fcbcd1e9432",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                60_008, "a25bea736e30d166cdddb491f175f624",
            ),
            "t10k-images-idx3-ubyte": (
                1_648_877, "9fb629c4189551a2d022fa330f9573f3",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                7_840_016, "2646ac647ad5339dbf082846283269ea",
            ),
            "t10k-labels-idx1-ubyte": (
                4_542, "ec29112dd5afa0611ce80d1b7f02629c",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                10_008, "27ae3e4e09519cfbb04c329615203637",
            ),
        },
    ),
    _mnist(
        "fashion-mnist", "FashionMNIST", (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        {
            "train-images-idx3-ubyte": (
                26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            ),
            "train-labels-idx1-ubyte": (
                29_515, "25c81989df183df01b3e8a0aad5dffbe",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                60_008, "9018921c3c673c538a1fc5bad174d6f9",
            ),
            "t10k-images-idx3-ubyte": (
                4_422_102, "bef4ecab320f06d8554ea6380940ec79",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                7_840_016, "8181f5470baa50b63fa0f6fddb340f0a",
            ),
            "t10k-labels-idx1-ubyte": (
                5_148, "bb300cfdad3c16e7a12a480ee83cd310",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                10_008, "15d484375f8d13e6eb1aabb0c3f46965",
            ),
        },
    ),
    PublishedSet(
        "imagenet", "imagenet",
        manual=(
            "ImageNet is given only to those who accept its terms: get ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar from https://image-net.org/download.php, unpack them to "
            "train/WNID/PICTURE.JPEG and val/WNID/PICTURE.JPEG (the WNIDs are n01440764 and so on, 1,000 of them) in "
            "{root}, then check them with: "
            f"{command('prepare')} imagenet --check --data-root {{root}}"
        ),
    ),
    PublishedSet("shapes", "shapes"),
)
# fmt: on

SOURCES = {source.name: source for source in _SOURCES}
# Data sets whose pictures and labels a reader can try: it finds what sizes and checksums do not tell.
READERS = {"cifar10": read_cifar, "cifar100": read_cifar, "mnist": read_mnist, "fashion-mnist": read_mnist}
