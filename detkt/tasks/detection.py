"""Knowledge from torchvision's R-CNN detectors: hooks on the backbone and on the RoI predictor.

The detectors stay unmodified. One image transform, the student's, serves both nets; the teacher runs its backbone
alone, and its RoI head on the student's sampled RoIs only where logits are asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from detkt.base.errors import InputError
from detkt.knowledge import Knowledge, Spec, scaled
from detkt.methods.base import Needs, outputs
from detkt.models.layout import channels_last
from detkt.tasks.base import LayerRecorder, TeacherMaps, evaluating, map_specs

Targets = list[dict[str, Tensor]]

PIXELS_AT_ONCE = 2**18


def named_outputs(backbone_output: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's output by name: ``output``, or ``output.<level>`` for a feature pyramid."""
    if isinstance(backbone_output, Tensor):
        return {"output": backbone_output}
    return {f"output.{level}": feature for level, feature in backbone_output.items()}


def as_pyramid(features: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The reverse of :func:`named_outputs`, in the form RPN and RoI heads read (a lone map is level 0)."""
    if "output" in features:
        return OrderedDict([("0", features["output"])])
    prefix = "output."
    return OrderedDict((k.removeprefix(prefix), v) for k, v in features.items() if k.startswith(prefix))


@dataclass
class Sampled:
    """The RoIs a training pass sampled: boxes (n, 4) a picture, and class scores (M, K) of all of them."""

    proposals: list[Tensor] | None = None
    logits: Tensor | None = None


class _Detector:
    """One detector with its hooks: the inner layers and the RoI predictor's input boxes and output scores."""

    def __init__(self, model: GeneralizedRCNN, role: str) -> None:
        self.model, self.role = model, role
        channels_last(model.backbone)
        self.recorder = LayerRecorder(model.backbone, [], role)
        self._sampled: Sampled | None = None  # only inside losses(): nothing outlives a pass
        # Under autocast heads return half precision, and torchvision would decode boxes in it (errors of whole pixels).
        model.rpn.head.register_forward_hook(_to_float)
        model.roi_heads.box_predictor.register_forward_hook(self._predicted)
        model.roi_heads.box_roi_pool.register_forward_pre_hook(self._pooling)

    def _predicted(self, module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        output = _to_float(module, inputs, output)
        if self._sampled is not None:
            self._sampled.logits = output[0]
        return output

    def _pooling(self, module: nn.Module, inputs: tuple) -> None:
        if self._sampled is not None:
            self._sampled.proposals = inputs[1]

    def watch(self, layers: Iterable[str]) -> None:
        names = [name for name in dict.fromkeys(layers) if name.split(".")[0] != "output"]
        self.recorder = LayerRecorder(self.model.backbone, names, self.role)

    def compile(self) -> None:
        self.features = torch.compile(self.features)

    def __getstate__(self) -> dict[str, Any]:
        """Hooks lead from the network to here: with a compiled function it could be neither copied nor pickled."""
        return {name: value for name, value in vars(self).items() if name != "features"}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Backbone alone: its outputs by name and the watched inner layers."""
        with self.recorder.recording() as inner:
            outputs = named_outputs(self.model.backbone(images))
        return {**outputs, **inner}

    def losses(
        self, features: dict[str, Tensor], images: ImageList, targets: Targets
    ) -> tuple[dict[str, Tensor], Sampled]:
        """RPN and RoI losses on *features*, and the RoIs they were computed on."""
        # torchvision makes its anchors in the maps' precision: at half of it they are off by whole pixels.
        pyramid = as_pyramid({name: feature.float() for name, feature in features.items()})
        self._sampled = sampled = Sampled()
        try:
            proposals, rpn_losses = self.model.rpn(images, pyramid, targets)
            _, roi_losses = self.model.roi_heads(pyramid, proposals, images.image_sizes, targets)
        finally:
            self._sampled = None
        return {**roi_losses, **rpn_losses}, sampled

    def anchors(self, features: dict[str, Tensor], images: ImageList) -> dict[str, Tensor]:
        """The RPN's anchors (H, W, A, 4) on each output of the backbone, in pixels of the batch."""
        maps = {name: feature for name, feature in features.items() if name in outputs(features)}
        generator = self.model.rpn.anchor_generator
        # They are the same for all pictures, and in the precision of the maps: one map of one channel does.
        of_one = ImageList(images.tensors, images.image_sizes[:1])
        (anchors,) = generator(of_one, [feature[:1, :1].float() for feature in maps.values()])
        shapes = [
            (*feature.shape[2:], count, 4)
            for feature, count in zip(maps.values(), generator.num_anchors_per_location(), strict=True)
        ]
        levels = anchors.split([height * width * count for height, width, count, _ in shapes])
        return {name: level.view(shape) for name, level, shape in zip(maps, levels, shapes, strict=True)}

    @property
    def num_classes(self) -> int:
        return self.model.roi_heads.box_predictor.cls_score.out_features


def _to_float(module: nn.Module, inputs: tuple, output):
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_to_float(module, inputs, part) for part in output)


class DetectionTask:
    """Student and teacher are torchvision ``GeneralizedRCNN``s (Faster R-CNN and kin) with the same normalisation.

    Args:
        student: trained; its transform serves both nets.
        teacher: frozen; None for plain training.
        student_classes, teacher_classes: names without background, compared where scores are.

    Raises:
        InputError: not an R-CNN, one net in both roles, the two normalise pictures differently, or class names that are
            not as many as a net's classes.
    """

    def __init__(
        self,
        student: GeneralizedRCNN,
        teacher: GeneralizedRCNN | None = None,
        student_classes: Iterable[str] = (),
        teacher_classes: Iterable[str] = (),
    ) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            if model is not None and not isinstance(model, GeneralizedRCNN):
                raise InputError(
                    f"the {role} is a {type(model).__name__}, not a torchvision R-CNN detector; classifiers are "
                    "detkt.models.build_classifier(NAME, classes) or detkt.models.Classifier(backbone, head)"
                )
        if teacher is not None:
            if teacher is student:
                raise InputError("student and teacher are the same object; give a copy (copy.deepcopy) as the teacher")
            for key in ("image_mean", "image_std"):
                ours, theirs = getattr(student.transform, key), getattr(teacher.transform, key)
                if list(ours) != list(theirs):
                    raise InputError(
                        f"student and teacher must share one image transform, but their {key} differ: "
                        f"{ours} and {theirs}"
                    )
        self.student, self.teacher = student, teacher
        self.teacher_cache: TeacherMaps | None = None
        self.offered = ~Needs.NOTHING
        self._normalisation: tuple[tuple, dict[str, Tensor]] | None = None
        self._student = _Detector(student, "student")
        self._teacher = _Detector(teacher, "teacher") if teacher is not None else None
        self._classes = {"student": tuple(student_classes), "teacher": tuple(teacher_classes)}
        for detector in filter(None, (self._student, self._teacher)):
            classes = self._classes[detector.role]
            if classes and len(classes) != detector.num_classes - 1:
                raise InputError(
                    f"{detector.role}_classes has {len(classes)} names, but the {detector.role} has "
                    f"{detector.num_classes} classes, background included"
                )

    def watch(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """See :class:`detkt.tasks.base.Task`."""
        self._student.watch(student_layers)
        if self._teacher is None:
            return self._probe(self._student), None
        self._teacher.watch(teacher_layers)
        return self._probe(self._student), self._probe(self._teacher)

    def compile(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        for detector in filter(None, (self._student, self._teacher)):
            detector.compile()

    def _probe(self, detector: _Detector) -> Spec:
        """Shapes on a noise picture of 4:5 at the training size (the student's), padded as batches are."""
        model, transform = detector.model, self.student.transform
        device = next(model.parameters()).device
        short, divisor = transform.min_size[-1], transform.size_divisible
        height, width = (-(-side // divisor) * divisor for side in (short, short * 5 // 4))
        picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad(), evaluating(model.backbone):
            maps = detector.features((picture - 0.5) * 4)
        return Spec(map_specs(maps, detector.role), detector.num_classes, self._classes[detector.role])

    def pictures(self, targets: Targets) -> list[int]:
        """Indices of a batch's pictures in the data set."""
        return [int(target["image_id"]) for target in targets]

    def teacher_maps(self, images: list[Tensor]) -> dict[str, Tensor]:
        """See :class:`detkt.tasks.base.Task`."""
        device = next(self.student.parameters()).device
        with torch.no_grad(), evaluating(self.student.transform):
            batch, _ = self.student.transform([image.to(device, non_blocking=True) for image in images])
            return self._teacher.features(batch.tensors)

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`detkt.tasks.base.Task`."""
        transform = self.student.transform
        with evaluating(transform):
            resized, _ = transform.resize(torch.empty(1, height, width))
        divisor = transform.size_divisible
        return tuple(-(-side // divisor) * divisor for side in resized.shape[-2:])

    def run(
        self, images: list[Tensor], targets: Targets, needs: Needs
    ) -> tuple[Knowledge | None, Knowledge | None, DetectionHeads]:
        """Images: list of (3, H, W) in [0, 1]; targets as torchvision's. See :class:`detkt.tasks.base.Task`.

        They may be on another device than the networks.

        Raises:
            InputError: the student's losses are asked for while it is in evaluation mode, where it has none; targets on
                the CPU hold boxes that are inverted, empty or not finite, or labels that are none of its classes.
        """
        if Needs.STUDENT in needs and not self.student.training:
            raise InputError(
                "the student is in evaluation mode: call train() on it, or on the distiller, before training"
            )
        for number, target in enumerate(targets):
            _check_target(target, f"target {number} of the batch", self._student.num_classes)
        device = next(self.student.parameters()).device
        images = [image.to(device, non_blocking=True) for image in images]
        host_targets = targets
        with self._normalisation_on(device):
            # Targets where they come from: torchvision resizes boxes by factors that it would copy to a GPU one by one.
            batch, targets = self.student.transform(images, targets)
        targets = [{key: _moved(value, device) for key, value in target.items()} for target in targets]
        valid = _valid(batch)
        heads = DetectionHeads({"student": self._student, "teacher": self._teacher}, batch, targets)
        student = teacher = None
        from_teacher = bool(needs & (Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS))
        if from_teacher and self.teacher_cache is None:
            # First: of its activations nothing but these maps is left when the student's pile up.
            teacher = Knowledge(self._teacher_features(batch, host_targets), valid=valid)
        if needs & (Needs.STUDENT | Needs.STUDENT_FEATURES):
            features = self._student.features(batch.tensors)
            student = Knowledge(features, valid=valid)
            height, width = batch.tensors.shape[-2:]
            if Needs.BOXES in needs:
                student.boxes = [scaled(target["boxes"].float(), 1 / width, 1 / height) for target in targets]
            if Needs.ANCHORS in needs:
                anchors = self._student.anchors(features, batch)
                student.anchors = {name: scaled(found, 1 / width, 1 / height) for name, found in anchors.items()}
        if from_teacher and self.teacher_cache is not None:
            # Here, before the RoIs are sampled, cached maps are read while a GPU still computes the student's.
            teacher = Knowledge(self._teacher_features(batch, host_targets), valid=valid)
        if Needs.STUDENT in needs:
            student.losses, sampled = self._student.losses(features, batch, targets)
            student.classification_loss = "loss_classifier"
            if needs & (Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS):
                student.logits = sampled.logits
                student.labels = self._roi_labels(sampled.proposals, targets)
        if Needs.TEACHER_LOGITS in needs:
            with torch.no_grad():
                teacher.logits = self._teacher_logits(teacher.features, sampled.proposals, batch)
        return student, teacher, heads

    @contextmanager
    def _normalisation_on(self, device: torch.device) -> Iterator[None]:
        """The transform's mean and deviation as tensors of *device*: torchvision copies lists for each picture."""
        transform, names = self.student.transform, ("image_mean", "image_std")
        given = {name: getattr(transform, name) for name in names}
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

    def _teacher_features(self, batch: ImageList, targets: Targets) -> dict[str, Tensor]:
        """The backbone's maps of *batch*, or the cached ones of the pictures that *targets* name."""
        if self.teacher_cache is not None:
            flipped = [bool(target["flipped"]) for target in targets]
            return self.teacher_cache.read(self.pictures(targets), flipped, batch.tensors.device)
        images = batch.tensors
        # On the CPU more pictures at once are no faster, but the first layers' maps of all of them fill the memory.
        at_once = len(images) if images.is_cuda else max(1, PIXELS_AT_ONCE // images[0, 0].numel())
        with torch.no_grad():
            if at_once >= len(images):
                return self._teacher.features(images)
            parts = [self._teacher.features(part) for part in images.split(at_once)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _teacher_logits(self, features: dict[str, Tensor], proposals: list[Tensor], batch: ImageList) -> Tensor:
        """The teacher's RoI head on the student's sampled RoIs (M, K): no RPN of the teacher."""
        heads = self.teacher.roi_heads
        pooled = heads.box_roi_pool(as_pyramid(features), proposals, batch.image_sizes)
        return heads.box_predictor(heads.box_head(pooled))[0]

    def _roi_labels(self, proposals: list[Tensor], targets: Targets) -> Tensor:
        """Classes (M,) of the student's sampled RoIs, as its RoI head assigned them (0 is background)."""
        boxes = [target["boxes"].float() for target in targets]
        labels = [target["labels"] for target in targets]
        assigned = self.student.roi_heads.assign_targets_to_proposals(proposals, boxes, labels)[1]
        return torch.cat(assigned)


class DetectionHeads:
    """RPN and RoI head of both detectors on the current batch (see :class:`detkt.methods.base.Heads`)."""

    def __init__(self, detectors: dict[str, _Detector | None], images: ImageList, targets: Targets) -> None:
        self._detectors, self._images, self._targets = detectors, images, targets

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """RPN + RoI losses that the head of *role* reads from *features* (``output...`` maps by name)."""
        detector = self._detectors[role]
        with _scoring(detector.model):
            return detector.losses(features, self._images, self._targets)[0]


@contextmanager
def _scoring(model: GeneralizedRCNN) -> Iterator[None]:
    """RPN and RoI heads compute losses while the layers inside them (batch norm, dropout) stay in eval mode."""
    with evaluating(model.rpn), evaluating(model.roi_heads):
        model.rpn.training = model.roi_heads.training = True
        yield


def _check_target(target: dict[str, Tensor], where: str, num_classes: int) -> None:
    """InputError for what torchvision would make garbage of; on a GPU, where looking means waiting, only for shapes."""
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        shapes = f"boxes of shape {tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}"
        raise InputError(f"{where}: {shapes}; they must be (n, 4) and (n,)")
    if boxes.is_cpu and not (right := (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)).all():
        raise InputError(
            f"{where}: box {boxes[~right][0].tolist()} is inverted, empty or not finite; give x1 < x2 and y1 < y2"
        )
    if labels.is_cpu and len(labels) and not 1 <= labels.min() <= labels.max() < num_classes:
        raise InputError(
            f"{where}: labels {labels.tolist()}; they must be 1 to {num_classes - 1} (0 is the background)"
        )


def _moved(value: Any, device: torch.device) -> Any:
    """*value* on *device*; targets may hold more than tensors (an ``image_id``, say)."""
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _valid(batch: ImageList) -> list[tuple[float, float]] | None:
    height, width = batch.tensors.shape[-2:]
    valid = [(h / height, w / width) for h, w in batch.image_sizes]
    return None if all(share == (1.0, 1.0) for share in valid) else valid
