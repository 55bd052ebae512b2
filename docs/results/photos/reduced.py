#!/usr/bin/env python
"""A copy of the photographs' devkit that travels: the pictures of the protocol's lists, smaller, with their boxes.

    python docs/results/photos/reduced.py DATA/VOCdevkit COPY/VOCdevkit [SIDE [QUALITY]]

SIDE: pixels of the shorter side (224, what the Faster R-CNN pair sees), QUALITY: of the JPEG files (85). 953 pictures.
A run on them is compared with others on them: pictures and boxes are rounded once more than the original ones.
"""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

LISTS = {"VOC2007": ("have_trainval", "have_test"), "VOC2012": ("have_train", "have_val")}


def main(devkit: Path, copy: Path, side: int = 224, quality: int = 85) -> None:
    total = 0
    for year, lists in LISTS.items():
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (copy / year / part).mkdir(parents=True, exist_ok=True)
        for name in lists:
            text = (devkit / year / "ImageSets/Main" / f"{name}.txt").read_text()
            (copy / year / "ImageSets/Main" / f"{name}.txt").write_text(text)
            for picture in text.split():
                path = copy / year / "JPEGImages" / f"{picture}.jpg"
                with Image.open(devkit / year / "JPEGImages" / f"{picture}.jpg") as image:
                    share = min(1.0, side / min(image.size))
                    size = [round(edge * share) for edge in image.size]
                    factors = [new / old for new, old in zip(size, image.size, strict=True)]
                    image.resize(size, Image.Resampling.LANCZOS).save(path, quality=quality, optimize=True)
                annotation = ET.parse(devkit / year / "Annotations" / f"{picture}.xml")
                for key, edge in zip(("width", "height"), size, strict=True):
                    annotation.find(f"size/{key}").text = str(edge)
                for corner in (corner for box in annotation.iter("bndbox") for corner in box):
                    # VOC counts pixels from 1: a box begins before its first and ends after its last.
                    first = corner.tag.endswith("min")
                    value = (float(corner.text) - first) * factors[corner.tag.startswith("y")] + first
                    corner.text = f"{value:.2f}"
                annotation.write(copy / year / "Annotations" / f"{picture}.xml")
                total += path.stat().st_size
    print(f"{total / 2**20:.1f} MiB of pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
