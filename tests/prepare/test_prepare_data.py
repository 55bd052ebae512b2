"""prepare_data.py: the way from an archive on a server to a folder that the readers take, and back after mishaps."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import math
import shutil
import tarfile

import pytest
from PIL import Image
from range_server import RangeServer, answer

from detkt.cli.shared import run_tool
from detkt.data.raw_files import read_mnist
from detkt.data.voc import VOCDetection
from detkt.prepare import download, preparing
from detkt.prepare.sources import SOURCES, Archive, Version

ARCHIVES = ("root/archives/VOCtrainval.tar", "root/archives/VOCtest.tar")
SPLITS = {"trainval": ["000001", "000002"], "test": ["000003"]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    server = RangeServer()
    yield server
    server.close()


def publish(server, name, content, inner="."):
    """Serve *content* at /official/NAME; the catalogue's entry of it."""
    server.files[f"/official/{name}"] = content
    digests = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
    return Archive((f"{server.url}/official/{name}",), len(content), *digests, unpacked=2 * len(content), inner=inner)


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def picture(value):
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(value).save(buffer, "JPEG")
    return buffer.getvalue()


def annotation(name):
    return (
        f"<annotation><filename>{name}.jpg</filename><size><width>256</width><height>256</height></size><object>"
        "<name>dog</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>99</xmax><ymax>99</ymax></bndbox></object></annotation>"
    ).encode()


@pytest.fixture
def voc2007(server, monkeypatch):
    """VOC 2007 of three pictures, in two archives as the real one is; what the first holds is made to be larger."""
    archives = []
    for split, ids in SPLITS.items():
        files = {}
        for name in ids:
            files[f"JPEGImages/{name}.jpg"] = picture(30 * int(name))
            files[f"Annotations/{name}.xml"] = annotation(name)
        lists = {split: ids} if split == "test" else {"trainval": ids, "train": ids[:1], "val": ids[1:]}
        for name, named in lists.items():
            files[f"ImageSets/Main/{name}.txt"] = "".join(f"{each}\n" for each in named).encode()
        content = tar({f"VOCdevkit/VOC2007/{name}": content for name, content in files.items()})
        archives.append(publish(server, f"VOC{split}.tar", content, "VOCdevkit/VOC2007"))
    source = dataclasses.replace(SOURCES["voc2007"], archives=tuple(archives))
    monkeypatch.setitem(SOURCES, "voc2007", source)
    return source


@pytest.fixture
def prepare(tool, capsys):
    """``prepare(*arguments)``: exit status, lines of the standard output, lines of the standard error."""

    def call(*arguments, quiet=True):
        status = 0
        try:
            run_tool(lambda _: tool("prepare_data").main([*map(str, arguments), *["--quiet"] * quiet]))
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_download_unpack_and_verify(voc2007, server, prepare, tmp_path):
    root = tmp_path / "data/VOCdevkit"
    summary = f"{root}/VOC2007: 3 pictures, 3 annotations, 3 objects of 1 class, 4 lists: in order"
    assert prepare("voc2007", "--data-root", root) == (0, [summary], [])
    assert VOCDetection(root, "trainval").ids == SPLITS["trainval"]
    assert VOCDetection(root, "test").ids == SPLITS["test"]
    assert [path.name for path in root.iterdir()] == ["VOC2007"]
    # What is complete is verified and not downloaded again.
    server.requests.clear()
    assert prepare("voc2007", "--data-root", root) == (0, [summary], [])
    assert prepare("voc2007", "--data-root", root, "--check") == (0, [summary], [])
    assert server.requests == []


def test_keep_archives_and_use_those_that_are_there(voc2007, server, prepare, tmp_path):
    assert prepare("voc2007", "--data-root", tmp_path, "--keep-archives")[0] == 0
    assert {f"archives/{name}" for name in ("VOCtrainval.tar", "VOCtest.tar")} <= files(tmp_path).keys()
    before = files(tmp_path)
    shutil.rmtree(tmp_path / "VOC2007")
    server.requests.clear()
    assert prepare("voc2007", "--data-root", tmp_path, "--keep-archives")[0] == 0
    assert server.requests == []
    assert files(tmp_path) == before


