"""Train an image classifier: a teacher, a plain student, or a student distilled from a teacher."""

from __future__ import annotations

from detkt.cli.shared import train_and_tell, training_parser

DEFAULT_CONFIG = "configs/fashion_tiny.yaml"
EXAMPLE = "%(prog)s --method kd --config configs/cifar10_resnet56_resnet20.yaml --teacher runs/resnet56"


def main(argv: list[str] | None = None) -> None:
    parser = training_parser("train-cls", __doc__, EXAMPLE, DEFAULT_CONFIG)
    train_and_tell(parser.parse_intermixed_args(argv), DEFAULT_CONFIG, "classification")
