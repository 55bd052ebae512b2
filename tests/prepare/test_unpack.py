from __future__ import annotations

import errno
import gzip
import io
import stat
import tarfile
import zipfile

import pytest

from detkt.base.errors import InputError
from detkt.prepare import unpack as module
from detkt.prepare.unpack import place, staging_folder, unpack

LIMIT = 100_000


def tar(path, *members, mode="w"):
    """members: names of files that hold their name, or TarInfos without content."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, str):
                content = member.encode()
                member = tarfile.TarInfo(member)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return path


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(tmp_path, archive, limit=LIMIT):
    """Unpack as it is done, below a folder in which everything that gets out would be seen."""
    with pytest.raises(InputError) as caught, staging_folder(tmp_path / "root") as folder:
        unpack(archive, folder, limit, quiet=True)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {archive.name, "root"}
    assert list((tmp_path / "root").iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.xz", "w:xz")])
def test_tar(tmp_path, name, mode):
    archive = tar(tmp_path / name, "./top.txt", "one/two/three.txt", mode=mode)
    with staging_folder(tmp_path / "root") as folder:
        unpack(archive, folder, LIMIT, quiet=True)
        assert contents(folder) == {"top.txt": b"./top.txt", "one/two/three.txt": b"one/two/three.txt"}


def test_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one/two.txt", "2")
        archive.writestr("one/empty/", "")
    with staging_folder(tmp_path / "root") as folder:
        unpack(tmp_path / "a.zip", folder, LIMIT, quiet=True)
        assert contents(folder) == {"one/two.txt": b"2"}
        assert (folder / "one/empty").is_dir()


def test_gzip(tmp_path):
    (tmp_path / "train-labels.gz").write_bytes(gzip.compress(b"12345"))
    with staging_folder(tmp_path / "root") as folder:
        unpack(tmp_path / "train-labels.gz", folder, 5, quiet=True)
        assert contents(folder) == {"train-labels": b"12345"}


def test_modes_are_those_of_data(tmp_path):
    member = tarfile.TarInfo("program")
    member.mode = 0o6777
    with staging_folder(tmp_path / "root") as folder:
        unpack(tar(tmp_path / "a.tar", member), folder, LIMIT, quiet=True)
        assert stat.S_IMODE((folder / "program").stat().st_mode) & 0o7022 == 0


EVIL_TARS = {
    "parent": ("../escape", "outside the folder"),
    "parent further down": ("a/../../escape", "outside the folder"),
    "parent for Windows": ("a\\..\\..\\escape", "outside the folder"),
    "absolute": ("/tmp/detkt-escape", "an absolute path"),
    "absolute for Windows": ("C:\\escape", "an absolute path"),
    "link out": (special("a", tarfile.SYMTYPE, "../../escape"), "a link"),
    "absolute link": (special("a", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
    "link within": (special("a", tarfile.SYMTYPE, "b"), "a link"),
    "hard link": (special("a", tarfile.LNKTYPE, "/etc/passwd"), "a link"),
    "pipe": (special("a", tarfile.FIFOTYPE), "a device or pipe"),
    "device": (special("a", tarfile.CHRTYPE), "a device or pipe"),
    "block device": (special("a", tarfile.BLKTYPE), "a device or pipe"),
}


@pytest.mark.parametrize(("member", "what"), EVIL_TARS.values(), ids=EVIL_TARS)
def test_evil_tar(tmp_path, member, what):
    message = refusal(tmp_path, tar(tmp_path / "a.tar", "good", member))
    assert what in message
    assert "nothing is unpacked" in message


def test_link_that_a_later_member_would_go_through(tmp_path):
    assert "a link" in refusal(tmp_path, tar(tmp_path / "a.tar", special("way", tarfile.SYMTYPE, ".."), "way/escape"))


def test_tar_larger_than_announced(tmp_path):
    member = tarfile.TarInfo("zeros")
    member.size = 10**6
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert (tmp_path / "a.tar.gz").stat().st_size < 2000
    assert "more comes out of it than the 100000 bytes" in refusal(tmp_path, tmp_path / "a.tar.gz")


def test_tar_of_many_empty_files(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", *(tarfile.TarInfo(f"{number}") for number in range(300)), mode="w:gz")
    assert "more comes out" in refusal(tmp_path, archive)


def test_huge_sparse_member(tmp_path):
    # A file of 8 GB that takes nothing in the archive, as GNU tar writes one without a hole's bytes.
    headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(8 << 30), "GNU.sparse.numblocks": "1"}
    member = tarfile.TarInfo("sparse")
    member.pax_headers = headers
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.next().size == 8 << 30
    assert "more comes out" in refusal(tmp_path, tmp_path / "a.tar")


def test_limit_counts_headers_and_contents(tmp_path):
    archive = tar(tmp_path / "a.tar", "12345", "123")
    with staging_folder(tmp_path / "root") as folder:
        unpack(archive, folder, 2 * 512 + 8, quiet=True)
    refusal(tmp_path, archive, 2 * 512 + 7)


@pytest.mark.parametrize(
    ("name", "what"), [("../escape", "outside"), ("/tmp/detkt-escape", "absolute"), ("a/..\\..\\b", "outside")]
)
def test_evil_zip(tmp_path, name, what):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "1")
        archive.writestr(name, "1")
    assert what in refusal(tmp_path, tmp_path / "a.zip")


def test_link_in_a_zip(tmp_path):
    member = zipfile.ZipInfo("a")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    assert "a link" in refusal(tmp_path, tmp_path / "a.zip")


def test_zip_larger_than_announced(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(LIMIT + 1))
    assert "more comes out" in refusal(tmp_path, tmp_path / "a.zip")


def test_gzip_larger_than_announced(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(LIMIT + 1)))
    assert "more comes out" in refusal(tmp_path, tmp_path / "a.gz")


# Python takes no bytes at all for an empty file that was gzipped; a download of that is refused by its size.
DAMAGES = [(name, damage) for name in ("a.tar", "a.tar.gz", "a.zip") for damage in ("truncated", "other", "empty")]


@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, ("a.gz", "truncated"), ("a.gz", "other")])
def test_damaged(tmp_path, name, damage):
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", bytes(5000))
    elif name == "a.gz":
        path.write_bytes(gzip.compress(bytes(range(256)) * 20))
    else:
        member = tarfile.TarInfo("a")
        member.size = 5000
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
            archive.addfile(member, io.BytesIO(bytes(range(250)) * 20))
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: min(4000, len(content) // 2)], "other": b"x" * 5000, "empty": b""}[damage])
    assert "the archive is damaged or truncated" in refusal(tmp_path, path)


def test_full_disk(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.tarfile.TarFile, "makefile", full)
    message = refusal(tmp_path, tar(tmp_path / "a.tar", "a"))
    assert message == (
        f"cannot unpack {tmp_path}/a.tar into {tmp_path}/root: No space left on device; free space or choose another "
        "folder"
    )


def test_staging_is_removed_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path) as folder:
        (folder / "half").write_text("unpacked")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_staging_begins_empty(tmp_path):
    (tmp_path / ".unpacking/of a killed process").mkdir(parents=True)
    with staging_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []


def test_staging_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to .*/file"), staging_folder(tmp_path / "file"):
        pass


def test_place_renames(tmp_path):
    (tmp_path / "staged/a").mkdir(parents=True)
    (tmp_path / "staged/a/1").write_text("new")
    place(tmp_path / "staged", tmp_path / "not/yet/there")
    assert contents(tmp_path) == {"not/yet/there/a/1": b"new"}


def test_place_overwrites_nothing(tmp_path):
    for name in ("staged/a/1", "staged/a/2", "staged/b", "staged/c/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("new")
    (tmp_path / "there/a").mkdir(parents=True)
    (tmp_path / "there/a/1").write_text("old")
    (tmp_path / "there/b").symlink_to("nowhere")
    place(tmp_path / "staged", tmp_path / "there")
    assert contents(tmp_path / "there") == {"a/1": b"old", "a/2": b"new", "c/3": b"new"}
    assert (tmp_path / "there/b").is_symlink()