def test_mirror(voc2007, server, prepare, tmp_path):
    for name in ("VOCtrainval.tar", "VOCtest.tar"):
        server.files[f"/mirror/{name}"] = server.files.pop(f"/official/{name}")
    assert prepare("voc2007", "--data-root", tmp_path)[0] == 2
    assert prepare("voc2007", "--data-root", tmp_path, "--url", f"{server.url}/mirror/")[0] == 0
    assert {path for path, _, _ in server.requests[-2:]} == {"/mirror/VOCtrainval.tar", "/mirror/VOCtest.tar"}


def test_mirror_that_serves_something_else(voc2007, server, prepare, tmp_path):
    name, content = "VOCtrainval.tar", server.files["/official/VOCtrainval.tar"]
    server.files[f"/mirror/{name}"] = content[:-1] + b"x"
    status, out, err = prepare("voc2007", "--data-root", tmp_path / "root", "--url", f"{server.url}/mirror")
    assert (status, out, len(err)) == (2, [], 1)
    assert f"error: cannot download {name}: {server.url}/mirror/{name}: wrong checksum" in err[0]
    assert list((tmp_path / "root").iterdir()) == []


def test_interrupted_download_goes_on(voc2007, server, prepare, tmp_path, monkeypatch):
    def interrupt(handler):
        server.serve(handler, 10_000)
        monkeypatch.setattr(download.time, "sleep", stop)
        server.plan.append(lambda handler: answer(handler, 503, b""))

    def stop(_):
        raise KeyboardInterrupt

    server.plan = [interrupt]
    status, out, err = prepare("voc2007", "--data-root", tmp_path)
    assert (status, out) == (130, [])
    assert err == ["what has been downloaded is kept; the same command goes on from there", "stopped"]
    assert files(tmp_path)["archives/VOCtrainval.tar.part"] == server.files["/official/VOCtrainval.tar"][:10_000]
    assert not (tmp_path / ".unpacking").exists()
    monkeypatch.undo()


def test_next_run_goes_on(voc2007, server, prepare, tmp_path):
    content = server.files["/official/VOCtrainval.tar"]
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/VOCtrainval.tar.part").write_bytes(content[:10_000])
    assert prepare("voc2007", "--data-root", tmp_path)[0] == 0
    assert server.requests[0] == ("/official/VOCtrainval.tar", "bytes=10000-", None)


def test_interrupted_unpacking_leaves_nothing_half(voc2007, prepare, tmp_path, monkeypatch):
    unpack = preparing.unpack

    def interrupted(archive, *arguments):
        unpack(archive, *arguments)
        if archive.name == "VOCtest.tar":
            raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "unpack", interrupted)
    assert prepare("voc2007", "--data-root", tmp_path)[0] == 130
    assert files(tmp_path).keys() == {"archives/VOCtrainval.tar", "archives/VOCtest.tar"}


def test_missing_files_are_put_back_and_nothing_else_is_touched(voc2007, server, prepare, tmp_path):
    prepare("voc2007", "--data-root", tmp_path)
    folder = tmp_path / "VOC2007"
    (folder / "JPEGImages/000002.jpg").unlink()
    (folder / "ImageSets/Main/test.txt").write_text("000003\n000001\n")  # one's own change
    own = files(tmp_path)
    status, out, err = prepare("voc2007", "--data-root", tmp_path, "--check")
    assert status == 2
    lists = folder / "ImageSets/Main"
    assert out[:2] == [
        f"{lists}/trainval.txt, line 2: 1 of 2 pictures not in JPEGImages: '000002'",
        f"{lists}/val.txt, line 1: 1 of 1 picture not in JPEGImages: '000002'",
    ]
    assert err == [
        f"error: 2 flaws in 2 files of {tmp_path}: fetch what is missing with: python tools/prepare_data.py voc2007 "
        f"--data-root {tmp_path}"
    ]
    assert prepare("voc2007", "--data-root", tmp_path)[0] == 0
    assert files(tmp_path) == own | {"VOC2007/JPEGImages/000002.jpg": picture(60)}


