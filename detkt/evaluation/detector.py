"""Run a detector over a data set and score it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detkt.base.device import clock
from detkt.base.processes import Processes
from detkt.data.boxes import corners_to_voc
from detkt.data.detection import DetectionSet
from detkt.data.loading import dead_workers_in_one_line, evaluation_loader, share_of_batches
from detkt.evaluation import voc
from detkt.evaluation.coco import evaluate_coco
from detkt.evaluation.records import Records
from detkt.models.layout import channels_last

Detections = dict[str, dict[str, Any]]


@dead_workers_in_one_line()
@torch.inference_mode()
def detect(
    model: nn.Module,
    dataset: DetectionSet,
    device: torch.device,
    *,
    batch_size: int = 8,
    workers: int = 0,
    quiet: bool = False,
    processes: Processes | None = None,
) -> tuple[Detections, float]:
    """Detections of *model* on every picture, in VOC's convention, and the mean milliseconds a picture takes.

    A model sees one picture at a time: beside a larger one it would be padded, and found in it would be something else.
    So detections do not depend on *batch_size*, which is how many pictures a worker reads at once.

    The time is that of the model alone (transform, network, post-processing), not of reading pictures. Several
    *processes* take every n-th batch each and all get the whole.
    """
    model.eval()
    channels_last(getattr(model, "backbone", model))
    detections: Detections = {}
    seconds = 0.0
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    loader = evaluation_loader(dataset, batch_size, workers, share_of_batches(len(dataset), batch_size, rank, count))
    for images, targets in tqdm(loader, desc="detect", unit="batch", disable=quiet or rank > 0, file=sys.stderr):
        images = [image.to(device) for image in images]
        started = clock(device)
        outputs = [model([image])[0] for image in images]
        seconds += clock(device) - started
        for target, output in zip(targets, outputs, strict=True):
            labels = output["labels"].cpu().numpy()
            detections[dataset.ids[int(target["image_id"])]] = {
                "boxes": corners_to_voc(output["boxes"].cpu().numpy().astype(np.float64)),
                "scores": output["scores"].cpu().numpy().astype(np.float64),
                "labels": [dataset.classes[label - 1] for label in labels],
            }
    if processes and count > 1:
        shares = processes.gather((detections, seconds))
        detections = {name: found for share, _ in shares for name, found in share.items()}
        detections = {name: detections[name] for name in dataset.ids}
        seconds = sum(part for _, part in shares)
    return detections, 1000 * seconds / max(1, len(dataset))


def score(
    detections: Records, annotations: Records, classes: Sequence[str], iou_threshold: float = 0.5
) -> dict[str, Any]:
    """mAP by VOC07's 11 points, by area, and COCO's, with AP per class: the numbers of ``metrics.json``.

    iou_threshold: of VOC's measures; COCO has its own.
    """
    voc07, area = voc.evaluate_both(detections, annotations, iou_threshold=iou_threshold, classes=classes)
    coco = evaluate_coco(detections, annotations, classes)
    return {
        "map_voc07": voc07.map,
        "map_area": area.map,
        "map_coco": coco.ap,
        "coco": {
            "ap50": coco.ap50,
            "ap75": coco.ap75,
            "small": coco.ap_small,
            "medium": coco.ap_medium,
            "large": coco.ap_large,
        },
        "per_class": {
            name: {"voc07": voc07.per_class[name], "area": area.per_class[name], "coco": coco.per_class[name]}
            for name in classes
        },
    }
