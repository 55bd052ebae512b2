"""Random changes of whole batches of small pictures, each picture's a pure function of its own seed or number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_GAMMA, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform_draws(seeds: Sequence[int], count: int) -> Tensor:
    """The first *count* numbers in [0, 1) of each seed's generator: float64 (n, count).

    The generator is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): its
    k-th number is a hash of seed + k · constant, so that a batch's are computed at once, whatever its other seeds are.
    Seeds lie in [0, 2^64).
    """
    # NumPy's unsigned integers wrap around, and shift zeros in, as the generator needs it; torch's int64 shifts signs.
    states = np.array(seeds, dtype=np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    states = (states ^ (states >> np.uint64(30))) * _MIX_1
    states = (states ^ (states >> np.uint64(27))) * _MIX_2
    states ^= states >> np.uint64(31)
    return torch.from_numpy((states >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def flips(seeds: Sequence[int], probability: float) -> Tensor:
    """Which pictures `crop_and_flip` mirrors: bool (N), by each one's seed."""
    return uniform_draws(seeds, 1)[:, 0] < probability


def crop_and_flip(images: Tensor, seeds: Sequence[int], padding: int, flip: float) -> Tensor:
    """Random crop after zero padding, then a random horizontal flip (He et al. 2016, section 4.2).

    images: (N, C, H, W) of any type, as they are before normalisation, so that the padding is black; one of *seeds*
    (N) each. padding: pixels on every side; the crop's place is uniform. flip: probability. Returns a new (N, C, H, W).
    """
    _, tops, lefts = uniform_draws(seeds, 3).unbind(dim=1)
    height, width = images.shape[-2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    places = 2 * padding + 1
    cropped = windows[torch.arange(len(images)), :, (tops * places).long(), (lefts * places).long()]
    flipped = flips(seeds, flip)
    cropped[flipped] = cropped[flipped].flip(-1)
    return cropped


def distort(images: Tensor, numbers: Sequence[int], key: int, sigma: Sequence[float]) -> Tensor:
    """Gaussian noise on every pixel, not clipped, the same each time: float16 (n, C, H, W), in the unit of *images*.

    images: (n, C, H, W). numbers: each picture's number in its file; with *key*, which tells files apart, it alone
    determines the noise. sigma: standard deviation a channel, in the unit of *images*.
    """
    result = torch.empty(images.shape, dtype=torch.float16)
    scale = np.asarray(sigma, dtype=np.float64)[:, None, None]
    for place, number in enumerate(numbers):
        # RandomState's stream, unlike Generator's, is frozen: a data set must not change with NumPy's version.
        noise = np.random.RandomState(np.random.Philox(key=(key, number))).standard_normal(images.shape[1:])
        result[place] = images[place] + torch.from_numpy(noise * scale)
    return result


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixel / 255 - mean) / std, float32; images (N, C, H, W) of pixels 0 … 255; mean and std (C)."""
    return images.float().sub_(255 * mean[:, None, None]).div_(255 * std[:, None, None])