def test_damaged_files_are_named_and_left(voc2007, server, prepare, tmp_path):
    prepare("voc2007", "--data-root", tmp_path)
    path = tmp_path / "VOC2007/JPEGImages/000001.jpg"
    path.write_bytes(path.read_bytes()[:700])
    server.requests.clear()
    status, out, err = prepare("voc2007", "--data-root", tmp_path)
    assert status == 2
    assert out[0].startswith(f"{path}: the picture is truncated or damaged")
    assert "1 flaw in 1 file of" in err[0]
    assert "remove the damaged files, then put them back with: python tools/prepare_data.py voc2007" in err[0]
    assert server.requests == []
    path.unlink()
    assert prepare("voc2007", "--data-root", tmp_path)[0] == 0
    assert path.read_bytes() == picture(30)


def test_evil_archive_of_the_right_checksum(voc2007, server, prepare, tmp_path, monkeypatch):
    content = tar({"VOCdevkit/VOC2007/Annotations/a.xml": b"1", "../../escape": b"1"})
    evil = publish(server, "VOCtrainval.tar", content, "VOCdevkit/VOC2007")
    monkeypatch.setitem(SOURCES, "voc2007", dataclasses.replace(voc2007, archives=(evil, voc2007.archives[1])))
    status, _, err = prepare("voc2007", "--data-root", tmp_path / "root")
    assert status == 2
    assert "member '../../escape' lies outside the folder" in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"archives"}


def test_archive_without_the_folder(voc2007, server, prepare, tmp_path, monkeypatch):
    other = publish(server, "VOCtrainval.tar", tar({"elsewhere/a.txt": b"1"}), "VOCdevkit/VOC2007")
    monkeypatch.setitem(SOURCES, "voc2007", dataclasses.replace(voc2007, archives=(other, voc2007.archives[1])))
    status, _, err = prepare("voc2007", "--data-root", tmp_path)
    assert status == 2
    assert "No such file or directory" in err[0]


def test_too_little_space(voc2007, server, prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    status, _, err = prepare("voc2007", "--data-root", tmp_path)
    assert status == 2
    assert "are needed to download and unpack, but 0.0 GB are free" in err[0]
    assert server.requests == []


@pytest.mark.parametrize("blocked", [".", "archives", "VOC2007"])
def test_folder_that_cannot_be_written_to(voc2007, prepare, tmp_path, blocked):
    root = tmp_path / "root"
    (root / blocked).parent.mkdir(exist_ok=True)
    (root / blocked).write_text("a file")
    status, out, err = prepare("voc2007", "--data-root", root)
    assert (status, out, len(err)) == (2, [], 1)
    assert f"{root / blocked}" in err[0]
    assert files(tmp_path).keys() <= {str((root / blocked).relative_to(tmp_path)), *ARCHIVES}


def test_only_the_files_that_are_missing(server, prepare, tmp_path, monkeypatch):
    def idx(*shape):
        numbers = bytes(range(shape[0])) + bytes(math.prod(shape) - shape[0])
        return bytes((0, 0, 8, len(shape))) + b"".join(side.to_bytes(4, "big") for side in shape) + numbers

    plain = {
        "train-images-idx3-ubyte": idx(4, 8, 8),
        "train-labels-idx1-ubyte": idx(4),
        "t10k-images-idx3-ubyte": idx(2, 8, 8),
        "t10k-labels-idx1-ubyte": idx(2),
    }
    archives = tuple(
        dataclasses.replace(publish(server, f"{name}.gz", gzip.compress(content)), unpacked=len(content))
        for name, content in plain.items()
    )
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in plain.items()}
    version = Version(SOURCES["mnist"].versions[0].places, md5, {name: len(content) for name, content in plain.items()})
    source = dataclasses.replace(SOURCES["mnist"], archives=archives, versions=(version,))
    monkeypatch.setitem(SOURCES, "mnist", source)
    raw = tmp_path / "MNIST/raw"
    assert prepare("mnist", "--data-root", tmp_path) == (0, [f"{raw}: 4 files: in order"], [])
    assert files(tmp_path) == {f"MNIST/raw/{name}": content for name, content in plain.items()}
    assert read_mnist(tmp_path, "mnist", "train")[1].tolist() == [0, 1, 2, 3]
    (raw / "t10k-labels-idx1-ubyte").unlink()
    server.requests.clear()
    assert prepare("mnist", "--data-root", tmp_path)[0] == 0
    assert server.requests == [("/official/t10k-labels-idx1-ubyte.gz", None, None)]
    assert files(tmp_path) == {f"MNIST/raw/{name}": content for name, content in plain.items()}


