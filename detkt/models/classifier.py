"""Classifiers by name, in two parts: a backbone that gives the last map, and a head that gives logits.

Names (an option in brackets is one of `default_classifier_options`; all CIFAR nets have ``in_channels`` and
take images of 16 pixels or more a side):

- ``cifar_resnet<6n+2>``, with a width factor as in ``cifar_resnet8x1.25`` [``shortcut``],
- ``cifar_preact_resnet<9n+2>`` [``checkpoint_activations``],
- ``cifar_wrn<6n+4>_<k>`` [``dropout``], ``cifar_vgg13``, ``cifar_inception_bn``,
- torchvision's nets by their own names, as ``resnet18`` or ``googlenet`` [``transform_input``],
- ``timm:<name>``, any convolutional net of timm, where that is installed.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detkt.base.errors import InputError, suggestion
from detkt.models.card import ModelCard, add_card
from detkt.models.cifar_resnet import cifar_resnet
from detkt.models.cifar_vgg import cifar_vgg13
from detkt.models.imagenet_classifiers import (
    INCEPTION_OPTIONS,
    timm_classifier,
    torchvision_classifier,
    torchvision_names,
)
from detkt.models.inception_bn import cifar_inception_bn
from detkt.models.options import overridden
from detkt.models.preact_resnet import preact_resnet
from detkt.models.weights import Loader, LoadReport, shape_text, unwrapped
from detkt.models.wide_resnet import wide_resnet

CIFAR_NAMES = (
    *(f"cifar_resnet{depth}" for depth in (8, 14, 20, 26, 32, 44, 56, 110)),
    *(f"cifar_preact_resnet{depth}" for depth in (110, 164, 1001)),
    *(f"cifar_wrn{size}" for size in ("16_1", "16_2", "40_1", "40_2", "46_4", "28_10")),
    "cifar_vgg13",
    "cifar_inception_bn",
)
"""The usual sizes; others are taken too, see the module's docstring."""


class Classifier(nn.Module):
    """``backbone``: images -> last map ``(N, C, H, W)``, before pooling; ``head``: that map -> logits ``(N, K)``.

    One that `build_classifier` made has a `detkt.models.card.ModelCard`.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


@dataclass(frozen=True)
class ClassifierArchitecture:
    """What the name of a classifier says.

    ``build(num_classes, **options)`` gives backbone and head; ``torchvision_name`` is the net whose ImageNet weights
    fit, if there is one.
    """

    name: str
    build: Callable[..., tuple[nn.Module, nn.Module]]
    options: dict[str, Any] = field(default_factory=dict)
    torchvision_name: str | None = None


def available_classifiers() -> list[str]:
    """Names that `build_classifier` takes, of CIFAR nets the usual sizes; timm's nets are not listed."""
    return [*CIFAR_NAMES, *torchvision_names()]


def default_classifier_options(name: str) -> dict[str, Any]:
    """Every option of a classifier with its default; an unknown name raises `InputError`."""
    return dict(parse_classifier(name).options)


def build_classifier(name: str, num_classes: int, weights: str | Path | None = None, **options: Any) -> Classifier:
    """The classifier of the given name, on the CPU and in training mode.

    Convolutions of the CIFAR nets start as He et al. (2015) have it, normal with fan-out; the others as their
    libraries do it.

    Args:
        name: see this module's docstring and `available_classifiers`.
        num_classes: number of classes; there is no background.
        weights: "imagenet" for torchvision's ImageNet weights (downloaded, or from torch's hub cache), a file or
            folder for `load_classifier_weights`, or None for random ones. What was loaded is logged.
        options: any key of `default_classifier_options`. ``transform_input`` is True with "imagenet".

    Returns:
        The model; its ``card = detkt.models.card_of(model)`` rebuilds it:
        ``build_classifier(card.architecture, card.num_classes, **card.options)``.

    Raises:
        InputError: unknown name or option, option of a wrong type or out of range, weights that do not fit.
    """
    architecture = parse_classifier(name)
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < 2:
        raise InputError(f"{name}: num_classes must be a whole number, 2 or more, got {num_classes!r}")
    if weights == "imagenet" and "transform_input" in architecture.options:
        options = {"transform_input": True, **options}
    resolved = resolve_classifier_options(architecture, options)
    model = Classifier(*architecture.build(int(num_classes), **resolved))
    random: tuple[str, ...] = ()
    if weights is not None:
        report = _LOADER.load(model, weights, architecture.torchvision_name, name)
        random = (*report.missing, *(name for name, _, _ in report.mismatched))
    channels = resolved.get("in_channels", 3)
    add_card(model, ModelCard("classification", name, int(num_classes), resolved, channels, random))
    return model


