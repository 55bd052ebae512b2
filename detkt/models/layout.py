"""The memory order of convolutions' weights and maps."""

from __future__ import annotations

import torch
from torch import nn


def channels_last(network: nn.Module) -> None:
    """Put *network*'s weights in the order that CPUs and GPUs convolve in; its maps follow.

    From any other order they rearrange every map, there and back. Values and names stay; ``network.to(memory_format=
    torch.contiguous_format)`` undoes it, for code that wants contiguous weights.
    """
    # Weights that are made in inference mode, which scoring is done in, could not be trained afterwards.
    with torch.inference_mode(False):
        for parameter in network.parameters():
            # ``Module.to`` would replace those that are so already by copies, too.
            if parameter.dim() == 4 and not parameter.is_contiguous(memory_format=torch.channels_last):
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
