#!/usr/bin/env python
"""A copy of the photographs' devkit with a fifth of the training photographs held out, made of links and lists.

    python docs/results/photos/held_out_lists.py DATA/VOCdevkit COPY

COPY gets VOC2007 and VOC2012, their pictures and annotations as links, all of DATA's lists, and two lists a year:
``fit`` (four fifths of VOC2012 ``have_train`` and VOC2007 ``have_trainval``) and ``held`` (the rest). Settings are
chosen with ``data.train=2012:fit+2007:fit data.test=2012:held+2007:held``. Held out are those whose names have the
smallest SHA-256.
"""

import hashlib
import shutil
import sys
from pathlib import Path

TRAINING = {"VOC2007": "have_trainval", "VOC2012": "have_train"}


def main(devkit: Path, copy: Path) -> None:
    for year, training in TRAINING.items():
        lists = copy / year / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        for part in ("JPEGImages", "Annotations"):
            link = copy / year / part
            if not link.exists():
                link.symlink_to((devkit / year / part).resolve())
        for path in (devkit / year / "ImageSets" / "Main").glob("*.txt"):
            shutil.copyfile(path, lists / path.name)
        names = (lists / f"{training}.txt").read_text().split()
        by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
        fifth = round(len(names) / 5)
        for name, chosen in (("held", sorted(by_hash[:fifth])), ("fit", sorted(by_hash[fifth:]))):
            (lists / f"{name}.txt").write_text("".join(f"{one}\n" for one in chosen))
            print(year, name, len(chosen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
