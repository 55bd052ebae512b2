"""Download a data set and unpack it, or check one that is there: what is missing, damaged or odd."""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from detkt.base.commands import command
from detkt.base.errors import InputError, suggestion
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.config import data_config
from detkt.data import DEFAULT_ROOTS
from detkt.prepare.checking import check_dataset, check_source
from detkt.prepare.converting import FORMATS, convert
from detkt.prepare.findings import Findings, count
from detkt.prepare.preparing import prepare
from detkt.prepare.sources import SOURCES, PublishedSet

EXAMPLES = """examples:
  %(prog)s voc2007
  %(prog)s cifar10 --data-root /data/cifar10 --url https://mirror.example.org/cifar
  %(prog)s path/to/BCCD --check
  %(prog)s path/to/carts --check data.classes=[car,cart] data.train=train data.test=val
  %(prog)s path/to/BCCD --convert coco --output data/BCCD-coco

A download that was stopped goes on when the same command is run again. Nothing is trusted but by its checksum, and no
file that is there is overwritten: remove the damaged ones, and they are put back. An archive that you put into the
folder "archives" in the data set's folder yourself is used instead of a download.

A check prints one line for each flaw, FILE: WHAT IS WRONG, and ends with status 2 if there is any. Lines that begin
with "note:" are about what is odd but read as it should be.

A conversion writes a folder in VOC's, COCO's or YOLO's format into a new one in another. It refuses what would be lost,
and names it; --lossy writes the rest."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("prepare"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument(
        "data",
        nargs="?",
        metavar="NAME|FOLDER",
        help=f"{', '.join(SOURCES)}; or a folder of your own to check: in VOC format, of XML files with "
        "their pictures, with COCO's JSON files or YOLO's data.yaml, or with pictures as SPLIT/CLASS/PICTURE",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="the data set's folder (default: data/NAME; VOC: data/VOCdevkit)"
    )
    parser.add_argument("--check", action="store_true", help="only check what is there")
    parser.add_argument("--convert", choices=FORMATS, help="write a folder of your own in another format")
    parser.add_argument("--output", metavar="DIR", help="the new folder of --convert")
    parser.add_argument("--lossy", action="store_true", help="convert also what the format cannot hold all of")
    parser.add_argument("--url", help="a mirror: the folder of the archives, or the archive itself if there is but one")
    parser.add_argument("--keep-archives", action="store_true", help="do not remove them once unpacked")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.key=value",
        help="check a folder for a training with these settings, as in data.classes=[person,cart] data.boxes=refuse",
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.data is None:
        parser.error("the following arguments are required: NAME|FOLDER")
    if bool(arguments.convert) != bool(arguments.output):
        raise InputError("--convert and --output DIR, the new folder, go together: give both")
    if arguments.lossy and not arguments.convert:
        raise InputError("--lossy is for --convert; leave it out")
    source = None if arguments.convert else SOURCES.get(arguments.data)
    root = find_root(source, arguments)
    if arguments.convert:
        _convert(root, arguments)
        return
    if source is None:
        findings = check_dataset(root, data_config(arguments.overrides, train="", test=""), arguments.quiet)
    elif arguments.check:
        findings = check_source(source, root, arguments.quiet)
    else:
        progress = partial(tqdm, desc="drawing", disable=arguments.quiet)
        try:
            findings = prepare(source, root, arguments.url, arguments.keep_archives, arguments.quiet, progress)
        except KeyboardInterrupt:
            print("what has been downloaded is kept; the same command goes on from there", file=sys.stderr)
            raise

    for finding in findings.errors:
        print(finding.line)
    for finding in findings.notes:
        print(f"note: {finding.line}")
    if findings.errors:
        raise InputError(f"{findings.verdict(root)}: {remedy(source, root, findings)}")
    print("\n".join(f"{line}: in order" for line in findings.summary))


def _convert(root: Path, arguments: argparse.Namespace) -> None:
    data = data_config(arguments.overrides, train="", test="")
    folder = Path(arguments.output).expanduser()
    done = convert(root, arguments.convert, folder, data, arguments.lossy, arguments.quiet)
    for note in done.notes:
        print(f"note: {note}")
    for lost in done.lost:
        print(f"lost: {lost}")
    splits = ", ".join(f"{name} ({number})" for name, number in done.splits.items())
    print(f"{folder}: {arguments.convert}, {count(done.objects, 'object')}, pictures of {splits}")


def find_root(source: PublishedSet | None, arguments: argparse.Namespace) -> Path:
    """The folder to prepare or check."""
    if source is None:
        folder = Path(arguments.data).expanduser()
        if not folder.is_dir():
            choices = f"choose from {', '.join(SOURCES)}, or give a folder that is there"
            hint = suggestion(arguments.data, SOURCES)
            raise InputError(f"'{arguments.data}' is neither a data set nor a folder{hint}; {choices}")
        if arguments.data_root or arguments.url or arguments.keep_archives:
            raise InputError("--data-root, --url and --keep-archives are for data sets by name, not for a folder")
        return folder
    if arguments.overrides:
        raise InputError(f"{arguments.overrides[0]}: settings are for a folder of your own, not for {source.name}")
    if (arguments.check or not source.archives) and (arguments.url or arguments.keep_archives):
        reason = "with --check" if arguments.check else f"for {source.name}"
        raise InputError(f"--url and --keep-archives are for downloads, and there is none {reason}; leave them out")
    return resolve(arguments.data_root or DEFAULT_ROOTS[source.format])


def remedy(source: PublishedSet | None, root: Path, findings: Findings) -> str:
    """What to do about the flaws."""
    if source is None:
        return "mend the files or take them out of the lists, then check again"
    if source.manual:
        return source.manual.format(root=root)
    call = f"{command('prepare')} {source.name} --data-root {shlex.quote(str(root))}"
    if source.name == "shapes":
        return f"remove the folder if it is there, then draw it anew with: {call}"
    what = "fetch what is missing" if findings.sound else "remove the damaged files, then put them back"
    return f"{what} with: {call}"
