"""Export a trained detector or classifier: as safetensors, in half precision if wanted, and as ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from detkt.base.commands import command
from detkt.base.errors import InputError, suggestion
from detkt.base.files import make_folder
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.config import load_config
from detkt.data import classification_data, data_root
from detkt.data.images import check_strip, picture_suffixes, read_image
from detkt.models import load_model, save_model
from detkt.models.onnx_export import DEFAULT_OPSET, ONNX_FILE, OPSETS, export_onnx, random_pictures
from detkt.models.weights import WEIGHTS_FILE

FORMATS = ("safetensors", "onnx")
REAL_PICTURES = 8
T = TypeVar("T")
EXAMPLES = """examples:
  %(prog)s --checkpoint runs/shapes-ktan-s0 --half --output exported
  %(prog)s --checkpoint data/models/shapes-student --format onnx --data-root data/shapes --output exported

model.onnx is written after ONNX Runtime has given the same as torch on some pictures; it needs pip install detkt[onnx].
A detector's takes one picture (3, height, width) of any size, RGB in [0, 1], and gives boxes, labels and scores. A
classifier's takes normalised pictures (N, C, height, width) of one size and gives logits. The metadata in the file name
the classes, mean and std, and say what goes in and comes out. It is always float32; with --half its weights are those
that model.safetensors has, rounded to fp16."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("export"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="a run's folder or its model.safetensors")
    parser.add_argument("--output", required=True, metavar="DIR", help="gets model.safetensors, model.json, model.onnx")
    parser.add_argument("--half", action="store_true", help="store weights as fp16: half the size; read back as fp32")
    parser.add_argument("--format", default="safetensors", help="safetensors, onnx or both: safetensors,onnx")
    onnx = parser.add_argument_group("for ONNX")
    onnx.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of a classifier's pictures (default: the data set's), or of a detector's random ones to compare on",
    )
    onnx.add_argument("--opset", type=int, help=f"{OPSETS[0]} to {OPSETS[-1]} (default: {DEFAULT_OPSET})")
    onnx.add_argument(
        "--data-root",
        metavar="DIR",
        help="compare on real pictures too: a folder of any, for a classifier its data set's (default: its run's)",
    )
    arguments = parser.parse_args(argv)
    formats = arguments.format.split(",")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--format: unknown '{name}'{suggestion(name, FORMATS)}; give {' or '.join(FORMATS)}")
    for flag in ("image_size", "opset", "data_root"):
        if "onnx" not in formats and getattr(arguments, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} is for ONNX: give --format safetensors,onnx")
    if arguments.image_size and min(arguments.image_size) < 1:
        raise InputError(f"--image-size {' '.join(map(str, arguments.image_size))}: give pixels above 0")

    checkpoint, folder = resolve(arguments.checkpoint), Path(arguments.output)
    model, meta = load_model(checkpoint, task=None)
    if arguments.half:
        model.half()
    make_folder(folder)
    # ONNX first: where it fails, nothing is left that would not belong together.
    if "onnx" in formats:
        export_checked(model, meta, checkpoint, folder, arguments)
    if "safetensors" in formats:
        save_model(model, folder, meta["classes"], meta.get("extra"))
        size = (folder / WEIGHTS_FILE).stat().st_size
        print(f"{meta['architecture']}, {len(meta['classes'])} classes: {size / 1e6:.2f} MB in {arguments.output}")


def export_checked(
    model: nn.Module, meta: dict[str, Any], checkpoint: Path, folder: Path, arguments: argparse.Namespace
) -> None:
    """Write model.onnx and print how well ONNX Runtime agrees with torch."""
    size = tuple(arguments.image_size) if arguments.image_size else None
    normalisation: tuple[list[float], list[float]] | None = None
    if meta["task"] == "detection":
        pictures = detector_pictures(model, size, arguments.data_root)
    else:
        pictures, normalisation = classifier_pictures(model, meta, checkpoint, size, arguments.data_root)
    opset = arguments.opset or DEFAULT_OPSET
    path = folder / ONNX_FILE
    agreement = export_onnx(model, path, meta["classes"], pictures, opset=opset, normalisation=normalisation)
    print(f"{ONNX_FILE}: {path.stat().st_size / 1e6:.2f} MB, opset {opset}; ONNX Runtime and torch on {agreement}")
    if agreement.compared == 0:
        print("warning: nothing was detected, so no box was compared: give --data-root", file=sys.stderr)
    if meta["task"] == "classification" and normalisation is None:
        print("warning: mean and std are not in it, its run's config.yaml or data are not there", file=sys.stderr)


def detector_pictures(model: nn.Module, size: tuple[int, int] | None, root: str | Path | None) -> list[Tensor]:
    """Random pictures of *size*, else of the real ones', else of the size that the detector resizes to; real ones."""
    real: list[Tensor] = []
    if size is not None:
        check_strip("--image-size", *size[::-1])
    if root is not None:
        root = resolve(root)
        suffixes = picture_suffixes()
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        if not paths:
            raise InputError(f"--data-root {root}: no such folder, or no picture below it")
        for path in spread(paths):
            real.append(torch.from_numpy(read_image(path)).permute(2, 0, 1).float().div(255))
            check_strip(path, *real[-1].shape[:0:-1])
    if size is None:
        shorter, longer = (cast(Any, model).detkt["options"][key] for key in ("min_size", "max_size"))
        height, width = real[0].shape[1:] if real else (shorter, min(longer, 4 * shorter // 3))
        size = height, width
    return random_pictures(size) + real


def classifier_pictures(
    model: nn.Module, meta: dict[str, Any], checkpoint: Path, size: tuple[int, int] | None, root: str | None
) -> tuple[list[Tensor], tuple[list[float], list[float]] | None]:
    """Pictures of *size*, else of the data set's, and mean and std; real ones where the run's data set is there."""
    normalisation: tuple[list[float], list[float]] | None = None
    real: list[Tensor] = []
    config = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "config.yaml"
    if root is not None and not config.is_file():
        raise InputError(f"--data-root: there is no {config} of the run, which says how its pictures are read")
    if config.is_file():
        data = load_config(config, []).data
        data.root = root or data.root
        if root is not None or data_root(data).is_dir():
            dataset = classification_data(data, train=False, classes=meta["classes"])
            height, width = dataset.image_size
            if size not in (None, (height, width)):
                given = " ".join(map(str, size or ()))
                raise InputError(f"--image-size is {given}, the pictures in {data_root(data)} are not")
            size = height, width
            real = [dataset[index][0] for index in spread(range(len(dataset)))]
            mean, std = ([round(value, 6) for value in values.tolist()] for values in (dataset.mean, dataset.std))
            normalisation = mean, std
        elif data.image_size:
            size = size or (data.image_size, data.image_size)
    if size is None:
        raise InputError(
            "the size of the classifier's pictures is not known: give --image-size H W, such as 32 32 for CIFAR"
        )
    return random_pictures(size, cast(Any, model).detkt["input"]["channels"], meta["task"]) + real, normalisation


def spread(items: Sequence[T]) -> Sequence[T]:
    """A few of *items*, from all parts of them."""
    return items[:: max(1, len(items) // REAL_PICTURES)][:REAL_PICTURES]
