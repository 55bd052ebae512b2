"""Command lines in which all is well, by tool; names in braces are those of a `Place`."""

from __future__ import annotations

_SCORE = "--data-root {voc} --quiet --device cpu"

TRAIN_DET = "--config {pair} --output {out} --quiet"
TRAIN_CLS = "--config {classifiers} --output {out} --quiet"
EVAL = f"--checkpoint {{student}} {_SCORE} --bootstrap 0"
VISUALIZE = f"--student {{student}} --distilled {{run}} {_SCORE} --output {{out}}"
PREDICT = "--checkpoint {student} {pictures} --output {out} --quiet --device cpu"
EXPORT = "--checkpoint {student} --output {out}"
COMPARE = "--config {pair} --methods none --seeds 0 --output {out} --quiet"
COMPARE_CLS = "--config {classifiers} --methods none --seeds 0 --output {out} --quiet"
SHORT = "train.epochs=1 train.checkpoint_every=2 train.keep=2"  # of {run}
RESUME = "--resume {run} --quiet"

TRAINING = {"train_det": TRAIN_DET, "train_cls": TRAIN_CLS, "compare": COMPARE}
DETECTION_DATA = {"train_det": TRAIN_DET, "eval_voc": EVAL, "visualize_diff": VISUALIZE, "compare": COMPARE}
CLASSIFICATION_DATA = {"train_cls": TRAIN_CLS, "compare": COMPARE_CLS}


def also(tools: dict[str, str], more: str) -> dict[str, str]:
    """The command lines with *more* at their end."""
    return {tool: f"{line} {more}" for tool, line in tools.items()}
