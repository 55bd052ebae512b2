"""Train a detector: a teacher, a plain student, or a student distilled from a teacher."""

from __future__ import annotations

from detkt.cli.shared import train_and_tell, training_parser

DEFAULT_CONFIG = "configs/shapes.yaml"
EXAMPLE = (
    "%(prog)s --method ktan --config configs/voc2007_resnet152_resnet50.yaml "
    "--teacher runs/voc2007-r152 --student-init runs/voc2007-r50"
)


def main(argv: list[str] | None = None) -> None:
    parser = training_parser("train-det", __doc__, EXAMPLE, DEFAULT_CONFIG)
    train_and_tell(parser.parse_intermixed_args(argv), DEFAULT_CONFIG, "detection")
