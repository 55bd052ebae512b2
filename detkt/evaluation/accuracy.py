"""Top-1 and top-5 accuracy of a classifier."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detkt.base.device import clock
from detkt.base.processes import Processes
from detkt.data.base import PictureSet
from detkt.data.loading import dead_workers_in_one_line, evaluation_loader, share_of_batches
from detkt.evaluation.outcomes import ClassificationOutcomes
from detkt.models.layout import channels_last


def top_k_hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the true class is among the *k* highest scores: bool (N,) of logits (N, K) and labels (N,).

    Of equal scores the lower class comes first; a row with a NaN is a miss. With k >= K every other row is a hit.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    return (before.sum(dim=1) < k) & ~logits.isnan().any(dim=1)


@dead_workers_in_one_line()
@torch.inference_mode()
def classify(
    model: nn.Module,
    dataset: PictureSet,
    device: torch.device,
    keep: Callable[[ClassificationOutcomes], None] | None = None,
    *,
    batch_size: int = 128,
    workers: int = 0,
    quiet: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Accuracies of *model*, as shares: ``top1``, ``top5``, top-1 by class, and mean milliseconds a picture.

    *keep* is called with what is behind them, picture by picture. A class without pictures has None. The time is that
    of the model alone, not of reading pictures. Several *processes* take every n-th batch each and all get the whole.
    """
    model.eval()
    channels_last(getattr(model, "backbone", model))
    labels, first, fifth, seconds = [], [], [], 0.0
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    loader = evaluation_loader(dataset, batch_size, workers, share_of_batches(len(dataset), batch_size, rank, count))
    for images, targets in tqdm(loader, desc="classify", unit="batch", disable=quiet or rank > 0, file=sys.stderr):
        images = images.to(device)
        started = clock(device)
        logits = model(images)
        seconds += clock(device) - started
        logits, truth = logits.float().cpu(), targets["labels"]
        labels.append(truth)
        first.append(top_k_hits(logits, truth, 1))
        fifth.append(top_k_hits(logits, truth, 5))
    if processes and count > 1:
        shares = processes.gather((labels, first, fifth, seconds))
        labels, first, fifth = ([part for share in shares for part in share[i]] for i in range(3))
        seconds = sum(share[3] for share in shares)
    truth, top1, top5 = torch.cat(labels), torch.cat(first), torch.cat(fifth)
    if keep is not None:
        parts = (share_of_batches(len(dataset), batch_size, each, count) for each in range(count))
        order = torch.tensor([index for part in parts for index in part]).argsort()
        keep(ClassificationOutcomes(tuple(map(str, dataset.ids)), top1[order].numpy(), top5[order].numpy()))
    counts = torch.bincount(truth, minlength=len(dataset.classes))
    right = torch.bincount(truth[top1], minlength=len(dataset.classes))
    return {
        "top1": top1.double().mean().item(),
        "top5": top5.double().mean().item(),
        "per_class": {
            name: hits / count if count else None
            for name, hits, count in zip(dataset.classes, right.tolist(), counts.tolist(), strict=True)
        },
        "milliseconds_per_picture": 1000 * seconds / len(dataset),
    }
