"""A published data set brought to its folder: downloaded where something is missing, unpacked, and checked."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.config import load_config
from detkt.data import shapes_config
from detkt.data.shapes import write_shapes
from detkt.prepare.checking import check_source
from detkt.prepare.download import download
from detkt.prepare.findings import Findings
from detkt.prepare.sources import Archive, PublishedSet
from detkt.prepare.unpack import place, staging_folder, unpack

SHAPES_CONFIG = "configs/shapes.yaml"


def prepare(
    source: PublishedSet,
    root: Path,
    url: str | None = None,
    keep_archives: bool = False,
    quiet: bool = False,
    progress: Callable | None = None,
) -> Findings:
    """Make *source* complete in *root*; what the check finds in the end.

    What is there is never overwritten: only missing files are added, and nothing is downloaded if none is missing or
    what is there is flawed. Archives go to ``ROOT/archives``; one that lies there already is used if it is right.

    url: a mirror, the folder of the archives, or the archive itself where there is but one.
    keep_archives: leave them there. progress: wraps the loop that draws the shapes, like ``tqdm``.

    Raises InputError: nothing can be downloaded (ImageNet); no network, disk full, a wrong archive: see
    `detkt.prepare.download.download` and `detkt.prepare.unpack.unpack`.
    """
    if source.name == "shapes":
        write_shapes(root, shapes_config(load_config(resolve(SHAPES_CONFIG)).data), progress)
        return check_source(source, root, quiet)
    findings = check_source(source, root, quiet)
    if findings.complete or not findings.sound:
        return findings
    if not source.archives:
        raise InputError(source.manual.format(root=root))
    archives = _missing(source, root)
    addresses = {archive: _addresses(archive, url, len(source.archives)) for archive in archives}
    folder = root / "archives"
    _make_room(folder, archives)
    try:
        with staging_folder(root) as staging:  # made before the downloads: it shows whether *root* can be written to
            for archive in archives:
                digests = {"sha256": archive.sha256, "md5": archive.md5}
                download(addresses[archive], folder / archive.name, archive.size, digests, quiet)
            _install(archives, folder, staging, source.home(root), quiet)
        findings = check_source(source, root, quiet)
        if findings.complete and not keep_archives:
            for archive in archives:
                (folder / archive.name).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # it still holds something
            folder.rmdir()
    return findings


def _install(archives: list[Archive], folder: Path, staging: Path, home: Path, quiet: bool) -> None:
    """Unpack all of *archives* into *staging*, then move what they hold to *home*."""
    for archive in archives:
        unpacked = staging / f"from {archive.name}"
        unpacked.mkdir()
        unpack(folder / archive.name, unpacked, archive.unpacked, quiet)
    for archive in archives:
        place(staging / f"from {archive.name}" / archive.inner, home)


def _missing(source: PublishedSet, root: Path) -> list[Archive]:
    """The archives that hold what is not there: of many, each a single file, not all."""
    if len(source.archives) == 1 or source.year:
        return list(source.archives)
    home = source.home(root)
    return [
        archive
        for archive in source.archives
        if not any((home / name).is_file() for name in (archive.name, archive.name.removesuffix(".gz")))
    ]


def _addresses(archive: Archive, mirror: str | None, count: int) -> tuple[str, ...]:
    if mirror is None:
        return archive.urls
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--url {mirror}: give an address that begins with http:// or https://")
    if parts.path.endswith(f"/{archive.name}"):
        if count > 1:
            raise InputError(f"--url {mirror}: {count} archives are needed; give the folder that holds them")
        return (mirror,)
    return (f"{mirror.rstrip('/')}/{archive.name}",)


def _make_room(folder: Path, archives: list[Archive]) -> None:
    needed = sum(archive.size + archive.unpacked for archive in archives)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / f"{archive.name}{suffix}" for archive in archives for suffix in ("", ".part")):
            needed -= path.stat().st_size if path.exists() else 0
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; give another --data-root") from error
    if needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB are needed to download and unpack, but {free / 1e9:.1f} GB are free; "
            "free space, or give another --data-root"
        )
