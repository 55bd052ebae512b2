"""One torchvision detector of a pair: its own forward pass with what it reveals, its backbone alone, its heads alone.

Whatever torchvision detector it is, of two stages or one, it has a ``transform`` and a ``backbone``, and its forward
pass in training returns losses. The parts are watched by standing in for them while a pass runs: a subclass's own
``forward`` and everybody's hooks are honoured, and between two passes the network is as it came.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detkt.base.errors import InputError
from detkt.knowledge import known
from detkt.methods.base import outputs
from detkt.methods.reductions import full_precision
from detkt.tasks.base import Calling, Revealing, evaluating, replaced
from detkt.tasks.dense import DenseHead, Towers, anchors_of

Targets = list[dict[str, Any]]


def named_outputs(backbone_output: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's output by name: ``output``, or ``output.<level>`` for a feature pyramid."""
    if isinstance(backbone_output, Tensor):
        return {"output": backbone_output}
    return {f"output.{level}": feature for level, feature in backbone_output.items()}


def as_pyramid(features: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The reverse of :func:`named_outputs`, in the form that heads read (a lone map is level 0)."""
    if "output" in features:
        return OrderedDict([("0", features["output"])])
    prefix = "output."
    return OrderedDict((k.removeprefix(prefix), v) for k, v in features.items() if k.startswith(prefix))


@dataclass
class Pass:
    """What one training pass of a detector revealed.

    Attributes:
        features: its maps by name.
        images: the batch as its transform made it, on the device; None before that.
        targets: the targets on that batch.
        losses: its own losses.
        proposals: the RoIs that it sampled, boxes (n, 4) a picture; None for a detector of one stage.
        logits: class scores (M, K) of all of them; of a dense head (N, R, K), of all anchors.
        matched: what each anchor of a dense head is to learn, an index (R,) into a picture's targets; below 0: none.
        towers: by tower of a dense head, its inner maps (N, C, H, W), a level each.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    images: ImageList = None
    targets: Targets = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    proposals: list[Tensor] | None = None
    logits: Tensor | None = None
    matched: list[Tensor] = field(default_factory=list)
    towers: dict[str, list[Tensor]] = field(default_factory=dict)


class Detector(Revealing):
    """A torchvision detector that is read, and never changed.

    Args:
        model: Faster R-CNN and kin, RetinaNet, FCOS, SSD, or a subclass.
        role: ``student`` or ``teacher``, for messages.

    Raises:
        InputError: no such detector.
    """

    def __init__(self, model: nn.Module, role: str) -> None:
        parts = dict(model.named_children())
        if "transform" not in parts or "backbone" not in parts:
            raise InputError(
                f"the {role} is a {type(model).__name__}, not a torchvision detector; classifiers are "
                "detkt.models.build_classifier(NAME, classes) or detkt.models.Classifier(backbone, head)"
            )
        if (dtype := next((p.dtype for p in model.parameters()), None)) in (torch.float16, torch.bfloat16):
            raise InputError(
                f"the {role} is in {dtype}, in which torchvision's detectors find no boxes: call float() on it and run "
                "the distiller under torch.autocast"
            )
        super().__init__(parts["backbone"], role)
        self.model: Any = model  # torchvision's parts have no types
        self.dense = DenseHead.of(model)
        self.towers = Towers.of(self.dense)
        self._normalisation: tuple[tuple, dict[str, Tensor]] | None = None
        if _is_compiled(self.backbone):
            # A graph that torch made of another network of this kind would be taken again, without our hooks.
            torch._dynamo.reset()

    @property
    def two_stages(self) -> bool:
        """Whether it proposes regions and classifies these: only then it has RoI scores."""
        return hasattr(self.model, "roi_heads") and hasattr(self.model, "rpn")

    def reveal(self, layers: Iterable[str]) -> None:
        """Record these inner layers of the backbone from now on."""
        self._record(name for name in layers if name.split(".")[0] != "output")
        if _is_compiled(self.backbone):
            self.recorder.stay()

    def close(self) -> None:
        """Leave the network without a trace."""
        self.recorder.close()

    def features(self, images: Tensor) -> dict[str, Tensor]:
        with self.recorder.recording() as inner:
            outputs = named_outputs(self.backbone(images))
        return {**outputs, **inner}

    def transform(self, images: list[Tensor], targets: Targets | None = None) -> tuple[ImageList, Any]:
        """The batch that the backbone sees; targets stay on their device."""
        with self.normalisation_on(images[0].device):
            return self.model.transform(images, targets)

    def train_pass(
        self,
        images: list[Tensor],
        targets: Targets,
        transformed: Callable[[ImageList], None],
        computed: Callable[[ImageList], None],
        towers: bool = False,
    ) -> Pass:
        """The network's own forward pass in training; the losses of a network in evaluation mode, which stays in it.

        *transformed* is called when the batch is made, and *computed* when the backbone has run. *towers*: note what
        the towers of its dense head give inside.
        """
        seen, device = Pass(), images[0].device
        original_transform = self.model.transform

        def transform(given: list[Tensor], wanted: Targets | None = None) -> tuple[ImageList, Targets]:
            with self.normalisation_on(device):
                # Targets where they come from: torchvision resizes boxes by factors that it would copy to a GPU one by
                # one.
                seen.images, host = original_transform(given, wanted)
            seen.targets = [{key: moved(value, device) for key, value in target.items()} for target in host]
            transformed(seen.images)
            # R-CNNs look at the boxes before they go to the RPN; to look on a GPU is to wait.
            return seen.images, host if self.two_stages else seen.targets

        def backbone(batch: Tensor) -> dict[str, Tensor]:
            seen.features = self.features(batch)
            computed(seen.images)
            # torchvision makes its anchors in the maps' precision: at half of it they are off by whole pixels.
            return full_precision(as_pyramid(seen.features))

        stand_ins = {
            "transform": _stand_in(transform, original_transform),
            "backbone": Calling(backbone, self.model.backbone),
        }
        with ExitStack() as stack:
            stack.enter_context(replaced(self.model, **stand_ins))
            stack.enter_context(self._reading_heads(seen))
            stack.enter_context(self.recorder.watching())
            if towers:
                watching = known(self.towers).watching(lambda branch, level: seen.towers[branch].append(level))
                seen.towers = {branch: [] for branch in Towers.BRANCHES}
                stack.enter_context(watching)
            if not self.model.training:
                stack.enter_context(self._scoring(targets))
            # Not through a compiled forward: it would be translated anew for the stand-ins of every pass.
            seen.losses = self.model._call_impl(images, targets)
        return seen

    def read(self, features: dict[str, Tensor], images: ImageList, targets: Targets) -> dict[str, Tensor]:
        """The losses that the network's heads read from *features*; its layers inside stay in evaluation mode."""
        pyramid = full_precision(as_pyramid(features))
        stand_ins = {
            "transform": _stand_in(lambda *_: (images, targets), self.model.transform),
            "backbone": Calling(lambda _: pyramid, self.model.backbone),
        }
        with replaced(self.model, **stand_ins), self._reading_heads(Pass()), self._scoring(targets):
            return self.model._call_impl(list(images.tensors), targets)

    def proposal_scores(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class scores (M, K) that the RoI head gives to *proposals*, boxes (n, 4) a picture, on *features*.

        And the vectors (M, D) that it makes them of.
        """
        heads = self.model.roi_heads
        pyramid = full_precision(as_pyramid(features))
        vectors = heads.box_head(heads.box_roi_pool(pyramid, proposals, sizes))
        logits = heads.box_predictor(vectors)[0]
        # A head that ends in maps leaves their pooling to the predictor.
        return full_precision(logits), full_precision(vectors.flatten(2).mean(dim=2) if vectors.dim() > 2 else vectors)

    def region_classes(self, seen: Pass) -> Tensor:
        """Classes (M,) of the regions that were sampled in a pass, as the RoI head assigned them; 0: background."""
        proposals = known(seen.proposals)
        boxes = [target["boxes"].to(proposals[0].dtype) for target in seen.targets]
        labels = [target["labels"] for target in seen.targets]
        return torch.cat(self.model.roi_heads.assign_targets_to_proposals(proposals, boxes, labels)[1])

    def anchors(self, features: dict[str, Tensor], images: ImageList) -> dict[str, Tensor]:
        """Its own anchors (H, W, A, 4) on each output of the backbone, in pixels of the batch."""
        maps = {name: feature for name, feature in features.items() if name in outputs(features)}
        generator = known(self.anchor_generator)
        anchors = anchors_of(generator, list(maps.values()), images)
        shapes = [
            (*feature.shape[2:], count, 4)
            for feature, count in zip(maps.values(), generator.num_anchors_per_location(), strict=True)
        ]
        levels = anchors.split([height * width * count for height, width, count, _ in shapes])
        return {name: level.view(shape) for name, level, shape in zip(maps, levels, shapes, strict=True)}

    def confidence(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """How sure its proposals, or its dense head, are of an object in each cell of its outputs: (N, 1, H, W)."""
        if self.dense is None:
            return {name: level.sigmoid().amax(1, keepdim=True) for name, level in self.objectness(features).items()}
        maps = full_precision({name: features[name] for name in outputs(features)})
        return dict(zip(maps, self.dense.confidence_maps(tuple(maps.values())), strict=True))

    def objectness(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What its first stage gives each anchor of every cell of its outputs, before the sigmoid: (N, A, H, W)."""
        maps = full_precision({name: features[name] for name in outputs(features)})
        return dict(zip(maps, full_precision(self.model.rpn.head(list(maps.values()))[0]), strict=True))

    @property
    def anchor_generator(self) -> AnchorGenerator | DefaultBoxGenerator | None:
        """What makes its anchors (SSD's default boxes), of a detector that has the usual kind."""
        generator = (
            self.model.rpn.anchor_generator if self.two_stages else getattr(self.model, "anchor_generator", None)
        )
        return generator if isinstance(generator, AnchorGenerator | DefaultBoxGenerator) else None

    @property
    def rpn_anchors(self) -> int:
        """Anchors of a cell that its first stage scores; 0 where that cannot be told, or levels have other numbers."""
        generator = self.anchor_generator
        counts = set(generator.num_anchors_per_location()) if self.two_stages and generator is not None else set()
        return counts.pop() if len(counts) == 1 else 0

    def columns(self, features: dict[str, Tensor], sizes: list[tuple[int, int]]) -> tuple[int, int]:
        """Classes that it scores, background included, and D of the vectors that it makes the scores of.

        Each 0 where it cannot be told.
        """
        if self.two_stages:
            box = next(iter(features.values())).new_tensor([[0.0, 0.0, 16.0, 16.0]], dtype=torch.float32)
            like = next(self.model.roi_heads.parameters())
            logits, vectors = self.proposal_scores(features, [box.to(like.dtype)], sizes)
            return logits.shape[1], vectors.shape[1]
        head = getattr(getattr(self.model, "head", None), "classification_head", None)
        return next((int(getattr(head, key)) for key in ("num_classes", "num_columns") if hasattr(head, key)), 0), 0

    @contextmanager
    def _reading_heads(self, seen: Pass) -> Iterator[None]:
        """Note the RoIs and their scores in *seen*, and let no head return half precision."""
        model = self.model

        def predicted(module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            output = full_precision(output)
            seen.logits = output[0]
            return output

        def scored(module: nn.Module, inputs: tuple, output: dict[str, Tensor]) -> None:
            seen.logits = known(self.dense).scored(output["cls_logits"])

        def pooling(module: nn.Module, inputs: tuple) -> None:
            seen.proposals = inputs[1]

        def on_device(module: nn.Module, inputs: tuple) -> tuple:
            return (*inputs[:-1], seen.targets) if seen.targets else inputs

        with ExitStack() as stack:

            def hook(handle: Any) -> None:
                stack.callback(handle.remove)

            if self.two_stages:
                hook(model.rpn.head.register_forward_hook(lambda module, inputs, output: full_precision(output)))
                hook(model.rpn.register_forward_pre_hook(on_device))
                hook(model.roi_heads.register_forward_pre_hook(on_device))
                hook(model.roi_heads.box_predictor.register_forward_hook(predicted))
                hook(model.roi_heads.box_roi_pool.register_forward_pre_hook(pooling))
            elif isinstance(head := getattr(model, "head", None), nn.Module):
                hook(head.register_forward_hook(lambda module, inputs, output: full_precision(output)))
            if self.dense is not None:
                hook(model.head.register_forward_hook(scored))
                stack.enter_context(self.dense.noting_matches(seen.matched.extend))
            yield

    @contextmanager
    def _scoring(self, targets: Targets) -> Iterator[None]:
        """The network computes losses while the layers inside its heads (batch norm, dropout) do not learn."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model))
            self.model.training = True
            if self.two_stages:
                heads = self.model.roi_heads
                self.model.rpn.training = heads.training = True
                # On targets without masks or keypoints only the box head has something to say.
                for kind in self._heads_without(targets):
                    stack.enter_context(replaced(heads, **{f"{kind}_roi_pool": None}))
            yield

    def _heads_without(self, targets: Targets) -> list[str]:
        """``mask`` and ``keypoint``, where there is such a head and not every target has something for it."""
        heads = getattr(self.model, "roi_heads", None)
        return [
            kind
            for kind in ("mask", "keypoint")
            if getattr(heads, f"{kind}_roi_pool", None) is not None and not all(f"{kind}s" in t for t in targets)
        ]

    def require_targets_of_heads(self, targets: Targets) -> None:
        """Raise InputError where a head of the network's has nothing to learn from."""
        if missing := self._heads_without(targets):
            raise InputError(
                f"the {self.role} has a {missing[0]} head, but not every target has '{missing[0]}s'; give them, or "
                f"take the head away: {self.role}.roi_heads.{missing[0]}_roi_pool = None"
            )

    @contextmanager
    def normalisation_on(self, device: torch.device) -> Iterator[None]:
        """The transform's mean and deviation as tensors of *device*: torchvision copies lists for each picture."""
        transform = self.model.transform
        given = normalisation(transform)
        if given is None:
            yield
            return
        if self._normalisation is None or self._normalisation[0] != (device, given):
            tensors = {
                name: torch.as_tensor(value, dtype=torch.float32, device=device) for name, value in given.items()
            }
            self._normalisation = (device, given), tensors
        vars(transform).update(self._normalisation[1])
        try:
            yield
        finally:
            vars(transform).update(given)


def _stand_in(transform: Callable, instead_of: nn.Module) -> Calling:
    """*transform* in the place of a detector's; in training there are no detections to be scaled back."""
    return Calling(transform, instead_of, postprocess=lambda detections, *_: detections)


def normalisation(transform: nn.Module) -> dict[str, Any] | None:
    """``image_mean`` and ``image_std`` of a torchvision transform; None of one that has its own ways."""
    names = ("image_mean", "image_std")
    return {name: vars(transform)[name] for name in names} if all(name in vars(transform) for name in names) else None


def moved(value: Any, device: torch.device) -> Any:
    """*value* on *device*; targets may hold more than tensors (an ``image_id``, say)."""
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _is_compiled(network: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in network.modules()
    )
