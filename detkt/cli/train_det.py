#!/usr/bin/env python
"""Train a detector: a teacher, a plain student, or a student distilled from a teacher."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports, which take seconds

from detkt.cli import run_tool, train_and_tell, training_parser

DEFAULT_CONFIG = "configs/shapes.yaml"
EXAMPLE = (
    "python tools/train_det.py --method ktan --config configs/voc2007_resnet152_resnet50.yaml "
    "--teacher runs/voc2007-r152 --student-init runs/voc2007-r50"
)


def main(arguments=None):
    parser = training_parser(__doc__, EXAMPLE, DEFAULT_CONFIG)
    train_and_tell(parser.parse_intermixed_args(arguments), DEFAULT_CONFIG, "detection")


if __name__ == "__main__":
    run_tool(main)
