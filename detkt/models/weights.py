"""Weights of files in networks, by name: as much as fits, with a report of it. Here: how they come into detectors.

Files are read by :mod:`detkt.models.reading`, which cannot run code that is in them.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.models.reading import has_imagenet, imagenet_tensors, read_tensors

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a model. Names are the model's, but for *unexpected*, which are the file's.

    *mismatched* entries are ``(name, shape in the file, shape in the model)``.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    source: str = ""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        source = self.source or "weights"
        parts = [f"{source}: loaded {len(self.loaded)} of {total} tensors ({_summary(self.loaded)})"]
        if self.missing:
            parts.append(f"not in the file and left as they were: {_summary(self.missing)}")
        if self.mismatched:
            shapes = ", ".join(f"{name} {shape_text(a)} for {shape_text(b)}" for name, a, b in self.mismatched)
            parts.append(f"of another shape and left as they were: {shapes}")
        if self.unexpected:
            parts.append(f"in the file but not used: {_summary(self.unexpected)}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Loader:
    """How weights come into networks of one family.

    candidates: from a tensor's name in a file, and the model, to the names it may have in the model, likeliest first.
    check: raises InputError where the tensors of a file and the model do not belong together.
    """

    candidates: Callable[[str, nn.Module], list[str]]
    check: Callable[[nn.Module, LoadReport, dict[str, Tensor]], None]

    def load(self, model: nn.Module, weights: str | Path, imagenet: str | None, name: str) -> LoadReport:
        """Load a file, or with *weights* "imagenet" torchvision's weights of its classifier *imagenet*; logged.

        name: the model's, for the error where there are none (*imagenet* is None). Raises InputError as `load_file`.
        """
        if weights != "imagenet":
            report = self.load_file(model, weights)
        elif imagenet is not None and has_imagenet(imagenet):
            report = self.load_tensors(model, imagenet_tensors(imagenet), f"ImageNet weights of {imagenet}")
        else:
            raise InputError(f"weights 'imagenet': there are none for {name}; leave them out or give a file")
        logging.getLogger(__name__).info("%s", report)
        return report

    def load_file(self, model: nn.Module, path: str | Path) -> LoadReport:
        """Load what fits of a file, or of the ``model.safetensors`` in a folder; *model* changes only without error."""
        path = Path(path)
        path = path / WEIGHTS_FILE if path.is_dir() else path
        return self.load_tensors(model, read_tensors(path), str(path))

    def load_tensors(self, model: nn.Module, tensors: dict[str, Tensor], source: str) -> LoadReport:
        """Load what fits of *tensors* by name; *source* says in messages what they are. Errors as `load_file`'s."""
        own = model.state_dict()
        loaded: dict[str, Tensor] = {}
        mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        unexpected: list[str] = []
        for name, tensor in tensors.items():
            target = next((c for c in self.candidates(unwrapped(name), model) if c in own), None)
            if target is None:
                unexpected.append(name)
            elif own[target].shape == tensor.shape:
                loaded[target] = tensor
            else:
                mismatched.append((target, tuple(tensor.shape), tuple(own[target].shape)))
        reached = {*loaded, *(name for name, _, _ in mismatched)}
        report = LoadReport(
            loaded=_without_counters(loaded),
            missing=_without_counters(name for name in own if name not in reached),
            unexpected=_without_counters(unexpected),
            mismatched=tuple(mismatched),
            source=source,
        )
        self.check(model, report, tensors)
        model.load_state_dict(loaded, strict=False)
        return report


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load what fits from a file: a torchvision classifier, or a detector of torchvision or detkt.

    Args:
        model: any detector of torchvision's; changed in place, and not at all when this raises.
        path: a ``.pth``, ``.pt`` or ``.safetensors`` file, or a folder that :func:`detkt.models.save_model` wrote. The
            state dict may be nested under "model", "state_dict" or "model_state_dict", its names prefixed
            with ``module.``.

    Heads may differ in shape (another number of classes, a narrower fc6): they are reported and left alone.

    Raises:
        InputError: the file is missing, damaged, not weights, of another backbone, or nothing in it fits.
    """
    return DETECTOR_LOADER.load_file(model, path)


def _check_detector(model: nn.Module, report: LoadReport, tensors: dict[str, Tensor]) -> None:
    for name, theirs, ours in report.mismatched:
        if name.startswith("backbone."):
            raise InputError(
                f"{report.source}: these are weights of another backbone: {name} is {shape_text(theirs)}, needed is "
                f"{shape_text(ours)}"
            )
    if not report.loaded:
        found = ", ".join(list(tensors)[:3])
        raise InputError(
            f"{report.source}: nothing in it fits this detector; it holds {len(tensors)} tensors such as {found}"
        )


_CLASSIFIER_LAYERS = {
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
}
"""torchvision's VGG-16 has fc6 and fc7 at 0 and 3, its AlexNet at 1 and 4."""


