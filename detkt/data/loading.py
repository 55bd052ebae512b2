"""Batches in an order that is a pure function of (seed, batch number), so that a run resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

_PRIME = 1_000_003


class EndlessBatches(Sampler):
    """Yields lists of (index, sample seed), epoch after epoch, from batch number *start* on.

    Each epoch is a new permutation; a last incomplete batch is dropped (a data set smaller than one batch is one batch).
    A sample's seed depends on (seed, epoch, index) alone: augmentation is the same whichever worker does it.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.start = length, min(batch_size, length), seed, start

    @property
    def per_epoch(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.start, self.per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * _PRIME + epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
            for batch in range(first, self.per_epoch):
                indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
                yield [(index, ((self.seed * _PRIME + epoch) * _PRIME + index) % 2**63) for index in indices]
            epoch, first = epoch + 1, 0


def collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures differ in size: a batch is a list of pictures and a list of targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def training_loader(dataset: Dataset, batches: EndlessBatches, workers: int, pin_memory: bool) -> DataLoader:
    """Endless loader over *batches*."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_single_thread if workers else None,
    )


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader:
    """Every picture once, in order."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate)


def _single_thread(worker: int) -> None:
    # OpenCV and torch would each start a thread a core in every worker.
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(0)
