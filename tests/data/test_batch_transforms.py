"""Augmentation of batches, against one picture at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkt.data.batch_transforms import crop_and_flip, distort, flips, normalise, uniform_draws


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator in plain integers, after Vigna's public-domain C (prng.di.unimi.it/splitmix64.c)."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def random_batch(count: int, channels: int = 3, height: int = 6, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


# -- draws -----------------------------------------------------------------------------------------------------------


def test_the_published_numbers_of_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published
    assert uniform_draws([1234567], 4).tolist() == [[number // 2**11 / 2**53 for number in published]]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_seed_draws_as_if_alone(seeds):
    expected = [[number // 2**11 / 2**53 for number in splitmix64(seed, 3)] for seed in seeds]
    assert uniform_draws(seeds, 3).tolist() == expected


def test_neighbouring_seeds_draw_independently():
    draws = uniform_draws(range(10_000), 3)
    assert draws.mean(dim=0).tolist() == pytest.approx([0.5] * 3, abs=0.01)
    assert draws.std(dim=0).tolist() == pytest.approx([12**-0.5] * 3, abs=0.005)
    columns = torch.cat([draws[:-1], draws[1:]], dim=1)  # a seed's and the next one's
    correlations = torch.corrcoef(columns.T) - torch.eye(6)
    assert correlations.abs().max() < 0.05


# -- crop and flip ---------------------------------------------------------------------------------------------------


def changed(picture: np.ndarray, seed: int, padding: int, flip: float) -> np.ndarray:
    """One picture (C, H, W), as section 4.2 of the paper says it."""
    flipping, top, left = (number // 2**11 / 2**53 for number in splitmix64(seed, 3))
    height, width = picture.shape[1:]
    padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)))
    top, left = int(top * (2 * padding + 1)), int(left * (2 * padding + 1))
    crop = padded[:, top : top + height, left : left + width]
    return crop[:, :, ::-1] if flipping < flip else crop


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_changes_as_its_pictures_do_one_by_one(padding, channels):
    images, seeds = random_batch(40, channels), [7 * 10**9 + number for number in range(40)]
    before = images.clone()
    found = crop_and_flip(images, seeds, padding, flip=0.5)
    assert found.dtype == torch.uint8
    for picture, image, seed in zip(found, images, seeds, strict=True):
        assert np.array_equal(picture.numpy(), changed(image.numpy(), seed, padding, 0.5))
    assert torch.equal(images, before)


def test_pictures_change_by_their_own_seed_alone():
    images, seeds = random_batch(20), list(range(100, 120))
    whole = crop_and_flip(images, seeds, 4, 0.5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crop_and_flip(images[order], [seeds[place] for place in order], 4, 0.5), whole[order])
    assert torch.equal(crop_and_flip(images[3:4], seeds[3:4], 4, 0.5), whole[3:4])


def test_every_place_is_as_likely_and_flips_come_as_often_as_asked():
    # One bright pixel in the centre says where the window was.
    images = torch.zeros(8100, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 1
    counts = crop_and_flip(images, range(8100), 4, 0.0).sum(dim=(0, 1))
    assert counts.sum() == 8100
    assert 60 < counts.min() <= counts.max() < 145  # 100 ± 4.5 standard deviations
    side = torch.zeros(2000, 1, 1, 2, dtype=torch.uint8)
    side[:, :, :, 1] = 1
    assert crop_and_flip(side, range(2000), 0, 0.25)[:, 0, 0, 0].float().mean() == pytest.approx(0.25, abs=0.04)


def test_nothing_changes_without_padding_and_flips_and_everything_is_mirrored_with_probability_one():
    images = random_batch(10)
    assert torch.equal(crop_and_flip(images, range(10), 0, 0.0), images)
    assert torch.equal(crop_and_flip(images, range(10), 0, 1.0), images.flip(-1))


def test_which_pictures_are_mirrored_is_told():
    images = random_batch(60)
    told = flips(range(60), 0.3)
    assert told.dtype == torch.bool and 5 < told.sum() < 35
    found = crop_and_flip(images, range(60), 0, 0.3)
    assert torch.equal(found[told], images[told].flip(-1))
    assert torch.equal(found[~told], images[~told])


# -- distortion and normalisation ------------------------------------------------------------------------------------


def test_the_distortion_has_the_standard_deviation_asked_for_in_every_channel():
    grey = torch.full((60, 3, 32, 32), 128, dtype=torch.uint8)
    sigma = [10.0, 68.0, 200.0]  # the last one leaves 0 … 255 often: nothing may be clipped
    noise = distort(grey, range(60), 0, sigma).double() - 128
    count = 60 * 32 * 32
    for channel, expected in zip(noise.unbind(dim=1), sigma, strict=True):
        assert abs(channel.mean()) < 5 * expected / count**0.5
        assert channel.std() == pytest.approx(expected, rel=5 / (2 * count) ** 0.5)
    # Gaussian, not only of this spread.
    assert (noise[:, 1].abs() < 68).double().mean() == pytest.approx(0.6827, abs=0.01)
    assert (noise[:, 1].abs() < 2 * 68).double().mean() == pytest.approx(0.9545, abs=0.005)


def test_the_distortion_belongs_to_the_number_and_the_key():
    images = random_batch(6)
    whole = distort(images, range(6), 0, [50.0] * 3)
    assert torch.equal(distort(images[[4, 2]], [4, 2], 0, [50.0] * 3), whole[[4, 2]])
    same = torch.zeros_like(images)
    noise = distort(same, range(6), 0, [50.0] * 3).double()
    other = distort(same, range(6), 1, [50.0] * 3).double()
    correlations = torch.corrcoef(torch.cat([noise, other]).flatten(1))
    assert (correlations - torch.eye(12)).abs().max() < 0.4  # 144 numbers a picture: 0.083 is one standard deviation


def test_the_distortion_will_be_the_same_next_year():
    found = distort(torch.zeros(1, 3, 2, 2), [17], 1, [1.0, 10.0, 100.0])
    assert found[0, :, 0, 0].tolist() == pytest.approx([0.1609, -7.953, -8.406], rel=1e-3)


def test_normalisation_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(2, 3, 1, 2)
    found = normalise(images, torch.tensor([0.5, 0.2, 0.25]), torch.tensor([0.25, 0.5, 0.5]))
    assert found.dtype == torch.float32
    assert found.shape == (2, 3, 1, 2)
    for channel, expected in zip(found.unbind(dim=1), (-2.0, 0.0, 1.5), strict=True):
        assert torch.allclose(channel, torch.tensor(expected), atol=1e-6)
    assert images[0, 1, 0, 0] == 51