def parse_classifier(name: str) -> ClassifierArchitecture:
    """Take the name of a classifier apart; an unknown one raises `InputError`."""
    name = str(name)
    cifar = {"in_channels": 3}
    if match := re.fullmatch(r"cifar_resnet(\d+)(?:x(\d+(?:\.\d+)?))?", name):
        width = float(match[2] or 1)
        if width == 0:
            raise InputError(f"classifier '{name}': the width factor must be above 0")
        backbone = partial(cifar_resnet, int(match[1]), width)
        return ClassifierArchitecture(name, partial(_cifar_net, backbone), {"shortcut": "padding", **cifar})
    if match := re.fullmatch(r"cifar_preact_resnet(\d+)", name):
        backbone = partial(preact_resnet, int(match[1]))
        return ClassifierArchitecture(name, partial(_cifar_net, backbone), {"checkpoint_activations": False, **cifar})
    if match := re.fullmatch(r"cifar_wrn(\d+)_(\d+)", name):
        backbone = partial(wide_resnet, int(match[1]), int(match[2]))
        return ClassifierArchitecture(name, partial(_cifar_net, backbone), {"dropout": 0.0, **cifar})
    if name == "cifar_vgg13":
        return ClassifierArchitecture(name, partial(_cifar_net, cifar_vgg13, pooling=nn.AdaptiveMaxPool2d), cifar)
    if name == "cifar_inception_bn":
        return ClassifierArchitecture(name, partial(_cifar_net, cifar_inception_bn), cifar)
    if name.startswith("timm:"):
        return ClassifierArchitecture(name, partial(timm_classifier, name.removeprefix("timm:")))
    if name in torchvision_names():
        build = partial(torchvision_classifier, name)
        return ClassifierArchitecture(name, build, INCEPTION_OPTIONS.get(name, {}), torchvision_name=name)
    raise InputError(
        f"unknown classifier '{name}'{suggestion(name, available_classifiers())}; known: cifar_resnet20 and other "
        "depths 6n+2 and widths as in cifar_resnet8x1.25, cifar_preact_resnet1001, cifar_wrn40_2, cifar_vgg13, "
        "cifar_inception_bn, torchvision's nets such as resnet18 or googlenet, and timm:NAME"
    )


def resolve_classifier_options(architecture: ClassifierArchitecture, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults overridden by *given*, checked and in JSON's types; raises `InputError`."""
    return overridden(architecture.name, dict(architecture.options), given, lambda key, value, _: _checked(key, value))


def _checked(key: str, value: Any) -> Any:
    if key == "shortcut":
        if value not in ("padding", "projection"):
            raise InputError(f"option shortcut must be 'padding' or 'projection', got {value!r}")
        return value
    if key in ("checkpoint_activations", "transform_input"):
        if not isinstance(value, bool):
            raise InputError(f"option {key} must be true or false, got {value!r}")
        return value
    if key == "dropout":
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
            raise InputError(f"option dropout must be a probability, 0 or more and below 1, got {value!r}")
        return float(value)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"option {key} must be a whole number above 0, got {value!r}")
    return int(value)


def _cifar_net(
    build: Callable[..., nn.Module], num_classes: int, pooling: type[nn.Module] = nn.AdaptiveAvgPool2d, **options: Any
) -> tuple[nn.Module, nn.Sequential]:
    """A backbone and the head of every CIFAR net: pooling over the whole map and one linear layer."""
    backbone: Any = build(**options)
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    linear = nn.Linear(backbone.out_channels, num_classes)
    nn.init.zeros_(linear.bias)
    head = OrderedDict(pool=pooling(1), flatten=nn.Flatten(), fc=linear)
    return backbone, nn.Sequential(head)


def load_classifier_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a file of the same net: torchvision's, timm's, a public CIFAR ResNet's, or a `Classifier`'s.

    Args:
        model: any `Classifier`; changed in place, and not at all when this raises.
        path: a ``.pth``, ``.pt``, ``.th`` or ``.safetensors`` file, or a folder with ``model.safetensors`` in it. The
            state dict may be nested under "model", "state_dict" or "model_state_dict", its names prefixed with
            ``module.``.

    The backbone must be complete. The head may be of another number of classes, or absent: it is reported and left
    alone.

    Raises:
        InputError: the file is missing, damaged, not weights, or of another backbone.
    """
    return _LOADER.load_file(model, path)


def _check_same_backbone(model: nn.Module, report: LoadReport, tensors: dict[str, Tensor]) -> None:
    """Raise unless file and backbone are the same: a deeper net holds every layer of a shallower one."""
    stages = {name for name, _ in model.get_submodule("backbone").named_children()}
    wrong = [
        f"{name} is {shape_text(theirs)}, needed is {shape_text(ours)}"
        for name, theirs, ours in report.mismatched
        if name.startswith("backbone.")
    ]
    wrong += [f"{name} is not in it" for name in report.missing if name.startswith("backbone.")]
    wrong += [
        f"this net has no {name}"
        for name in report.unexpected
        if _current(unwrapped(name)).removeprefix("backbone.").split(".")[0] in stages
    ]
    if wrong:
        more = len(wrong) - 1
        raise InputError(f"{report.source}: these are weights of another backbone: {wrong[0]}, and {more} more")


def _candidates(name: str, model: nn.Module) -> list[str]:
    """Names that a tensor of a file may have in a classifier, the likeliest first."""
    name = _current(name)
    candidates = [name, f"backbone.{name}", f"head.{name}"]
    layer, _, kind = name.rpartition(".")
    linear = [part for part, module in model.get_submodule("head").named_modules() if isinstance(module, nn.Linear)]
    if layer in ("fc", "linear", "classifier", "head", "head.fc") and linear:
        candidates.append(f"head.{linear[-1]}.{kind}")
    return candidates


def _current(name: str) -> str:
    """As DenseNets of today name their layers."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name)


_LOADER = Loader(_candidates, _check_same_backbone)
