#!/usr/bin/env python
"""Train an image classifier: a teacher, a plain student, or a student distilled from a teacher."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports, which take seconds

from detkt.cli import run_tool, train_and_tell, training_parser

DEFAULT_CONFIG = "configs/fashion_tiny.yaml"
EXAMPLE = (
    "python tools/train_cls.py --method kd --config configs/cifar10_resnet56_resnet20.yaml --teacher runs/resnet56"
)


def main(arguments=None):
    parser = training_parser(__doc__, EXAMPLE, DEFAULT_CONFIG)
    train_and_tell(parser.parse_intermixed_args(arguments), DEFAULT_CONFIG, "classification")


if __name__ == "__main__":
    run_tool(main)
