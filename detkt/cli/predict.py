"""Detect objects in any pictures: the boxes drawn on them, and all detections as a COCO result file."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from tqdm import tqdm

from detkt.base.commands import command
from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import make_folder, write_atomically
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.data.boxes import voc_to_corners
from detkt.data.images import MAX_PIXELS, Decoding
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.coco_results import write_coco_results
from detkt.models import load_model
from detkt.visualization.drawing import class_styles, picture_figure
from detkt.visualization.panels import Mark, save_figure
from detkt.visualization.prediction import CONVENTION, detect_file, drawn_paths, find_pictures

EXAMPLES = """examples:
  %(prog)s --checkpoint runs/demo holiday.jpg --output runs/holiday
  %(prog)s --checkpoint runs/demo data/shapes/JPEGImages --output runs/shapes-drawn --score 0.7

A folder gives the pictures in it, but not in its subfolders. Written to the output folder:
  every picture with its boxes drawn (a JPEG for a JPEG, else a PNG; small ones enlarged)
  detections.json   COCO results, as detkt eval --detections reads them: a list of image_id (the picture's path as it
                    was given), category_id, category_name, score, bbox (x, y, width, height in pixels of the upright
                    picture, from 0)
  pictures.json     the COCO data set to them: images (path, size, drawn file) and categories; what could not be read

A file that is no picture, or is damaged, too large or a strip, is passed over with a warning; if none of them could be
used the exit status is 2. A path that is not there is an error at once."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("predict"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--checkpoint", metavar="CKPT", required=True, help="a run's folder or its model.safetensors")
    parser.add_argument("pictures", metavar="PICTURE|FOLDER", nargs="+", help="picture files, or folders of them")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--score", type=float, default=0.5, help="least score of a detection (default: 0.5)")
    parser.add_argument(
        "--max-pixels", type=float, default=MAX_PIXELS, metavar="N", help="larger pictures are passed over"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    if not math.isfinite(arguments.score):
        raise InputError(f"--score is {arguments.score}; give a number, such as 0.5")

    folder = Path(arguments.output)
    paths = find_pictures(map(Path, arguments.pictures))
    drawn = drawn_paths(paths, folder)
    device = resolve_device(arguments.device)
    model, meta = load_model(resolve(arguments.checkpoint), device)
    make_folder(folder)
    decoding = Decoding(max_pixels=arguments.max_pixels)
    styles = class_styles(meta["classes"])
    detections, images, unreadable = {}, [], []
    pairs = list(zip(paths, drawn, strict=True))
    for path, target in tqdm(pairs, unit="picture", disable=arguments.quiet, file=sys.stderr):
        # Whatever bytes its name has, it must be told in UTF-8.
        name = str(path).encode(errors="backslashreplace").decode()
        try:
            image, found = detect_file(path, model, meta["classes"], device, arguments.score, decoding)
        except InputError as error:
            tqdm.write(f"warning: {error}; passed over", file=sys.stderr)
            unreadable.append(name)
            continue
        detections[name] = found
        rows = zip(voc_to_corners(found["boxes"]).tolist(), found["labels"], found["scores"], strict=True)
        save_figure(picture_figure(image, [Mark(b, f"{label} {s:.2f}", styles[label]) for b, label, s in rows]), target)
        height, width = image.shape[:2]
        images.append({"id": name, "file_name": name, "width": width, "height": height, "drawn": target.name})
    if not images:
        raise InputError(f"none of the {len(paths)} files could be read as a picture; see the warnings")
    write_coco_results(folder / "detections.json", detections, coco_ids(list(detections), meta["classes"]))
    info = {"checkpoint": arguments.checkpoint, "score_threshold": arguments.score}
    content = {
        "info": info | {"convention": CONVENTION, "unreadable": unreadable},
        "images": images,
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(meta["classes"], start=1)],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "pictures.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    count = sum(len(found["labels"]) for found in detections.values())
    skipped = f", {len(unreadable)} passed over" if unreadable else ""
    print(f"{count} detections in {len(images)} pictures{skipped}; drawn, and listed in {folder / 'detections.json'}")
