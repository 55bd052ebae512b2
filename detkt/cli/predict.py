"""Detect objects in any pictures or videos: the boxes drawn on them, and all detections as a COCO result file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detkt.base.commands import command
from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.files import make_folder, write_atomically
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.data.boxes import voc_to_corners
from detkt.data.images import MAX_PIXELS, Decoding, check_strip
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.coco_results import write_coco_results
from detkt.export.runtime import open_model
from detkt.visualization.drawing import class_styles, picture_figure
from detkt.visualization.panels import Mark, Style, save_figure
from detkt.visualization.prediction import CONVENTION, detect_file, detect_picture, drawn_paths, find_pictures
from detkt.visualization.video import Video, VideoWriter, draw_marks, is_video

EXAMPLES = """examples:
  %(prog)s --checkpoint runs/demo holiday.jpg --output runs/holiday
  %(prog)s --checkpoint runs/demo data/shapes/JPEGImages --output runs/shapes-drawn --score 0.7
  %(prog)s --checkpoint exported/model.onnx street.mp4 --output runs/street

A checkpoint is a run's folder, its model.safetensors, or what detkt export wrote: *.onnx, *.xml (OpenVINO), or
model.raw.json. A folder gives the pictures in it, but not in its subfolders. Written to the output folder:
  every picture with its boxes drawn (a JPEG for a JPEG, else a PNG; small ones enlarged), every video as an MP4
  detections.json   COCO results, as detkt eval --detections reads them: a list of image_id (the picture's path as it
                    was given; of a video's frame with its number, clip.mp4#1), category_id, category_name, score, bbox
                    (x, y, width, height in pixels of the upright picture, from 0)
  pictures.json     the COCO data set to them: images (path, size, drawn file) and categories; what could not be read

A file that is no picture, or is damaged, too large or a strip, is passed over with a warning; if none of them could be
used the exit status is 2. A path that is not there is an error at once."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("predict"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--checkpoint", metavar="CKPT", required=True, help="a run's folder, or an exported file")
    parser.add_argument("pictures", metavar="PICTURE|FOLDER", nargs="+", help="pictures, folders of them, videos")
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
    model, meta = open_model(resolve(arguments.checkpoint), device)
    make_folder(folder)
    decoding = Decoding(max_pixels=arguments.max_pixels)
    styles = class_styles(meta["classes"])
    detections, images, unreadable = {}, [], []
    pairs = [(path, target) for path, target in zip(paths, drawn, strict=True) if not is_video(path)]
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
        save_figure(picture_figure(image, _marks(found, styles)), target)
        images.append(_entry(name, image, target))
    for path, target in zip(paths, drawn, strict=True):
        if not is_video(path):
            continue
        name = str(path).encode(errors="backslashreplace").decode()
        try:
            frames = _predict_video(path, target, model, meta["classes"], device, arguments)
            for number, (image, found) in enumerate(frames, start=1):
                detections[f"{name}#{number}"] = found
                images.append(_entry(f"{name}#{number}", image, target))
        except InputError as error:
            tqdm.write(f"warning: {error}; passed over", file=sys.stderr)
            unreadable.append(name)
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
    if not count:
        print(f"none has a score of {arguments.score:g} or more; a lower --score shows what the model is less sure of")


def _predict_video(
    path: Path,
    target: Path,
    model: nn.Module,
    classes: Sequence[str],
    device: torch.device,
    arguments: argparse.Namespace,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Every frame of the video *path* and what is found in it; the frames are drawn to *target*."""
    video, styles, writer = Video(path), class_styles(classes), None
    # Under another name until it is whole, with the suffix by which OpenCV knows what to write.
    temporary = target.with_name(f".tmp-{target.name}")
    bar = tqdm(video.frames(), total=video.count or None, unit="frame", disable=arguments.quiet, file=sys.stderr)
    try:
        for frame in bar:
            check_strip(path, *frame.shape[1::-1])
            found = detect_picture(model, frame, classes, device, arguments.score)
            writer = writer or VideoWriter(temporary, video.rate, *frame.shape[1::-1])
            writer.write(draw_marks(frame, _marks(found, styles)))
            yield frame, found
        if writer is not None:
            writer.close()
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _marks(found: dict[str, Any], styles: dict[str, Style]) -> list[Mark]:
    rows = zip(voc_to_corners(found["boxes"]).tolist(), found["labels"], found["scores"], strict=True)
    return [Mark(box, f"{label} {score:.2f}", styles[label]) for box, label, score in rows]


def _entry(name: str, image: np.ndarray, target: Path) -> dict[str, Any]:
    """Of the COCO data set in ``pictures.json``."""
    height, width = image.shape[:2]
    return {"id": name, "file_name": name, "width": width, "height": height, "drawn": target.name}
