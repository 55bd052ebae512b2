"""timm's convolutional nets as backbones of detectors: cut at stride 16, or with a feature pyramid.

A net is taken apart into the layers that timm's own ``features_only`` runs one after the other, under timm's own names
(``conv_stem``, ``blocks.0``, ...), so that files in timm's key names fit and a layer can be named to a method.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from detkt.base.errors import InputError, first_line, suggestion
from detkt.models.frozen_norm import FrozenBatchNorm2d

PYRAMID_STRIDES = (4, 8, 16, 32)


def import_timm(what: str) -> ModuleType:
    """The timm package; *what* names in the error who needs it."""
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{what} needs the timm package: pip install detkt[timm]") from error
    return timm


def check_timm_name(name: str, what: str) -> ModuleType:
    """The timm package, once it is sure to have a model *name*; else an :class:`InputError` with a suggestion."""
    timm = import_timm(what)
    if not timm.is_model(name):
        near = suggestion(name, timm.list_models())
        raise InputError(f"timm {timm.__version__} has no model '{name}'{near}; see timm.list_models()")
    return timm


def timm_normalisation(name: str, what: str) -> dict[str, list[float]]:
    """``image_mean`` and ``image_std`` that timm's own data config of *name* states, as options of a detector."""
    timm = check_timm_name(name, what)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise InputError(f"timm {timm.__version__}: {first_line(error)}") from error
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    return {"image_mean": list(data["mean"]), "image_std": list(data["std"])}


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """timm's batch norm with its activation inside, the former frozen."""

    drop: nn.Module
    act: nn.Module

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class LayerGroup(nn.Sequential):
    """Layers whose names begin alike (``blocks.0``, ``blocks.1``), one after the other."""


class TimmBody(nn.Sequential):
    """A net's layers in groups as timm names them; ``out_channels`` are those of its last map."""

    out_channels: int


class TimmPyramid(nn.Module):
    """The net's layers as ``body``, torchvision's feature pyramid as ``fpn``: the maps "0", "1", ..., and *top*'s.

    Args:
        body: as :func:`_assemble` makes it.
        taps: names of the layers whose maps the pyramid is built on.
        in_channels: of their maps.
        out_channels: of the pyramid's.
        top: adds maps on top of it.
    """

    def __init__(
        self, body: TimmBody, taps: Iterable[str], in_channels: list[int], out_channels: int, top: ExtraFPNBlock
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(in_channels, out_channels, top)
        self.taps = tuple(taps)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        feature = images
        for name, layer in layers_of(self.body):
            feature = layer(feature)
            if name in self.taps:
                maps[str(len(maps))] = feature
        return self.fpn(maps)


def timm_c4(name: str, norm: str, frozen_stages: int, last_layer: str, dilated: bool) -> TimmBody:
    """The net up to stride 16; ``out_channels`` says how many channels its map has.

    Args:
        name: timm's, with or without a tag.
        norm: "frozen" or "batch", as in :func:`detkt.models.backbones.resnet_stages`.
        frozen_stages: k freezes every layer up to the last one with a stride of 2^k or less.
        last_layer: where to cut earlier, at a layer of stride 16; "" is the last one of stride 16.
        dilated: keep the layers of stride 32, too, at stride 16 with dilated convolutions (timm's ``output_stride``).

    Raises:
        InputError: no such model, timm is not installed, the net has no map of stride 16 or is not a chain of layers,
            *last_layer* is none of them or of another stride.
    """
    plan = _plan(name, output_stride=16) if dilated else _plan(name)
    last = plan.tap(16)
    if last_layer:
        before = max((plan.place(tap) for tap, stride in plan.strides.items() if stride < 16), default=-1)
        choices = plan.layers[before + 1 : plan.place(last) + 1]
        if last_layer not in choices:
            near = suggestion(last_layer, choices)
            raise InputError(
                f"timm's '{name}': last_layer '{last_layer}' is no layer of stride 16{near}; these may be: "
                + ", ".join(choices)
            )
    body = _assemble(plan, last_layer or last, norm, frozen_stages)
    body.out_channels = plan.channels[last]
    if last_layer not in ("", last):
        body.out_channels = _channels_at_stride_16(body, name, last_layer)
    return body


def timm_fpn(
    name: str,
    norm: str,
    frozen_stages: int,
    fpn_channels: int,
    first: int = 1,
    top: Callable[[int, int], ExtraFPNBlock] | None = None,
) -> TimmPyramid:
    """The net with a feature pyramid; the first four arguments and errors as :func:`timm_c4` has them.

    *first* and *top* as in :func:`detkt.models.backbones.resnet_fpn`: by default over strides 4 to 32, with "pool".
    """
    plan = _plan(name)
    taps = [plan.tap(stride) for stride in PYRAMID_STRIDES[first - 1 :]]
    channels = [plan.channels[tap] for tap in taps]
    body = _assemble(plan, taps[-1], norm, frozen_stages)
    extra = LastLevelMaxPool() if top is None else top(channels[-1], fpn_channels)
    return TimmPyramid(body, taps, channels, fpn_channels, extra)


def layers_of(body: TimmBody) -> Iterator[tuple[str, nn.Module]]:
    """timm's names and the layers of a net, in the order in which they compute."""
    for name, layer in body.named_children():
        if isinstance(layer, LayerGroup):
            yield from ((f"{name}.{part}", inner) for part, inner in layer.named_children())
        else:
            yield name, layer


@dataclass(frozen=True)
class _Plan:
    """How timm's ``features_only`` runs a net: its layers in order, and which of them end at which stride."""

    name: str
    options: dict[str, Any]
    layers: list[str]
    strides: dict[str, int]
    channels: dict[str, int]

    def place(self, layer: str) -> int:
        return self.layers.index(layer)

    def tap(self, stride: int) -> str:
        ends = [layer for layer, own in self.strides.items() if own == stride]
        if ends:
            return ends[-1]
        strides = ", ".join(map(str, self.strides.values()))
        raise InputError(f"timm's '{self.name}' has no map of stride {stride}, only of {strides}; take another net")


def _plan(name: str, **options: Any) -> _Plan:
    """Read off timm's own extractor, made without memory."""
    check_timm_name(name, f"a detector on 'timm:{name}'")
    from timm.models import FeatureDictNet, FeatureListNet

    with torch.device("meta"):
        whole = _create(name, **options)
        extractor = _create(name, features_only=True, **options)
        if not isinstance(extractor, FeatureDictNet) and hasattr(extractor, "blocks"):
            # EfficientNets and MobileNets have an extractor of their own, which runs the same layers.
            extractor = FeatureListNet(whole, flatten_sequential=True)
    # A list net flattens groups of layers, and has their points as underscores.
    dotted = {layer.replace(".", "_"): layer for layer, _ in reversed(list(whole.named_modules()))}
    nchw = not hasattr(extractor, "output_fmt") or str(getattr(extractor.output_fmt, "value", "")) == "NCHW"
    if not isinstance(extractor, FeatureDictNet) or not nchw or not extractor.keys() <= dotted.keys():
        raise InputError(
            f"timm's '{name}' is not a chain of layers with maps (N, C, H, W); take a convolutional net such as "
            "resnet50, convnext_tiny, tf_efficientnet_lite0 or mobilenetv4_conv_small"
        )
    layers = [dotted[layer] for layer in extractor]
    taps = [dotted[layer] for layer in extractor.return_layers]
    info = extractor.feature_info
    strides = dict(zip(taps, info.reduction(), strict=True))
    return _Plan(name, options, layers, strides, dict(zip(taps, info.channels(), strict=True)))


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f"timm's '{name}' gives no feature maps ({first_line(error, 160)}); take another net"
        ) from None


