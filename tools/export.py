#!/usr/bin/env python
"""Export a trained detector: safetensors (optionally in half precision, to ship it small)."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detkt.cli import Parser, run_tool
from detkt.models import load_model, save_model
from detkt.paths import resolve

EXAMPLE = "example:\n  python tools/export.py --checkpoint runs/shapes-ktan-s0 --half --output exported"


def main(arguments=None):
    parser = Parser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="a run's folder or its model.safetensors")
    parser.add_argument("--output", required=True, metavar="DIR", help="gets model.safetensors and model.json")
    parser.add_argument("--half", action="store_true", help="store weights as fp16: half the size; read back as fp32")
    arguments = parser.parse_args(arguments)

    model, meta = load_model(resolve(arguments.checkpoint))
    if arguments.half:
        model.half()
    save_model(model, arguments.output, meta["classes"], meta.get("extra"))
    size = (Path(arguments.output) / "model.safetensors").stat().st_size
    print(f"{meta['architecture']}, {len(meta['classes'])} classes: {size / 1e6:.2f} MB in {arguments.output}")


if __name__ == "__main__":
    run_tool(main)
