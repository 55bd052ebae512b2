#!/usr/bin/env python
"""Detect objects in any pictures: the boxes drawn on them, and all detections as one JSON file."""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from detkt.cli import Parser, run_tool
from detkt.data.images import read_image
from detkt.engine.checkpoint import write_atomically
from detkt.engine.run import resolve_device
from detkt.errors import InputError
from detkt.models import load_model
from detkt.paths import resolve
from detkt.visualization.difference import make_folder
from detkt.visualization.drawing import class_styles, picture_figure
from detkt.visualization.panels import Mark, save_figure
from detkt.visualization.prediction import CONVENTION, detect_picture, drawn_paths, find_pictures

EXAMPLES = """examples:
  python tools/predict.py --checkpoint runs/demo holiday.jpg --output runs/holiday
  python tools/predict.py --checkpoint runs/demo data/shapes/JPEGImages --output runs/shapes-drawn --score 0.7

A folder gives the pictures in it, but not in its subfolders. Written to the output folder: every picture with its boxes
drawn (a JPEG for a JPEG, else a PNG; small ones enlarged), and detections.json: for each picture its size and its
detections, boxes as x1, y1, x2, y2 in pixels of the upright picture, continuous corners counted from 0.

A file that is no picture, or is damaged, is passed over with a warning, and listed in detections.json; if none of them
could be read the exit status is 2. A path that is not there is an error at once."""


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="CKPT", required=True, help="a run's folder or its model.safetensors")
    parser.add_argument("pictures", metavar="PICTURE|FOLDER", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--score", type=float, default=0.5, help="least score of a detection (default: 0.5)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(arguments)
    if not math.isfinite(arguments.score):
        raise InputError(f"--score is {arguments.score}; give a number, such as 0.5")

    folder = Path(arguments.output)
    paths = find_pictures(map(Path, arguments.pictures))
    drawn = drawn_paths(paths, folder)
    device = resolve_device(arguments.device)
    model, meta = load_model(resolve(arguments.checkpoint), device)
    make_folder(folder)
    styles = class_styles(meta["classes"])
    entries, unreadable = [], []
    pairs = list(zip(paths, drawn, strict=True))
    for path, target in tqdm(pairs, unit="picture", disable=arguments.quiet, file=sys.stderr):
        try:
            image = read_image(path)
        except InputError as error:
            tqdm.write(f"warning: {error}; passed over", file=sys.stderr)
            unreadable.append(str(path))
            continue
        found = detect_picture(model, image, meta["classes"], device, arguments.score)
        marks = [Mark(one["box"], f"{one['label']} {one['score']:.2f}", styles[one["label"]]) for one in found]
        save_figure(picture_figure(image, marks), target)
        height, width = image.shape[:2]
        entries.append(
            {
                "picture": str(path),
                "width": width,
                "height": height,
                "drawn": target.name,
                "detections": found,
            }
        )
    if not entries:
        raise InputError(f"none of the {len(paths)} files could be read as a picture; see the warnings")
    result = {
        "convention": CONVENTION,
        "checkpoint": arguments.checkpoint,
        "classes": meta["classes"],
        "score_threshold": arguments.score,
        "pictures": entries,
        "unreadable": unreadable,
    }
    content = json.dumps(result, indent=1) + "\n"
    write_atomically(folder / "detections.json", lambda temporary: temporary.write_text(content, encoding="utf-8"))
    count = sum(len(entry["detections"]) for entry in entries)
    skipped = f", {len(unreadable)} passed over" if unreadable else ""
    print(f"{count} detections in {len(entries)} pictures{skipped}; drawn, and listed in {folder / 'detections.json'}")


if __name__ == "__main__":
    run_tool(main)
