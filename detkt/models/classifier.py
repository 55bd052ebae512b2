"""Classifiers by name, in two parts: a backbone that gives the last map, and a head that gives logits.

Names (an option in brackets is one of :func:`default_classifier_options`; all CIFAR nets have ``in_channels`` and
take images of 16 pixels or more a side):

- ``cifar_resnet<6n+2>``, with a width factor as in ``cifar_resnet8x1.25`` [``shortcut``],
- ``cifar_preact_resnet<9n+2>`` [``checkpoint_activations``],
- ``cifar_wrn<6n+4>_<k>`` [``dropout``], ``cifar_vgg13``, ``cifar_inception_bn``,
- torchvision's nets by their own names, as ``resnet18`` or ``googlenet`` [``transform_input``],
- ``timm:<name>``, any convolutional net of timm, where that is installed.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model_weights

from detkt.base.errors import InputError, suggestion
from detkt.models.cifar_resnet import cifar_resnet
from detkt.models.cifar_vgg import cifar_vgg13
from detkt.models.imagenet_classifiers import (
    INCEPTION_OPTIONS,
    timm_classifier,
    torchvision_classifier,
    torchvision_names,
)
from detkt.models.inception_bn import cifar_inception_bn
from detkt.models.preact_resnet import preact_resnet
from detkt.models.reading import imagenet_tensors, read_tensors
from detkt.models.weights import WEIGHTS_FILE, LoadReport
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

    ``detkt`` of one that :func:`build_classifier` made says how, see there.
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
    """Names that :func:`build_classifier` takes, of CIFAR nets the usual sizes; timm's nets are not listed."""
    return [*CIFAR_NAMES, *torchvision_names()]


def default_classifier_options(name: str) -> dict[str, Any]:
    """Every option of a classifier with its default; an unknown name raises :class:`InputError`."""
    return dict(parse_classifier(name).options)


def build_classifier(name: str, num_classes: int, weights: str | Path | None = None, **options: Any) -> Classifier:
    """The classifier of the given name, on the CPU and in training mode.

    Convolutions of the CIFAR nets start as He et al. (2015) have it, normal with fan-out; the others as their
    libraries do it.

    Args:
        name: see this module's docstring and :func:`available_classifiers`.
        num_classes: number of classes; there is no background.
        weights: "imagenet" for torchvision's ImageNet weights (downloaded, or from torch's hub cache), a file or
            folder for :func:`load_classifier_weights`, or None for random ones. What was loaded is logged.
        options: any key of :func:`default_classifier_options`. ``transform_input`` is True with "imagenet".

    Returns:
        The model. ``model.detkt`` holds "task", "architecture", "num_classes", "options" (all of them, resolved) and
        "input" (``{"channels": C}``), with *weights* also "random" (tensors that these left as they were);
        ``build_classifier(m["architecture"], m["num_classes"], **m["options"])``
        rebuilds it.

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
    model.detkt = {
        "task": "classification",
        "architecture": name,
        "num_classes": int(num_classes),
        "options": resolved,
        "input": {"channels": resolved.get("in_channels", 3)},
    }
    if weights is not None:
        if weights == "imagenet":
            report = _load_imagenet(model, architecture)
        else:
            report = load_classifier_weights(model, weights)
        model.detkt["random"] = [*report.missing, *(name for name, _, _ in report.mismatched)]
        logging.getLogger(__name__).info("%s", report)
    return model


def parse_classifier(name: str) -> ClassifierArchitecture:
    """Take the name of a classifier apart; an unknown one raises :class:`InputError`."""
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
    """Defaults overridden by *given*, checked and in JSON's types; raises :class:`InputError`."""
    options = dict(architecture.options)
    for key, value in given.items():
        if key not in options:
            known = f"it has: {', '.join(options)}" if options else "it has none"
            raise InputError(f"{architecture.name} has no option '{key}'{suggestion(key, options)}; {known}")
        options[key] = _checked(key, value)
    return options


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
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < 1:
            raise InputError(f"option dropout must be a probability, 0 or more and below 1, got {value!r}")
        return float(value)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"option {key} must be a whole number above 0, got {value!r}")
    return int(value)


