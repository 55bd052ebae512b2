#!/usr/bin/env python
"""Train an image classifier: a teacher, a plain student, or a student distilled from a teacher."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports, which take seconds

from detkt.cli import run_tool, training_config, training_parser
from detkt.engine.jobs import job_of, require_task
from detkt.engine.run import train

DEFAULT_CONFIG = "configs/fashion_tiny.yaml"
EXAMPLE = (
    "python tools/train_cls.py --method kd --config configs/cifar10_resnet56_resnet20.yaml --teacher runs/resnet56"
)


def main(arguments=None):
    parser = training_parser(__doc__, EXAMPLE, DEFAULT_CONFIG)
    arguments = parser.parse_intermixed_args(arguments)
    config, folder, resume = training_config(arguments, DEFAULT_CONFIG)
    require_task(config, "classification")
    metrics = train(config, folder, resume=resume, overwrite=arguments.overwrite, quiet=arguments.quiet)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes one tells
        print(
            f"{config.method} on {config.name}, seed {config.train.seed}: "
            f"{job_of(config).summary(metrics)} on {metrics['split']}; "
            f"{metrics['updates']} updates in {metrics['seconds']:.0f} s; model in {folder}"
        )


if __name__ == "__main__":
    run_tool(main)
