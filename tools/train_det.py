#!/usr/bin/env python
"""Train a detector: a teacher, a plain student, or a student distilled from a teacher."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from detkt.cli import run_tool, training_config, training_parser
from detkt.engine.jobs import require_task
from detkt.engine.run import train

DEFAULT_CONFIG = "configs/shapes.yaml"
EXAMPLE = (
    "python tools/train_det.py --method ktan --config configs/voc2007_resnet152_resnet50.yaml "
    "--teacher runs/voc2007-r152 --student-init runs/voc2007-r50"
)


def main(arguments=None):
    parser = training_parser(__doc__, EXAMPLE, DEFAULT_CONFIG)
    arguments = parser.parse_intermixed_args(arguments)
    config, folder, resume = training_config(arguments, DEFAULT_CONFIG)
    require_task(config, "detection")
    metrics = train(config, folder, resume=resume, overwrite=arguments.overwrite, quiet=arguments.quiet)
    print(
        f"{config.method} on {config.name}, seed {config.train.seed}: mAP {100 * metrics['map_voc07']:.1f} (VOC07), "
        f"{100 * metrics['map_area']:.1f} (area), {100 * metrics['map_coco']:.1f} (COCO) on {metrics['split']}; "
        f"{metrics['updates']} updates in {metrics['seconds']:.0f} s; model in {folder}"
    )


if __name__ == "__main__":
    run_tool(main)
