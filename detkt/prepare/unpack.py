"""Archives unpacked so that nothing gets out of the folder, and nothing is there before all of it is."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from detkt.base.errors import InputError

_HEADER = 512  # bytes that a member takes in a tar file besides its content
_CHUNK = 1 << 20
# RuntimeError: zipfile's for a member that is encrypted, or compressed in a way it does not know.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class _Evil(Exception):
    """What a member would do."""


@contextlib.contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """An empty folder in *root* to unpack into, on the same disk, so that the result can be renamed.

    It is removed at the end, whatever happens; what a killed process left of it is removed at the beginning.

    Raises InputError: it cannot be made.
    """
    folder = root / ".unpacking"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}; choose another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(archive: Path, folder: Path, limit: int, quiet: bool = False) -> None:
    """Unpack a .tar (of any compression), a .zip, or the one file of a .gz into *folder*.

    limit: the most bytes that may come out, headers of a tar file included.

    Raises InputError, of which what has come out so far must be thrown away (see `staging_folder`): the archive is
    damaged; a member that is neither file nor folder (any link, for no data set holds one), or lies outside the folder;
    more comes out than *limit*; the disk is full.
    """
    try:
        with tqdm(
            total=limit, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, unit_divisor=1024, disable=quiet
        ) as bar:
            if archive.suffix == ".zip":
                _unpack_zip(archive, folder, limit, bar)
            elif archive.suffix == ".gz" and not archive.stem.endswith(".tar"):
                _unpack_gzip(archive, folder / archive.stem, limit, bar)
            else:
                _unpack_tar(archive, folder, limit, bar)
    except (_Evil, tarfile.FilterError) as error:
        raise InputError(f"{archive}: refused, nothing is unpacked: {error}; do not trust this archive") from None
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{archive}: the archive is damaged or truncated ({reason}); remove it, and get it anew"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot unpack {archive} into {folder.parent}: {error.strerror or error}; free space or choose another "
            "folder"
        ) from error


def place(staged: Path, target: Path) -> None:
    """Rename *staged* to *target*; where that is a folder already, move into it only what it does not hold.

    Nothing is overwritten. Raises InputError: it cannot be moved, for one because a file is where a folder must be.
    """
    try:
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(target)
        elif staged.is_dir():
            for entry in sorted(staged.iterdir()):
                place(entry, target / entry.name)
    except OSError as error:
        raise InputError(f"cannot move the unpacked files to {target}: {error.strerror or error}") from error


def _unpack_tar(archive: Path, folder: Path, limit: int, bar: tqdm) -> None:
    with tarfile.open(archive) as tar:
        total = 0
        for member in tar:
            _check_name(member.name)
            if not (member.isreg() or member.isdir()):
                kind = "a link" if member.issym() or member.islnk() else "a device or pipe"
                raise _Evil(f"member {member.name!r} is {kind}")
            total += _HEADER + member.size
            _check_total(total, limit)
            tar.extract(member, folder, filter="data")
            bar.update(_HEADER + member.size)


def _unpack_zip(archive: Path, folder: Path, limit: int, bar: tqdm) -> None:
    with zipfile.ZipFile(archive) as members:
        total = 0
        for member in members.infolist():
            _check_name(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)  # Unix's mode, 0 where another system wrote the file
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Evil(f"member {member.filename!r} is a link, a device or a pipe")
            total += member.file_size  # zipfile reads no byte more than this
            _check_total(total, limit)
            members.extract(member, folder)
            bar.update(member.file_size)


def _unpack_gzip(archive: Path, target: Path, limit: int, bar: tqdm) -> None:
    with gzip.open(archive) as source, open(target, "wb") as file:
        while chunk := source.read(_CHUNK):
            _check_total(file.tell() + len(chunk), limit)
            file.write(chunk)
            bar.update(len(chunk))


def _check_name(name: str) -> None:
    # Windows' separators and drives as well: the archive may be unpacked there.
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        raise _Evil(f"member {name!r} has an absolute path")
    if ".." in parts:
        raise _Evil(f"member {name!r} lies outside the folder")


def _check_total(total: int, limit: int) -> None:
    if total > limit:
        raise _Evil(f"more comes out of it than the {limit} bytes that were announced")
