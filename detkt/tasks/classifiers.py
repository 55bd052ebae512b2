"""One classifier of a pair: a backbone and a head, or any network from pictures to class scores as it is."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.models.classifier import Classifier
from detkt.tasks.base import Calling, LayerRecorder, Revealing, evaluating, replaced


class SplitNet(Revealing):
    """A :class:`~detkt.models.Classifier`: its ``backbone`` gives the last map, its ``head`` reads it."""

    def __init__(self, model: Classifier, role: str) -> None:
        super().__init__(model.backbone, role)
        self.model = model

    def reveal(self, layers: Iterable[str], picture: Tensor) -> None:
        """Record these inner layers of the backbone from now on."""
        self._record(name for name in layers if name != "output")

    def features(self, images: Tensor) -> dict[str, Tensor]:
        with self.recorder.recording() as inner:
            output = self.backbone(images)
        return {"output": output, **inner}

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """:meth:`features`, with the hooks in place."""
        with self.recorder.watching():
            return self.features(images)

    def both(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The network's own forward pass: its maps and its class logits (N, K)."""
        seen: dict[str, Tensor] = {}

        def backbone(batch: Tensor) -> Tensor:
            seen.update(self.features(batch))
            return seen["output"]

        with replaced(self.model, backbone=Calling(backbone, self.model.backbone)), self.recorder.watching():
            logits = _logits(self.model._call_impl(images), self.role)
        return seen, logits

    def scores(self, features: dict[str, Tensor], images: Tensor) -> Tensor:
        """Class logits (N, K) of the head on ``output``."""
        return _logits(self.model.head(features["output"].clone()), self.role)  # which may write into it

    def reading(self) -> Any:
        """A context in which reading a map changes nothing in the head."""
        return evaluating(self.model.head)


class WholeNet:
    """Any network from pictures to class logits, taken as it is.

    ``output`` is the last map (N, C, H, W) after which nothing with weights sees more than a vector a picture: that of
    torchvision's and timm's convolutional nets before their pooling. A transformer has no such map; its scores can be
    distilled, and inner layers that give maps. What it gives beside its scores in training (GoogLeNet's auxiliary ones)
    gets no loss.
    """

    def __init__(self, model: nn.Module, role: str) -> None:
        self.model, self.role = model, role
        self.recorder = LayerRecorder(model, [], role)
        self._map = ""

    def reveal(self, layers: Iterable[str], picture: Tensor) -> None:
        """Find the last map on *picture*, and record it and these inner layers from now on."""
        with evaluating(self.model), torch.no_grad():
            self._map = _last_map(self.model, picture)
        names = [*([self._map] if self._map else []), *(name for name in layers if name != "output")]
        self.recorder.close()
        self.recorder = LayerRecorder(self.model, list(dict.fromkeys(names)), self.role)

    def compile(self) -> None:
        """Nothing: such a network is compiled, if at all, by who made it."""

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The last map as ``output``, and the revealed inner layers."""
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The network's own forward pass: its maps and its class logits (N, K)."""
        with self.recorder.watching(), self.recorder.recording() as seen:
            logits = _logits(self.model._call_impl(images), self.role)
        maps = {name: feature for name, feature in seen.items() if name != self._map}
        return ({"output": seen[self._map]} if self._map else {}) | maps, logits

    def scores(self, features: dict[str, Tensor], images: Tensor) -> Tensor:
        """Class logits (N, K) of what comes after the last map, on ``output``."""
        path, _, name = self._map.rpartition(".")
        parent = self.model.get_submodule(path)
        feature = features["output"].clone()  # DenseNet's ReLU would write into it
        with replaced(parent, **{name: Calling(lambda *_: feature, getattr(parent, name))}):
            return _logits(self.model._call_impl(images), self.role)

    def reading(self) -> Any:
        """A context in which reading a map changes nothing in the network."""
        return evaluating(self.model)


def net_of(model: nn.Module, role: str) -> SplitNet | WholeNet:
    """How *model* is read."""
    return SplitNet(model, role) if isinstance(model, Classifier) else WholeNet(model, role)


def _logits(output: Any, role: str) -> Tensor:
    """Class logits, float32 at least as losses need them: of a tensor, or of an output that has them as ``logits``.

    Raises:
        InputError: they are none.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if isinstance(logits, dict):
        logits = logits.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise InputError(f"the {role} gives {type(output).__name__}, not class logits (N, K)")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _is_channels_last(module: nn.Module, output: Tensor) -> bool:
    """Whether *output* is (N, H, W, C), as Swin's norms give it."""
    channels = module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else 0
    return channels == output.shape[-1] != output.shape[1]


def _last_map(model: nn.Module, picture: Tensor) -> str:
    """The name of the module that gives the last map on *picture*; empty where there is none."""
    found = ""

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            nonlocal found
            if not isinstance(output, Tensor) or output.dim() < 3:
                return
            learns = next(module.parameters(), None) is not None
            if output.dim() != 4 or _is_channels_last(module, output):
                # Tokens: what was a map before them is no map of what the scores are read from.
                found = "" if learns else found
            elif max(output.shape[-2:]) > 1 and not isinstance(module, nn.AdaptiveAvgPool2d):
                found = name

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        model(picture)
    return found
