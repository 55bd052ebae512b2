"""Batches in an order that is a pure function of (seed, batch number), so that a run resumes exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detkt.base.errors import InputError, first_line
from detkt.data.base import PictureSet

_PRIME = 1_000_003
SIGNAL_SECONDS = 3.0


class EndlessBatches(Sampler):
    """Yields lists of (index, sample seed), epoch after epoch, from batch number *start* on.

    Each epoch is a new permutation, less a last incomplete batch (a data set smaller than one batch is one batch).
    A sample's seed depends on (seed, epoch, index) alone: augmentation is the same whichever worker does it.

    Args:
        length: pictures of the data set.
        batch_size: pictures of an update.
        seed: of the order and the augmentation.
        start: the update to begin with.
        groups: a number a picture; pictures of one group come together, but for what is left of each group at the end
            of an epoch.
        parts: in how many lists of equal length each batch is yielded, one after the other...
        share: ... of which this process gets every ``share[1]``-th, beginning with number ``share[0]``.

    Raises:
        InputError: a batch cannot be shared out evenly.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        groups: Sequence[int] | None = None,
        parts: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.length, self.batch_size, self.seed, self.start = length, min(batch_size, length), seed, start
        self.groups, self.parts, self.share = groups, parts * share[1], share
        if self.batch_size % self.parts:
            raise InputError(
                f"a batch of {self.batch_size} pictures cannot be shared evenly by {share[1]} process(es) in {parts} "
                "part(s) each; choose another --batch-size or train.accumulate"
            )

    @property
    def per_epoch(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = divmod(self.start, self.per_epoch)
        while True:
            generator = torch.Generator().manual_seed((self.seed * _PRIME + epoch) % 2**63)
            order = self._grouped(torch.randperm(self.length, generator=generator).tolist())
            size = self.batch_size // self.parts
            for batch in range(first, self.per_epoch):
                for part in range(self.share[0], self.parts, self.share[1]):
                    begin = batch * self.batch_size + part * size
                    indices = order[begin : begin + size]
                    yield [(index, ((self.seed * _PRIME + epoch) * _PRIME + index) % 2**63) for index in indices]
            epoch, first = epoch + 1, 0

    def _grouped(self, order: list[int]) -> list[int]:
        """*order* rearranged so that batches are of one group each, as soon as each is full; then the rest."""
        if self.groups is None:
            return order
        grouped: list[int] = []
        waiting: dict[int, list[int]] = {}
        for index in order:
            batch = waiting.setdefault(self.groups[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                grouped += batch
                batch.clear()
        return grouped + [index for group in sorted(waiting) for index in waiting[group]]


def collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures differ in size: a batch is a list of pictures and a list of targets."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def training_loader(dataset: PictureSet, batches: Iterable[list], workers: int, pin_memory: bool) -> _OneLineLoader:
    """Endless loader over *batches*."""
    return _OneLineLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory)


def evaluation_loader(
    dataset: PictureSet, batch_size: int, workers: int, indices: Sequence[int] | None = None
) -> DataLoader:
    """Every picture once, in order, or those of *indices*."""
    return _OneLineLoader(dataset, batch_size=batch_size, num_workers=workers, sampler=indices)


def share_of_batches(length: int, batch_size: int, rank: int, count: int) -> list[int]:
    """Indices of every *count*-th batch from batch *rank* on: the batches of one process."""
    starts = range(rank * batch_size, length, count * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, length))]


class _OneLineLoader(DataLoader):
    """Pictures and targets, as the data set's ``collate`` joins them (lists by default).

    An InputError of a worker stays the one line it was, without torch's traceback.
    """

    def __init__(self, dataset: PictureSet, **options: Any) -> None:
        # Each start draws a seed for the workers: from the global generator, it would make a resumed run differ.
        super().__init__(
            cast(Dataset, dataset),
            collate_fn=getattr(dataset, "collate", collate),
            worker_init_fn=partial(_start_worker, os.getpid()),
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]  # torch's has no close()
        return _in_one_line(super().__iter__())


@contextmanager
def dead_workers_in_one_line() -> Iterator[None]:
    """An InputError for torch's complaint, which it may raise anywhere, that a process loading pictures died."""
    try:
        yield
    except (ConnectionError, EOFError):  # its end of the pipe was gone before it was known to be dead
        reason = "DataLoader worker: connection lost"
        try:
            # Torch tells of the death, too, in a handler of a signal that comes a moment later: here, not anywhere.
            time.sleep(SIGNAL_SECONDS)
        except RuntimeError as error:
            reason = first_line(error)
    except RuntimeError as error:
        reason = first_line(error)
        if not reason.startswith("DataLoader worker"):
            raise
    else:
        return
    raise InputError(f"a process that loads pictures died: {reason.rstrip('. ')}; free memory or use --workers 0")


def _in_one_line(batches: Iterator) -> Generator[Any, None, None]:
    try:
        yield from batches
    except InputError as error:
        raise InputError(error.args[0].splitlines()[-1].removeprefix("detkt.base.errors.InputError: ")) from None


def _start_worker(parent: int, worker: int) -> None:
    # Ctrl-C reaches every process of the group: a worker that died of it would keep the run from saving itself.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # OpenCV and torch would each start a thread a core in every worker.
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(0)
    # torch's worker ends when its parent changes; one whose parent was killed before it looks would stay for ever.
    if os.getppid() != parent:
        os._exit(1)
