"""What looks like a fault and is none: pictures of every kind, pictures without objects, files with Windows' ends."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from detkt.cli.shared import run_tool
from detkt.data.voc import VOCDetection

KINDS = ("grey", "cmyk", "rgba", "sixteen", "rotated", "palette")


def save(kind: str, image: Image.Image, path) -> None:
    """*image* (RGB, square) as a file of *kind*."""
    if kind == "sixteen":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path.with_suffix(".png"))
    elif kind == "rotated":
        exif = Image.Exif()
        exif[274] = 6  # is to be turned by a quarter
        image.rotate(90).save(path, exif=exif, quality=95)
    elif kind in ("rgba", "palette"):
        (image.convert("RGBA") if kind == "rgba" else image.quantize(256)).save(path.with_suffix(".png"))
    else:
        image.convert({"grey": "L", "cmyk": "CMYK"}[kind]).save(path, quality=95)


@pytest.fixture
def odd(place):
    """In both lists the first six pictures are of another kind each, and the last has no object."""
    for split in ("trainval", "test"):
        for number, kind in enumerate(KINDS):
            path = place["voc"] / "JPEGImages" / f"{split}_{number:06d}.jpg"
            with Image.open(path) as picture:
                image = picture.convert("RGB")
            path.unlink()
            save(kind, image, path)
        last = sorted((place["voc"] / "Annotations").glob(f"{split}_*.xml"))[-1]
        last.write_text(re.sub("<object>.*</object>", "", last.read_text(), flags=re.DOTALL))
        names = place["voc"] / "ImageSets" / "Main" / f"{split}.txt"
        names.write_bytes(b"\xef\xbb\xbf" + names.read_bytes().replace(b"\n", b"\r\n"))
    return place


def test_odd_pictures_show_what_the_usual_ones_show(odd, voc_folder):
    ours, theirs = (VOCDetection(root, "test") for root in (odd["voc"], voc_folder))
    for number, kind in enumerate(KINDS):
        found, expected = ours[number][0], theirs[number][0]
        if kind in ("grey", "sixteen"):
            expected = expected.mul(255).permute(1, 2, 0).byte().numpy()
            expected = np.asarray(Image.fromarray(expected).convert("L")) / 255
            expected = found.new_tensor(expected).expand(3, -1, -1)
        assert (found - expected).abs().mean() < 0.03, kind


def test_every_tool_ends_well_on_them(odd, tool):
    lines = {
        "train_det": "--config {pair} --output {out} --quiet --epochs 1",
        "eval_voc": "--checkpoint {out} --data-root {voc} --quiet --device cpu --bootstrap 0 --json {tmp}/scores.json",
        "predict": "--checkpoint {out} {voc}/JPEGImages --output {tmp}/drawn --quiet --device cpu",
    }
    for name, line in lines.items():
        program = tool(name)
        run_tool(lambda _, program=program, line=line: program.main(odd.flags(line)))
    metrics = json.loads((odd["out"] / "metrics.json").read_text())
    assert json.loads((odd.tmp / "scores.json").read_text())["map_area"] == metrics["map_area"]
    assert len(json.loads((odd.tmp / "drawn" / "pictures.json").read_text())["images"]) == 22