def _cifar_net(
    build: Callable[..., nn.Module], num_classes: int, pooling: type[nn.Module] = nn.AdaptiveAvgPool2d, **options: Any
) -> tuple[nn.Module, nn.Sequential]:
    """A backbone and the head of every CIFAR net: pooling over the whole map and one linear layer."""
    backbone = build(**options)
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    linear = nn.Linear(backbone.out_channels, num_classes)
    nn.init.zeros_(linear.bias)
    head = OrderedDict(pool=pooling(1), flatten=nn.Flatten(), fc=linear)
    return backbone, nn.Sequential(head)


def load_classifier_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a file of the same net: torchvision's, timm's, a public CIFAR ResNet's, or a :class:`Classifier`'s.

    Args:
        model: any :class:`Classifier`; changed in place, and not at all when this raises.
        path: a ``.pth``, ``.pt``, ``.th`` or ``.safetensors`` file, or a folder with ``model.safetensors`` in it. The
            state dict may be nested under "model", "state_dict" or "model_state_dict", its names prefixed with
            ``module.``.

    The backbone must be complete. The head may be of another number of classes, or absent: it is reported and left
    alone.

    Raises:
        InputError: the file is missing, damaged, not weights, or of another backbone.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    return _load(model, read_tensors(path), str(path))


def _load_imagenet(model: Classifier, architecture: ClassifierArchitecture) -> LoadReport:
    name = architecture.torchvision_name
    if name is None or "IMAGENET1K_V1" not in get_model_weights(name).__members__:
        raise InputError(f"weights 'imagenet': there are none for {architecture.name}; leave them out or give a file")
    return _load(model, imagenet_tensors(name), f"ImageNet weights of {name}")


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> LoadReport:
    own = model.state_dict()
    loaded: dict[str, Tensor] = {}
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    unexpected: list[str] = []
    for name, tensor in state.items():
        target = next((c for c in _candidates(name, model) if c in own), None)
        if target is None:
            unexpected.append(name)
        elif own[target].shape == tensor.shape:
            loaded[target] = tensor
        else:
            mismatched.append((target, tuple(tensor.shape), tuple(own[target].shape)))
    reached = {*loaded, *(name for name, _, _ in mismatched)}
    missing = [name for name in own if name not in reached and not _is_counter(name)]
    unexpected = [name for name in unexpected if not _is_counter(name)]
    _check_same_backbone(model, mismatched, missing, unexpected, source)
    model.load_state_dict(loaded, strict=False)
    counted = tuple(name for name in loaded if not _is_counter(name))
    return LoadReport(counted, tuple(missing), tuple(unexpected), tuple(mismatched), source)


def _check_same_backbone(
    model: nn.Module,
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
    missing: list[str],
    unexpected: list[str],
    source: str,
) -> None:
    """Raise unless file and backbone are the same: a deeper net holds every layer of a shallower one."""
    stages = {name for name, _ in model.backbone.named_children()}
    wrong = [
        f"{name} is {'x'.join(map(str, theirs))}, needed is {'x'.join(map(str, ours))}"
        for name, theirs, ours in mismatched
        if name.startswith("backbone.")
    ]
    wrong += [f"{name} is not in it" for name in missing if name.startswith("backbone.")]
    wrong += [
        f"this net has no {name}"
        for name in unexpected
        if _current(name).removeprefix("backbone.").split(".")[0] in stages
    ]
    if wrong:
        raise InputError(f"{source}: these are weights of another backbone: {wrong[0]}, and {len(wrong) - 1} more")


def _candidates(name: str, model: nn.Module) -> list[str]:
    """Names that a tensor of a file may have in a classifier, the likeliest first."""
    name = _current(name)
    candidates = [name, f"backbone.{name}", f"head.{name}"]
    layer, _, kind = name.rpartition(".")
    linear = [part for part, module in model.head.named_modules() if isinstance(module, nn.Linear)]
    if layer in ("fc", "linear", "classifier", "head", "head.fc") and linear:
        candidates.append(f"head.{linear[-1]}.{kind}")
    return candidates


def _current(name: str) -> str:
    """Without the prefixes of wrappers, and as DenseNets of today name their layers."""
    name = name.replace("_orig_mod.", "").removeprefix("module.")
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name)


def _is_counter(name: str) -> bool:
    """Batch norm's step counter, which older files lack and nothing here needs."""
    return name.endswith("num_batches_tracked")
