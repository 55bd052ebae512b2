"""Hand-made detections and objects, and a small VOC folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def found(*rows):
    """Detections of one picture from rows (label, score, x1, y1, x2, y2)."""
    return {
        "boxes": np.array([row[2:] for row in rows], dtype=float).reshape(-1, 4),
        "scores": np.array([row[1] for row in rows], dtype=float),
        "labels": [row[0] for row in rows],
    }


def objects(*rows):
    """Objects of one picture from rows (label, difficult, x1, y1, x2, y2)."""
    return {
        "boxes": np.array([row[2:] for row in rows], dtype=float).reshape(-1, 4),
        "labels": [row[0] for row in rows],
        "difficult": np.array([row[1] for row in rows], dtype=bool),
    }


def write_voc_folder(root: Path, annotations: dict, size: int = 100, split: str = "test") -> Path:
    """Grey pictures of *size* squared with the objects of *annotations*, as a VOC folder."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in annotations))
    for name, record in annotations.items():
        Image.new("RGB", (size, size), (90, 90, 90)).save(root / "JPEGImages" / f"{name}.png")
        items = []
        for box, label, difficult in zip(record["boxes"], record["labels"], record["difficult"], strict=True):
            sides = zip(("xmin", "ymin", "xmax", "ymax"), box.astype(int), strict=True)
            corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
            items.append(
                f"<object><name>{label}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox>{corners}</bndbox></object>"
            )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{size}</width><height>{size}</height>"
            f"<depth>3</depth></size>{''.join(items)}</annotation>"
        )
    return root