def test_imagenet_says_where_to_get_it(prepare, tmp_path):
    status, _, err = prepare("imagenet", "--data-root", tmp_path)
    assert (status, len(err)) == (2, 1)
    assert "https://image-net.org/download.php" in err[0]
    assert "train/WNID/PICTURE.JPEG and val/WNID/PICTURE.JPEG" in err[0]
    assert f"python tools/prepare_data.py imagenet --check --data-root {tmp_path}" in err[0]


def test_shapes_are_drawn_as_the_demo_wants_them(prepare, tmp_path, monkeypatch):
    config = tmp_path / "shapes.yaml"
    drawn = "{train: 6, test: 2, val: 1, image_size: 64, max_size: 40.0, classes: [disc]}"
    config.write_text(f"data: {{format: shapes, shapes: {drawn}}}\n")
    assert preparing.SHAPES_CONFIG == "configs/shapes.yaml"
    monkeypatch.setattr(preparing, "SHAPES_CONFIG", config)
    root = tmp_path / "a = b"
    assert prepare("shapes", "--data-root", root, "--check")[2] == [
        f"error: 1 flaw in 1 file of {root}: remove the folder if it is there, then draw it anew with: python "
        f"tools/prepare_data.py shapes --data-root '{root}'"
    ]
    status, out, _ = prepare("shapes", "--data-root", root)
    assert status == 0
    assert out[-1].startswith(f"{root}: 9 pictures, 9 annotations, ")
    assert len(VOCDetection(root, "trainval")) == 6
    assert prepare("shapes", "--data-root", root, "--check")[0] == 0


def test_folder_of_ones_own(prepare, voc_folder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(voc_folder, folder)
    assert prepare(folder)[0] == 0
    name = VOCDetection(folder, "test").ids[0]
    (folder / f"JPEGImages/{name}.jpg").unlink()
    (folder / f"Annotations/{name}.xml").write_text("<annotation>")
    status, out, err = prepare(folder, "--check")
    assert status == 2
    assert [line for line in out if not line.startswith("note: ")] == [
        f"{folder}/ImageSets/Main/test.txt, line 1: 1 of 6 pictures not in JPEGImages: '{name}'",
        f"{folder}/Annotations/{name}.xml, line 1, column 13: malformed XML: no element found",
    ]
    assert err == [
        f"error: 2 flaws in 2 files of {folder}: mend the files or take them out of the lists, then check again"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["voc207"], "'voc207' is neither a data set nor a folder (did you mean 'voc2007'?); choose from voc2007"),
        (["no/such/folder"], "'no/such/folder' is neither a data set nor a folder; choose from"),
        ([".", "--data-root", "a"], "--data-root, --url and --keep-archives are for data sets by name"),
        (["voc2007", "--check", "--url", "http://a"], "there is none with --check"),
        (["shapes", "--url", "http://a"], "there is none for shapes"),
        (["imagenet", "--keep-archives"], "there is none for imagenet"),
        (
            ["cifar10", "--data-root", "ROOT", "--url", "ftp://a/b"],
            "--url ftp://a/b: give an address that begins with http",
        ),
        (
            ["voc2007", "--data-root", "ROOT", "--url", "http://a/VOCtest_06-Nov-2007.tar"],
            "2 archives are needed; give the folder that holds them",
        ),
        ([], "the following arguments are required: NAME|FOLDER (see --help)"),
    ],
)
def test_bad_arguments(prepare, tmp_path, arguments, message):
    status, out, err = prepare(*[str(tmp_path) if argument == "ROOT" else argument for argument in arguments])
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith("error: ")
    assert message in err[0]


def test_progress_is_shown_but_not_with_quiet(voc2007, prepare, tmp_path):
    assert "VOCtrainval.tar" in "".join(prepare("voc2007", "--data-root", tmp_path / "a", quiet=False)[2])
    assert prepare("voc2007", "--data-root", tmp_path / "b")[2] == []


def test_help_has_examples(prepare):
    status, out, _ = prepare("--help")
    assert status == 0
    assert "  python tools/prepare_data.py voc2007" in out
