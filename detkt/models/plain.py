"""Plain state dicts of whole detectors: how many classes they know, and that nothing of the network stays random."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.models.detectors import build_detector
from detkt.models.weights import DETECTOR_LOADER, unwrapped

_PREDICTORS = (
    "roi_heads.box_predictor.cls_score.weight",
    "head.classification_head.cls_logits.weight",
    "head.classification_head.module_list.0.weight",
    "head.classification_head.module_list.0.1.weight",
)


def classes_in(tensors: dict[str, Tensor], name: str, options: dict[str, Any]) -> int | None:
    """How many classes, background included, the detector *name* of *tensors* scores; None where they do not tell."""
    with torch.device("meta"):
        own = build_detector(name, 2, **options).state_dict()
    found = {unwrapped(key): tensor for key, tensor in tensors.items()}
    for key in _PREDICTORS:
        # One map scores all classes for each of its anchors.
        if key in own and key in found:
            return 2 * found[key].shape[0] // own[key].shape[0]
    return None


def load_whole(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load *tensors*, all that *model* has; *source* says in messages whose they are.

    Raises:
        InputError: something is not among them, or of another shape.
    """
    report = DETECTOR_LOADER.load_tensors(model, tensors, source)
    left = [*report.missing, *(name for name, _, _ in report.mismatched)]
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise InputError(
            f"{source} does not fill the teacher's {', '.join(left[:3])}{more}, and random weights teach nothing; give "
            "the weights of a whole detector, and as teacher.architecture and teacher.options what it was trained as"
        )
    logging.getLogger(__name__).info("%s", report)
