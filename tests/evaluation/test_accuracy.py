"""Top-k accuracy against sorting, with ties and NaN; the numbers of metrics.json on a model that is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from detkt.evaluation.accuracy import classify, top_k_hits


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_are_those_of_a_stable_sort(k):
    generator = torch.Generator().manual_seed(k)
    logits = torch.randint(0, 4, (500, 7), generator=generator).float()  # many ties
    labels = torch.randint(0, 7, (500,), generator=generator)
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    expected = (best == labels[:, None]).any(dim=1)
    assert 0 < expected.float().mean() < 1
    assert torch.equal(top_k_hits(logits, labels, k), expected)


def test_more_places_than_classes_hit_always_and_nan_never():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [2.0, float("inf")]])
    assert top_k_hits(logits, torch.tensor([0, 1, 0]), 5).tolist() == [True, False, True]


class _Numbers(Dataset):
    """Pictures of one pixel: the class that the model will answer."""

    classes = ["a", "b", "c", "d"]
    answers = torch.tensor([0.0, 0, 1, 1, 2])
    labels = torch.tensor([0, 1, 1, 1, 0])

    def __len__(self):
        return 5

    def __getitems__(self, indices):
        return self.answers[indices].view(-1, 1, 1, 1), {"labels": self.labels[indices]}

    @staticmethod
    def collate(batch):
        return batch


class _Answer(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()

    def forward(self, images):
        assert not self.training
        return nn.functional.one_hot(images.flatten().long(), 4).float()


def test_scores_of_a_known_model():
    result = classify(_Answer(), _Numbers(), torch.device("cpu"), batch_size=2, quiet=True)
    assert result["top1"] == 3 / 5  # pictures 0, 2, 3
    assert result["top5"] == 1.0
    assert result["per_class"] == {"a": 1 / 2, "b": 2 / 3, "c": None, "d": None}
    assert result["milliseconds_per_picture"] > 0


class _Shared:
    """Two processes, of which the other has gathered *other* already; None: keep what this one brings."""

    count = 2

    def __init__(self, rank, other=None):
        self.rank, self.other, self.brought = rank, other, None

    def gather(self, value):
        self.brought = value
        return [value, self.other or value]


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_kept_is_in_the_order_of_the_pictures(shared):
    """Of two processes, the first has the pictures 0, 1 and 4, and brings them first."""
    options = {"batch_size": 2, "quiet": True}
    dataset, kept = _Numbers(), []
    dataset.ids = list("vwxyz")
    if shared:
        second = _Shared(1)
        classify(_Answer(), dataset, torch.device("cpu"), **options, processes=second)
        options["processes"] = _Shared(0, second.brought)
    classify(_Answer(), dataset, torch.device("cpu"), kept.append, **options)
    (outcomes,) = kept
    assert outcomes.pictures == tuple("vwxyz")
    assert outcomes.top1.tolist() == [True, False, True, True, False]
    assert outcomes.top5.tolist() == [True] * 5
