"""Export a trained detector or classifier for other runtimes, and measure it after export."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detkt.base.commands import command
from detkt.base.errors import InputError, first_line, suggestion
from detkt.base.files import make_folder, write_atomically
from detkt.base.paths import resolve
from detkt.cli.shared import Parser, own_reading
from detkt.config import DataConfig, data_config
from detkt.data import test_set
from detkt.data.detection import DetectionSet
from detkt.engine.run_folder import versions, write_metrics
from detkt.export.measuring import processor
from detkt.export.model_card import CARD_FILE, About, model_card, training_command
from detkt.export.onnx_file import DEFAULT_OPSET, OPSETS
from detkt.export.shipping import FORMATS, Request, Shipment
from detkt.export.table import export_table, numbers
from detkt.kinds import KINDS, detection_kind
from detkt.models import load_model

JSON_FILE = "export.json"
_CALIBRATION_SPLITS = ("trainval", "train", "val")
EXAMPLES = """examples:
  %(prog)s --checkpoint runs/shapes-ktan-s0 --half --output exported
  %(prog)s --checkpoint runs/shapes-ktan-s0 --format onnx,int8,openvino --data-root data/shapes --output exported
  %(prog)s --checkpoint runs/shapes-ktan-s0 --raw --static 128x128 --output exported

formats: safetensors; onnx; int8 (ONNX); openvino (with int8 both); torchscript. ONNX needs pip install detkt[onnx],
OpenVINO detkt[openvino]. Every form is compared with torch on some pictures before it is written. A detector's graph
takes images (N, 3, height, width) of any number and size, RGB in [0, 1], and gives boxes, labels, scores, and pictures:
the number in the batch of each box. A classifier's takes normalised images and gives logits. The metadata in the file
name the classes, mean and std, and say what goes in and comes out. --raw writes graphs without suppression, RoIAlign
and control flow, for which detkt/export/postprocess.py has the rest in NumPy.

