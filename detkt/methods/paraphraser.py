"""The nets of factor transfer (:mod:`detkt.methods.factor_transfer`): paraphraser, translator.

Three 3x3 convolutions and three transposed ones, each with batch norm (on request) and a leaky ReLU of slope 0.1
(Kim et al. 2018, appendix A). Initialised for leaky ReLUs, which the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from detkt.methods.adapters import with_zero_bias

SLOPE = 0.1


def paraphraser_widths(channels: int, factors: int, num_layers: int) -> list[int]:
    """Channels before, between and after the convolutions: the second of three changes them (appendix A).

    Of fewer layers it is the last, which gives the numbers of parameters in Table 4.
    """
    return [channels] * min(num_layers, 2) + [factors] * (2 if num_layers == 3 else 1)


class Encoder(nn.Module):
    """Convolutions with leaky ReLUs, (N, widths[0], H, W) -> (N, widths[-1], H, W): translator, or half a paraphraser.

    Of a *stride* S each divides height and width by it (rounded down): the kernel is S + 2.
    """

    def __init__(self, widths: Sequence[int], batch_norm: bool = False, stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in pairwise(widths):
            convolution = nn.Conv2d(source, target, stride + 2, stride, padding=1)
            nn.init.kaiming_normal_(convolution.weight, SLOPE, nonlinearity="leaky_relu")
            layers += [with_zero_bias(convolution), *_activation(target, batch_norm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: Tensor) -> Tensor:
        return self.layers(feature)


class Paraphraser(nn.Module):
    """P: an autoencoder whose middle is the teacher factor; transposed convolutions undo the encoder's, last first."""

    def __init__(self, widths: Sequence[int], batch_norm: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.encoder = Encoder(widths, batch_norm, stride)
        self.decoder = nn.ModuleList()
        self.activations = nn.ModuleList()
        for source, target in pairwise(reversed(widths)):
            convolution = nn.ConvTranspose2d(source, target, stride + 2, stride, padding=1)
            nn.init.kaiming_normal_(convolution.weight, SLOPE, mode="fan_out", nonlinearity="leaky_relu")
            self.decoder.append(with_zero_bias(convolution))
            self.activations.append(nn.Sequential(*_activation(target, batch_norm)))

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> its factor and its reconstruction (N, C, H, W)."""
        factor = hidden = self.encoder(feature)
        height, width = feature.shape[-2:]
        for i, (convolution, activation) in enumerate(zip(self.decoder, self.activations, strict=True)):
            divisor = self.stride ** (len(self.decoder) - 1 - i)
            hidden = activation(convolution(hidden, output_size=(height // divisor, width // divisor)))
        return factor, hidden


def _activation(channels: int, batch_norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE)] if batch_norm else [nn.LeakyReLU(SLOPE)]
