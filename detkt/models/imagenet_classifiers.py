"""Classifiers for pictures of ImageNet's size, cut into backbone and head: torchvision's, and timm's.

The parts keep the layers' own names, so that a weight ``layer1.0.conv1.weight`` of a torchvision or timm file is
``backbone.layer1.0.conv1.weight`` here and ``fc.weight`` is ``head.fc.weight``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from detkt.base.errors import InputError
from detkt.models.timm_backbones import check_timm_name

SPLIT_FAMILIES = (
    "alexnet",
    "densenet",
    "efficientnet",
    "googlenet",
    "inception",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "shufflenet",
    "vgg",
    "wide_resnet",
)
"""How the names of torchvision's nets begin that give one map to a head of pooling and linear layers."""

INCEPTION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": False},
    "inception_v3": {"transform_input": False},
}
"""Nets whose ImageNet weights, ported from TensorFlow, want images of mean 0.5 and spread 0.5 a channel."""

_HEAD_LAYERS = ("avgpool", "dropout", "fc", "classifier")


class InceptionNormalization(nn.Module):
    """From images normalised by ImageNet's mean and spread to ones normalised by 0.5 and 0.5, as torchvision has it."""

    def __init__(self) -> None:
        super().__init__()
        mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("scale", (spread / 0.5).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers that :func:`torchvision_classifier` takes."""
    return [name for name in list_models(module=torchvision.models) if name.startswith(SPLIT_FAMILIES)]


def torchvision_classifier(
    name: str, num_classes: int, transform_input: bool = False
) -> tuple[nn.Sequential, nn.Sequential]:
    """A torchvision classifier without weights, cut before its pooling.

    Args:
        name: one of :func:`torchvision_names`.
        num_classes: outputs of the last linear layer.
        transform_input: of GoogLeNet and Inception-v3: normalise images as their ImageNet weights want them.

    Returns:
        Backbone and head, each with the net's own layers by their names. VGG's and AlexNet's last max pool belongs
        to the head, DenseNet's last ReLU to the backbone; auxiliary heads are left out.
    """
    extra = {"aux_logits": False, "init_weights": True} if name in INCEPTION_OPTIONS else {}
    layers = OrderedDict(get_model(name, weights=None, num_classes=num_classes, **extra).named_children())
    head: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in _HEAD_LAYERS:
        if layer in layers:
            head[layer] = layers.pop(layer)
    # Those that have no module for it pool in their forward().
    pooling = [("avgpool", head.pop("avgpool", nn.AdaptiveAvgPool2d(1))), ("flatten", nn.Flatten())]
    head = OrderedDict([*pooling, *head.items()])
    if name.startswith(("vgg", "alexnet")):
        head = OrderedDict([("maxpool", layers["features"][-1]), *head.items()])
        layers["features"] = layers["features"][:-1]
    if name.startswith("densenet"):
        layers["relu"] = nn.ReLU(inplace=True)
    if transform_input:
        layers = OrderedDict([("transform_input", InceptionNormalization()), *layers.items()])
    return nn.Sequential(layers), nn.Sequential(head)


def timm_classifier(name: str, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """A timm classifier without weights: its ``forward_features`` and its ``forward_head`` as two modules.

    Raises:
        InputError: timm is not installed or has no such net, or the net gives no map (transformers, mostly).
    """
    timm = check_timm_name(name, f"classifier 'timm:{name}'")
    backbone = timm.create_model(name, pretrained=False, num_classes=num_classes)
    in_body = _layers_of_features(backbone, name)
    head = copy.deepcopy(backbone)
    for layer, _ in list(backbone.named_children()):
        delattr(head if layer in in_body else backbone, layer)
    if not backbone.state_dict().keys().isdisjoint(head.state_dict()):
        raise InputError(f"timm's '{name}' has weights outside its layers and cannot be cut into backbone and head")
    backbone.forward = backbone.forward_features
    head.forward = head.forward_head
    return backbone, head


def _layers_of_features(net: nn.Module, name: str) -> set[str]:
    """Names of the layers of a timm net that its ``forward_features`` runs, found without computing anything."""
    probe = copy.deepcopy(net).to("meta").eval()
    used: set[str] = set()
    for layer, child in probe.named_children():
        for module in child.modules():
            module.register_forward_hook(lambda *_, layer=layer: used.add(layer))
    feature = probe.forward_features(torch.empty(1, *net.default_cfg["input_size"], device="meta"))
    if not isinstance(feature, Tensor) or feature.dim() != 4 or feature.shape[1] != net.num_features:
        raise InputError(f"timm's '{name}' gives no last map (N, C, H, W) to distil; take a convolutional net")
    return used