With --data-root of an annotated data set, read as the run read its own, every form is scored on --split; one that loses
more than --max-drop points of the score that counts (VOC's mAP; AP of COCO data) is not kept, and the exit status is 2.
The table goes to the terminal, to export.json and to the card, model.md, which makes the folder a model repository of
Hugging Face."""


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    formats = _formats(arguments)
    checkpoint, folder = resolve(arguments.checkpoint), Path(arguments.output)
    model, meta = load_model(checkpoint, task=None)
    kind, run = KINDS[meta["task"]], checkpoint if checkpoint.is_dir() else checkpoint.parent
    if more := [name for name in [*formats, *["--raw"] * arguments.raw] if name not in (*kind.exports, "safetensors")]:
        raise InputError(f"{more[0]} is not for {meta['task']}; there is {', '.join(kind.exports)}")
    if arguments.half:
        model.half().float()
    reading = _reading(arguments, checkpoint) if "int8" in kind.exports else None
    data = _data(arguments, reading, meta, formats) if reading else None
    make_folder(folder)
    pictures: list[Tensor] = []
    normalisation = None
    graphs = set(formats) - {"safetensors"} or arguments.raw
    if graphs:
        size = arguments.image_size or arguments.static
        pictures, normalisation = kind.export_pictures(
            model, meta, run, tuple(size) if size else None, arguments.data_root
        )
        if arguments.static and "int8" in kind.exports:
            pictures = [_at(picture, arguments.static) for picture in pictures]
        if normalisation is None and kind.family.background == 0:
            print("warning: mean and std are not in it, its run's config.yaml or data are not there", file=sys.stderr)
    request = Request(
        formats,
        pictures,
        data=data,
        kind=detection_kind(reading or DataConfig()),
        max_drop=arguments.max_drop,
        half=arguments.half,
        raw=arguments.raw,
        static=arguments.static,
        opset=arguments.opset or DEFAULT_OPSET,
        normalisation=normalisation,
        quiet=arguments.quiet,
        tell=lambda text: print(text, file=sys.stderr if text.startswith("warning") else sys.stdout, flush=True),
    )
    if "int8" in formats and reading:
        request.calibration = _calibration(arguments, reading, meta)
        if arguments.static:
            request.calibration = [_at(picture, arguments.static) for picture in request.calibration]
    shipment = Shipment(model, meta, folder, request)
    if not graphs:
        request.pictures = ()
        shipment.save()
        size = sum(path.stat().st_size for row in shipment.rows for path in row.files[:1])
        print(f"{meta['architecture']}, {len(meta['classes'])} classes: {size / 1e6:.2f} MB in {arguments.output}")
        return
    shipment.make()
    everything = export_table(shipment.rows, request.lead)
    lost = shipment.refused()
    print(f"\n{everything}\n\n{processor()}; medians (quartiles) of one picture")
    _describe(shipment, arguments, run, kind.tool)
    if lost:
        was = shipment.rows[0].scores or {}
        told = ", ".join(
            f"{row.name} by {100 * (was[request.lead] - (row.scores or {})[request.lead]):.2f}" for row in lost
        )
        title = request.kind.measures[request.lead]
        raise InputError(
            f"{title} falls by more than {arguments.max_drop:g} points: {told}; not kept in {folder} (--max-drop)"
        )


def _describe(shipment: Shipment, arguments: argparse.Namespace, run: Path, tool: str) -> None:
    """Write export.json and model.md."""
    request, folder, meta = shipment.request, shipment.folder, shipment.meta
    used = versions(torch.device("cpu")) | _runtimes(request.formats)
    scored = request.data is not None
    content: dict[str, Any] = {
        "checkpoint": arguments.checkpoint,
        "architecture": meta["architecture"],
        "classes": meta["classes"],
        "opset": request.opset,
        "split": (arguments.split or "test") if scored else None,
        "pictures": len(request.data) if request.data is not None else 0,
        "processor": processor(),
        "max_drop": request.max_drop,
        "forms": numbers(shipment.rows),
        "versions": used,
    }
    write_metrics(folder / JSON_FILE, content)
    about = About(
        meta,
        Path(arguments.data_root).resolve().name if scored else None,
        content["split"],
        content["pictures"],
        arguments.license,
        arguments.data_license,
        training_command(run, meta, tool),
        used,
        request.opset if set(request.formats) & {"onnx", "int8"} or request.raw else None,
        request.lead,
    )
    text = model_card(about, shipment.rows)
    write_atomically(folder / CARD_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _runtimes(formats: Any) -> dict[str, str]:
    found = {}
    for name in ("onnx", "onnxruntime", "openvino"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(module.__version__)
    return found


def _reading(arguments: argparse.Namespace, checkpoint: Path) -> DataConfig | None:
    """How the data set is read: as the run of *checkpoint* read its own, but for what is given; None without one."""
    if arguments.data_root is None:
        return None
    given = {"root": str(resolve(arguments.data_root)), "test": arguments.split or "test"}
    return data_config(arguments.overrides, **(own_reading(checkpoint) | given))


def _data(
    arguments: argparse.Namespace, reading: DataConfig, meta: dict[str, Any], formats: list[str]
) -> DetectionSet | None:
    """The pictures to score on; None where *--data-root* is no annotated data set, and none is needed."""
    try:
        return test_set(reading, list(meta["classes"]))
    except InputError as error:
        if arguments.split or "int8" in formats:
            raise
        print(f"note: not scored, there is no annotated data set: {first_line(error, 160)}", file=sys.stderr)
        return None


def _calibration(arguments: argparse.Namespace, reading: DataConfig, meta: dict[str, Any]) -> list[Tensor]:
    """Pictures to learn INT8's ranges from: of the training split, where it is found."""
    given = [arguments.calibration_split] if arguments.calibration_split else [*_CALIBRATION_SPLITS, arguments.split]
    for split in given:
        try:
            found = test_set(replace(reading, test=split or "test"), list(meta["classes"]))
        except InputError:
            if arguments.calibration_split:
                raise
            continue
        step = max(1, len(found) // arguments.calibration)
        pictures = [found[index][0] for index in range(0, len(found), step)][: arguments.calibration]
        print(f"INT8 is calibrated on {len(pictures)} pictures of {split or 'test'}")
        return pictures
    return []


def _at(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """*picture* stretched to *size*, for a static graph."""
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size=size, mode="bilinear", align_corners=False)[0]


def _formats(arguments: argparse.Namespace) -> list[str]:
    formats = arguments.format.split(",") if arguments.format else [] if arguments.raw else ["safetensors"]
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--format: unknown '{name}'{suggestion(name, FORMATS)}; give {', '.join(FORMATS)}")
    if formats == ["safetensors"] and not arguments.raw:
        for flag in ("image_size", "opset", "data_root", "static", "split"):
            if getattr(arguments, flag) is not None:
                raise InputError(f"--{flag.replace('_', '-')} is for ONNX: give --format safetensors,onnx")
    if arguments.image_size and min(arguments.image_size) < 1:
        raise InputError(f"--image-size {' '.join(map(str, arguments.image_size))}: give pixels above 0")
    if arguments.calibration < 1 or not arguments.max_drop >= 0:
        raise InputError("--calibration must be 1 or more and --max-drop 0 or more")
    return formats


def _static(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None or min(map(int, match.groups())) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not HEIGHTxWIDTH, such as 320x320")
    return int(match[1]), int(match[2])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog=command("export"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="a run's folder or its model.safetensors")
    parser.add_argument("--output", required=True, metavar="DIR", help="gets the files, export.json and model.md")
    parser.add_argument("--half", action="store_true", help="store weights as fp16: half the size; read back as fp32")
    parser.add_argument("--format", help=f"one or more of {','.join(FORMATS)} (default: safetensors)")
    parser.add_argument("--raw", action="store_true", help="also plain graphs for runtimes without suppression")
    graph = parser.add_argument_group("for graphs")
    graph.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of a classifier's pictures (default: the data set's), or of a detector's random ones to compare on",
    )
    graph.add_argument(
        "--static", type=_static, metavar="HxW", help="a graph of one picture of this size; of --raw, of its canvas"
    )
    graph.add_argument("--opset", type=int, help=f"{OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET})")
    graph.add_argument(
        "--data-root",
        metavar="DIR",
        help="compare on real pictures, and score if they are annotated; a classifier's data set (default: its run's)",
    )
    graph.add_argument("--split", help="to score on (default: test); a part of it: 'test[:100]'")
    graph.add_argument("--calibration", type=int, default=128, metavar="N", help="pictures for INT8 (default: 128)")
    graph.add_argument("--calibration-split", metavar="SPLIT", help="where they are from (default: trainval or train)")
    graph.add_argument(
        "--max-drop", type=float, default=1.0, metavar="POINTS", help="of the score that a form may lose (default: 1)"
    )
    card = parser.add_argument_group("for the card")
    card.add_argument("--license", default="unknown", help="of the model (default: unknown)")
    card.add_argument("--data-license", default="not stated", help="of the data (default: not stated)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="how data are read: data.format=coco …")
    return parser.parse_intermixed_args(argv)
