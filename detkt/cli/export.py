"""Export a trained detector or classifier: as safetensors, in half precision if wanted, and as ONNX."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import nn

from detkt.base.commands import command
from detkt.base.errors import InputError, suggestion
from detkt.base.files import make_folder
from detkt.base.paths import resolve
from detkt.cli.shared import Parser
from detkt.kinds import KINDS
from detkt.models import load_model, save_model
from detkt.models.onnx_export import DEFAULT_OPSET, ONNX_FILE, OPSETS
from detkt.models.weights import WEIGHTS_FILE

FORMATS = ("safetensors", "onnx")
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
    kind = KINDS[meta["task"]]
    size = tuple(arguments.image_size) if arguments.image_size else None
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    pictures, normalisation = kind.export_pictures(model, meta, run, size, arguments.data_root)
    graphs, path, opset = kind.family.graphs, folder / ONNX_FILE, arguments.opset or DEFAULT_OPSET
    agreement = graphs.export(model, path, meta["classes"], pictures, opset=opset, normalisation=normalisation)
    print(f"{ONNX_FILE}: {path.stat().st_size / 1e6:.2f} MB, opset {opset}; ONNX Runtime and torch on {agreement}")
    if agreement.compared == 0:
        print("warning: nothing was detected, so no box was compared: give --data-root", file=sys.stderr)
    if normalisation is None and not graphs.normalises:
        print("warning: mean and std are not in it, its run's config.yaml or data are not there", file=sys.stderr)
