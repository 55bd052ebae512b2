"""Checks of data sets on disk: what is missing, damaged or odd, all of it and not the first flaw alone."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from tqdm import tqdm

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.config import DataConfig
from detkt.data.images import Decoding
from detkt.data.layouts import found_format
from detkt.data.voc_folder import is_plain, plain_folders, year_folders
from detkt.prepare.findings import Findings
from detkt.prepare.folder_checking import check_image_folder, class_folders
from detkt.prepare.sources import READERS, SOURCES, PublishedSet, Version
from detkt.prepare.split_checking import check_splits
from detkt.prepare.voc_checking import check_plain, check_voc, rehearse

ALL_LISTS = DataConfig(train="", test="")
_IMAGENET = {"train": 1_281_167, "val": 50_000}


def check_source(source: PublishedSet, root: Path, quiet: bool = False) -> Findings:
    """Check the published data set *source* in *root*; see `PublishedSet.home` for where in it."""
    findings = Findings(published=True)
    home = source.home(root)
    try:
        if not home.is_dir():
            findings.error(home, "there is no such folder", missing=True)
        elif source.name == "shapes":
            check_voc(root, ALL_LISTS, findings, ("trainval", "test", "val"), quiet)
        elif source.name == "imagenet":
            check_image_folder(root, findings, expected=_IMAGENET, quiet=quiet)
        elif source.year:
            check_voc(home, ALL_LISTS, findings, source.lists, quiet)
        else:
            _check_files(source, root, findings, quiet)
    except OSError as error:
        raise _unreadable(root, error) from error
    return findings


def check_dataset(folder: Path, data: DataConfig = ALL_LISTS, quiet: bool = False) -> Findings:
    """Check a folder of one's own: in VOC's, COCO's or YOLO's format, or with pictures as SPLIT/CLASS/PICTURE.

    data: the settings to be trained with; of lists that they name no other counts.

    Raises InputError: it is none of these.
    """
    findings = Findings()
    try:
        own_format = data.format if data.format in ("coco", "yolo") else found_format(folder)
        if own_format in ("coco", "yolo"):
            check_splits(own_format, folder, data, findings, quiet)
        elif is_plain(folder) and (plain := plain_folders(folder)):
            check_plain(folder, data, plain, findings, quiet)
        elif years := year_folders(folder):
            for year in years:
                check_voc(year, data, findings, quiet=quiet)
        else:
            _check_pictures(folder, data, findings, quiet)
            return findings
        if not findings.stops:
            learnt, scored = ([split for split in splits if split] for splits in ((data.train,), (data.test, data.val)))
            rehearse(own_format or "voc", folder, data, findings, learnt, scored)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return findings


def _check_pictures(folder: Path, data: DataConfig, findings: Findings, quiet: bool) -> None:
    for source in SOURCES.values():
        if any(version.home(folder) for version in source.versions):
            raise InputError(
                f"{folder} holds the files of {source.name} or of its like; check it by the name of the data set, as "
                f"in: {command('prepare')} {source.name} --check --data-root {folder}"
            )
    if not class_folders(folder):
        raise InputError(
            f"{folder}: neither a VOC-format folder (Annotations, ImageSets/Main and JPEGImages, or VOC2007 and so on) "
            "nor one of pictures with their XML files, with COCO's JSON files or with YOLO's data.yaml, nor one of "
            "pictures (SPLIT/CLASS/PICTURE); give the folder that holds these"
        )
    check_image_folder(folder, findings, Decoding(data.exif, data.max_pixels), quiet=quiet)


def _unreadable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot read {error.filename or folder}: {error.strerror or error}; the check is not finished")


def _check_files(source: PublishedSet, root: Path, findings: Findings, quiet: bool) -> None:
    """Compare the files with the published sizes and checksums, of the version that the reader would take."""
    found = [(version, home) for version in source.versions if (home := version.home(root))]
    # Where nothing is there, what would be downloaded is missing.
    version, home = found[0] if found else (source.versions[-1], source.home(root))
    sound = True
    for name in tqdm(version.md5, "files", disable=quiet):
        path = next((p for p in (home / name, home / f"{name}.gz") if p.is_file()), None)
        if path is None:
            findings.error(home / name, "there is no such file", missing=True)
        elif flaw := _content_flaw(path, name, version):
            findings.error(path, flaw)
        else:
            continue
        sound = False
    if sound and source.name in READERS:
        for split in ("train", "test"):
            try:
                READERS[source.name](root, data_format=source.name, split=split)
            except InputError as error:
                findings.refused(home, error)
    findings.summary.append(f"{home}: {len(version.md5)} files")


def _content_flaw(path: Path, name: str, version: Version) -> str | None:
    try:
        content = path.read_bytes()
        if path.name != name:
            content = gzip.decompress(content)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        return f"damaged or truncated ({error}); remove it, and get it anew"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    size, md5 = version.sizes.get(name, len(content)), hashlib.md5(content, usedforsecurity=False).hexdigest()
    if len(content) != size:
        return f"holds {len(content)} bytes instead of {size}: truncated, or another file; remove it, and get it anew"
    if version.md5[name] not in ("", md5):
        for source in SOURCES.values():
            if any(md5 in other.md5.values() for other in source.versions):
                return f"is a file of {source.name}, of another name or in the wrong folder; remove it"
        return f"damaged: the MD5 of its content is {md5} instead of {version.md5[name]}; remove it, and get it anew"
    return None
