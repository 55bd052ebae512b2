"""What KTAN's discriminator tells apart on pictures of training and on held-out ones, and how good R(t) is.

    python docs/results/adversary.py RUN...

RUN: a folder of a finished run of train_det.py with method ktan or dln on the shapes pair. For the lists `trainval` and
`val`, 500 pictures each: the share of the teacher's and of the student's cells (or rows) that D puts on the right side,
with the noise that it was trained with; the mean square of R(t) - s on cells of objects and elsewhere, in mean squares
of R(t); and the task loss that the head of stage 1 reads from R(t), and from s.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from detkt.config import load_config
from detkt.data.loading import evaluation_loader
from detkt.distiller import Distiller
from detkt.kinds import kind_of
from detkt.knowledge import Knowledge
from detkt.methods.base import Needs
from detkt.methods.fgd import foreground_mask
from detkt.visualization.method_maps import open_run

PICTURES = 500


def batch_values(distiller: Distiller, images: list, targets: list) -> dict[str, float]:
    """The quantities of one batch, by name."""
    method, task = distiller.method, distiller.task
    *_, stage = method.stages()
    student, teacher, heads = task.run(images, targets, stage.needs | Needs.BOXES)
    *judged, _ = method.step(stage, student, teacher, heads)  # of DLN, which has no D, nothing
    values = {name: value.item() for update in judged for name, value in update.metrics.items()}
    (pair,) = method.pairs()
    target, ours = method._regressed(pair, student, teacher), student.features[pair.student]
    scale = target.square().mean()
    near = _near(student, ours)
    apart = (target - ours).square().mean(dim=1, keepdim=True) / scale
    values |= {"objects": apart[near].mean().item(), "background": apart[~near].mean().item()}
    for name, feature in (("R(t)", target), ("s", ours)):
        losses = heads.task_losses({pair.student: feature}, method.head)
        values[f"task loss of {name}"] = sum(loss.item() for loss in losses.values())
    return values


def _near(student: Knowledge, feature: torch.Tensor) -> torch.Tensor:
    masks = [foreground_mask(boxes, *feature.shape[-2:]) for boxes in student.boxes_on(feature)]
    return torch.stack([mask > 0 for mask in masks]).unsqueeze(1)


@torch.no_grad()
def main() -> None:
    for run in map(Path, sys.argv[1:]):
        torch.manual_seed(0)
        distiller, dataset = open_run(run)
        config = load_config(run / "config.yaml")
        for name in ("trainval", "val"):
            config.data.test = name
            pictures = kind_of(config).test_set(config.data, dataset.classes)
            loader = evaluation_loader(pictures, batch_size=8, workers=0, indices=list(range(PICTURES)))
            found = [batch_values(distiller, images, targets) for images, targets in loader]
            means = {key: sum(values[key] for values in found) / len(found) for key in found[0]}
            print(run.name, name, *(f"{key} {value:.3f}" for key, value in means.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
