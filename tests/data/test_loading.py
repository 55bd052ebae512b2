"""Batches whose order and augmentation are a pure function of the seed and the batch's number."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from detkt.base.errors import InputError
from detkt.data.loading import EndlessBatches, collate, evaluation_loader, share_of_batches, training_loader


def take(count, *arguments, **options):
    return list(islice(EndlessBatches(*arguments, **options), count))


def indices(batches):
    return [index for batch in batches for index, _ in batch]


# -- order -----------------------------------------------------------------------------------------------------------


def test_every_picture_once_an_epoch_and_in_another_order_each():
    epochs = [take(12, 12, 3, seed=1)[first : first + 4] for first in (0, 4, 8)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [3] * 4
        assert sorted(indices(epoch)) == list(range(12))
    assert len({tuple(indices(epoch)) for epoch in epochs}) == 3


def test_a_last_incomplete_batch_is_dropped_but_another_one_each_epoch():
    batches = EndlessBatches(10, 4, seed=0)
    assert batches.per_epoch == 2
    left_out = set()
    for epoch in range(20):
        seen = indices(take(2, 10, 4, seed=0, start=2 * epoch))
        assert len(set(seen)) == 8
        left_out |= set(range(10)) - set(seen)
    assert left_out == set(range(10))


@pytest.mark.parametrize("start", [1, 3, 4, 5, 11])
def test_a_start_skips_batches(start):
    assert take(6, 12, 3, seed=7, start=start) == take(start + 6, 12, 3, seed=7)[start:]


@pytest.mark.parametrize(("length", "batch_size"), [(1, 8), (3, 8), (8, 8), (9, 8)])
def test_small_data_sets(length, batch_size):
    batches = EndlessBatches(length, batch_size, seed=0)
    assert batches.per_epoch == 1
    for batch in islice(batches, 3):
        assert len(batch) == min(length, batch_size)
        assert len(set(indices([batch]))) == len(batch)


def test_seeds_give_other_orders_and_however_large_work():
    orders = {tuple(indices(take(4, 12, 3, seed=seed))) for seed in (0, 1, 2, 10**15)}
    assert len(orders) == 4


def test_sample_seeds_differ_between_epochs_pictures_and_runs():
    seeds = [seed for run in (0, 1, 2) for batch in take(12, 12, 3, seed=run) for _, seed in batch]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    loader = iter(training_loader(Seeds(12), EndlessBatches(12, 3, seed=0), 0, False))
    next(loader)
    next(loader)
    assert torch.equal(torch.rand(2), expected)


# -- loaders ---------------------------------------------------------------------------------------------------------


class Seeds(Dataset):
    """A picture is its index, its target the seed it came with."""

    def __init__(self, length, broken=None):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, 0)
        if index == self.broken:
            try:
                raise OSError("broken stream")
            except OSError as error:
                raise InputError(f"picture {index}.jpg is truncated; replace it") from error
        return torch.tensor(index), {"seed": torch.tensor(seed)}


def read(loader, count):
    return [
        [(int(image), int(target["seed"])) for image, target in zip(*batch, strict=True)]
        for batch in islice(loader, count)
    ]


def test_workers_change_neither_order_nor_sample_seeds():
    expected = take(6, 10, 3, seed=4, start=2)
    for workers in (0, 2):
        batches = EndlessBatches(10, 3, seed=4, start=2)
        assert read(training_loader(Seeds(10), batches, workers, False), 6) == expected


def test_evaluation_goes_through_everything_in_order():
    for workers in (0, 2):
        batches = read(evaluation_loader(Seeds(7), 3, workers), 10)
        assert [[index for index, _ in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_faulty_picture_is_reported_in_its_own_line(workers):
    """torch would wrap what a worker raises into its traceback."""
    with pytest.raises(InputError) as refused:
        read(evaluation_loader(Seeds(4, broken=3), 2, workers), 2)
    assert str(refused.value) == "picture 3.jpg is truncated; replace it"


def test_collate_keeps_sizes():
    images, targets = collate([(torch.zeros(3, 4, 5), {"a": 1}), (torch.zeros(3, 6, 2), {"a": 2})])
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 6, 2)]
    assert targets == [{"a": 1}, {"a": 2}]


def test_pictures_of_one_group_come_together():
    """Of 13 pictures in two groups every batch of 4 but the last holds one group, and none is lost or repeated."""
    groups = [index % 3 == 0 for index in range(13)]  # 5 in one group, 8 in the other
    for seed in range(5):
        sampler = EndlessBatches(13, 4, seed, groups=groups)
        epoch = [[index for index, _ in batch] for batch in islice(sampler, sampler.per_epoch)]
        assert sorted({len(batch) for batch in epoch}) == [4]
        assert len({index for batch in epoch for index in batch}) == 12
        assert all(len({groups[index] for index in batch}) == 1 for batch in epoch)
    assert take(3, 13, 4, 0, groups=groups) != take(3, 13, 4, 1, groups=groups)


def test_one_group_changes_no_order():
    assert take(7, 10, 4, 2, groups=[1] * 10) == take(7, 10, 4, 2)


def test_what_is_left_of_the_groups_is_mixed():
    """3 + 3 pictures in batches of 2: one full batch of each group, and one of the two that remain."""
    epoch = take(3, 6, 2, 0, groups=[0, 0, 0, 1, 1, 1])
    kinds = [sorted({index // 3 for index, _ in batch}) for batch in epoch]
    assert sorted(kinds) == [[0], [0, 1], [1]]


def test_processes_and_parts_share_each_batch():
    """2 processes with 2 parts each: together they see the pictures, and the seeds, that one process sees."""
    whole = take(4, 16, 8, 3, start=1)
    shares = [take(8, 16, 8, 3, start=1, parts=2, share=(rank, 2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        pieces = [share[2 * number + part] for part in range(2) for share in shares]
        assert [len(piece) for piece in pieces] == [2] * 4
        assert sorted(sample for piece in pieces for sample in piece) == sorted(batch)


@pytest.mark.parametrize(("length", "size", "count"), [(10, 4, 2), (9, 2, 3), (3, 4, 2), (8, 4, 2), (0, 4, 2)])
def test_processes_share_the_batches_of_one(length, size, count):
    """Not pictures: other batches would be padded otherwise, and their detections would differ."""

    def batches(indices):
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    shares = [batches(share_of_batches(length, size, rank, count)) for rank in range(count)]
    found = sorted(batch for share in shares for batch in share)
    assert found == batches(list(range(length)))