def _candidates(name: str, model: nn.Module) -> list[str]:
    """Names that a tensor of a file may have in a detector, the likeliest first."""
    # torchvision's detectors of before version 0.13 had one module fewer around these convolutions.
    name = re.sub(r"^(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    name = re.sub(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    candidates = [name]
    bare = re.sub(r"^(backbone\.(body\.)?|roi_heads\.box_head\.(?=layer4)|features\.(?=\d))", "", name)
    candidates += [f"backbone.{bare}", f"backbone.body.{bare}", f"roi_heads.box_head.{bare}"]
    candidates += [f"backbone.{name}", f"backbone.body.{name}"]  # timm's VGG, whose layers stay in ``features``
    candidates += _in_ssd(name)
    if found := re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.(weight|bias)", name):
        # RetinaNet's heads before version 0.13, with a ReLU after each convolution.
        candidates.append(f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}")
    layer, _, kind = name.rpartition(".")
    if layer in _CLASSIFIER_LAYERS:
        candidates.append(f"roi_heads.box_head.{_CLASSIFIER_LAYERS[layer]}.{kind}")
    return candidates


def _in_ssd(name: str) -> list[str]:
    """Names that a layer of VGG-16 or MobileNetV3 has in SSD and SSDlite, which cut it before conv5 and in block 13."""
    found = re.fullmatch(r"features\.(\d+)\.(.*)", name)
    if found is None:
        return []
    layer, rest = int(found[1]), found[2]
    names = [f"backbone.extra.0.{layer - 23}.{rest}"] if layer >= 23 else []
    if layer < 13 or (layer == 13 and rest.startswith("block.0.")):
        names.append(f"backbone.features.0.{layer}.{rest.removeprefix('block.0.') if layer == 13 else rest}")
    elif layer == 13 and rest.startswith("block."):
        part, _, rest = rest.removeprefix("block.").partition(".")
        names.append(f"backbone.features.1.0.{part}.{rest}")  # cut off, its parts keep their numbers
    elif layer > 13:
        names.append(f"backbone.features.1.{layer - 13}.{rest}")
    return names


DETECTOR_LOADER = Loader(_candidates, _check_detector)


def _without_counters(names: Iterable[str]) -> tuple[str, ...]:
    """Names but for batch norm's step counters: frozen ones have none, and live ones do well without."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def unwrapped(name: str) -> str:
    """Without the prefixes of DataParallel, DistributedDataParallel and torch.compile."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _summary(names: Iterable[str]) -> str:
    """Counts by part of the net: ``backbone.layer1 12, rpn.head 6``."""
    # VGG-16 and AlexNet name their layers by number: those are counted together.
    parts = re.compile(r"roi_heads\.\w+\.\w+|backbone\.body\.\w+|\w+\.(?!\d)\w+|\w+")
    counts = Counter(match[0] if (match := parts.match(name)) else name for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items()) or "none"


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
