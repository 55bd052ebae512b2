"""One small data set in VOC's, COCO's and YOLO's format, written by hand here and not by `detkt prepare --convert`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLASSES = ["cross", "disc", "star"]  # sorted, as VOC's reader takes them
Box = tuple[float, float, float, float]


@dataclass
class Scene:
    """A picture of *size* (width, height) with objects: class and 0-based corners."""

    name: str
    size: tuple[int, int]
    objects: list[tuple[str, Box]]


SCENES = {
    "train": [
        Scene("b", (60, 48), [("disc", (3, 5, 30, 41)), ("cross", (0, 0, 60, 48))]),
        Scene("a", (48, 60), [("star", (10.25, 7.5, 33.75, 50.125))]),
        Scene("deep/c", (64, 64), []),
        Scene("d", (53, 47), [("cross", (1, 2, 51.3, 40.7)), ("disc", (20, 20, 52, 46))]),
    ],
    "val": [
        Scene("e", (60, 44), [("disc", (4, 4, 40, 40)), ("star", (7, 9, 20, 31)), ("cross", (30, 2, 59, 43))]),
        Scene("f", (40, 64), [("star", (1, 1, 39, 63))]),
    ],
}


def draw(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_voc(root: Path, scenes=None) -> Path:
    """1-based inclusive pixels: the first corner is one more."""
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, own in (scenes or SCENES).items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{one.name}\n" for one in own))
        for seed, one in enumerate(own):
            draw(root / f"JPEGImages/{one.name}.png", one.size, seed)
            xml = f"<annotation><size><width>{one.size[0]}</width><height>{one.size[1]}</height></size>"
            for name, (x1, y1, x2, y2) in one.objects:
                sides = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                xml += f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"
            path = root / f"Annotations/{one.name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(xml + "</annotation>")
    return root


def write_coco(root: Path, scenes=None) -> Path:
    """Ids with gaps, category 0, crossed lists: what is in order only by its ids."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": 7 * number, "name": name} for number, name in enumerate(CLASSES)]
    for split, own in (scenes or SCENES).items():
        images, annotations = [], []
        for seed, one in enumerate(own):
            draw(root / f"images/{split}/{one.name}.png", one.size, seed)
            id = 10 + 3 * seed
            images.append({"id": id, "file_name": f"{one.name}.png", "width": one.size[0], "height": one.size[1]})
            for name, (x1, y1, x2, y2) in one.objects:
                item = {"id": 1 + 5 * len(annotations), "image_id": id, "category_id": 7 * CLASSES.index(name)}
                item |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                annotations.append(item)
        content = {"images": images[::-1], "categories": categories[::-1], "annotations": annotations}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def write_yolo(root: Path, scenes=None) -> Path:
    """Lists of pictures, for folders are in the order of names."""
    for split, own in (scenes or SCENES).items():
        for seed, one in enumerate(own):
            draw(root / f"images/{one.name}.png", one.size, seed)
            lines = ""
            for name, (x1, y1, x2, y2) in one.objects:
                width, height = one.size
                numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
                lines += f"{CLASSES.index(name)} {' '.join(map(repr, numbers))}\n"
            path = root / f"labels/{one.name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            if lines:
                path.write_text(lines)
        (root / f"{split}.txt").write_text("".join(f"./images/{one.name}.png\n" for one in own))
    content = {split: f"{split}.txt" for split in scenes or SCENES} | {"names": CLASSES, "nc": len(CLASSES)}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


WRITE = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}