def _assemble(plan: _Plan, last: str, norm: str, frozen_stages: int) -> TimmBody:
    """The layers up to *last* with timm's random weights, in groups as timm names them; frozen as asked for."""
    whole = _create(plan.name, **plan.options)
    still = max((plan.place(tap) for tap, stride in plan.strides.items() if stride <= 2**frozen_stages), default=-1)
    if frozen_stages == 0:
        still = -1
    top: OrderedDict[str, nn.Module] = OrderedDict()
    for place, name in enumerate(plan.layers[: plan.place(last) + 1]):
        layer = whole.get_submodule(name)
        if norm == "frozen" or place <= still:
            layer = _with_frozen_norms(layer)
        if place <= still:
            layer.requires_grad_(False)
        group, point, part = name.rpartition(".")
        if point:
            top.setdefault(group, LayerGroup()).add_module(part, layer)
        else:
            top[name] = layer
    return TimmBody(top)


def _with_frozen_norms(layer: nn.Module) -> nn.Module:
    """*layer* with every batch normalisation turned into a fixed scale and shift, in place where it has parts."""
    if isinstance(layer, nn.BatchNorm2d):
        frozen = (
            FrozenBatchNormAct2d(layer) if hasattr(layer, "act") else FrozenBatchNorm2d(layer.num_features, layer.eps)
        )
        frozen.load_state_dict(layer.state_dict(), strict=False)
        return frozen
    for name, part in layer.named_children():
        setattr(layer, name, _with_frozen_norms(part))
    return layer


def _channels_at_stride_16(body: TimmBody, name: str, last_layer: str) -> int:
    """Channels of the map of *body*; an :class:`InputError` where its stride is not 16."""
    training = body.training
    with torch.no_grad():
        feature = body.eval()(torch.zeros(1, 3, 128, 128))
    body.train(training)
    if feature.shape[-2:] != (8, 8):
        raise InputError(
            f"timm's '{name}': layer {last_layer} gives {feature.shape[-2]}x{feature.shape[-1]} cells of a picture of "
            "128x128, and 8x8 are needed (stride 16); take another last_layer"
        )
    return feature.shape[1]
