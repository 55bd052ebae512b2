"""Knowledge from torchvision's detectors, of two stages and of one, student and teacher alike or not.

One image transform, the student's, serves both nets; the teacher runs its backbone alone, on the batch in its own
normalisation, and at its own size where asked to (:mod:`detkt.tasks.own_size`), and its RoI head on the student's
sampled RoIs only where logits are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from detkt.base.errors import InputError, first_line
from detkt.knowledge import Dense, Knowledge, Rows, Scores, Spec, Tower, known, scaled
from detkt.methods.base import Needs, frozen
from detkt.methods.reductions import full_precision
from detkt.tasks.base import (
    FrozenTeacher,
    TeacherMaps,
    evaluating,
    map_specs,
    require_one_precision,
    require_training,
    require_two_nets,
)
from detkt.tasks.dense import DenseHead, leading_rows
from detkt.tasks.detectors import Detector, Pass, Targets, as_pyramid, moved, named_outputs, normalisation
from detkt.tasks.own_size import SETTINGS, OwnSize, framed, resized_size
from detkt.tasks.shared_classes import SharedClasses, shared_classes

PIXELS_AT_ONCE = 2**18
PROBED = 256  # pixels of the short side, for a transform that does not tell its own

FROM_TEACHER = Needs.TEACHER_FEATURES | Needs.TEACHER_LOGITS | Needs.TEACHER_CONFIDENCE | Needs.HEADS

__all__ = ["DetectionTask", "as_pyramid", "named_outputs"]


class DetectionTask:
    """Student and teacher are torchvision detectors: Faster R-CNN and kin, RetinaNet, FCOS, SSD.

    Args:
        student: trained; its transform serves both nets.
        teacher: frozen until :meth:`close`; None for plain training.
        student_classes, teacher_classes: names without background; scores are compared of those that both know.
        teacher_cache: the teacher's maps of the training pictures, to be read in place of its backbone's passes.
        class_map: a class of the student's -> the teacher's that it is, None for none; the others are found by name.
        own_size: whether the teacher sees the pictures at the size of its own transform, not at the student's.

    Raises:
        InputError: no such detector, one net or part of a net in both roles, or class names that are not as many as a
            net's classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        student_classes: Iterable[str] = (),
        teacher_classes: Iterable[str] = (),
        teacher_cache: TeacherMaps | None = None,
        class_map: Mapping[str, str | None] | None = None,
        own_size: bool = False,
    ) -> None:
        self.student: Any = student  # torchvision's parts have no types
        self.teacher, self._cache = teacher, teacher_cache
        self._student = Detector(student, "student")
        self._class_map = class_map
        self.shared: SharedClasses | None = None  # what of the classes is compared; None: all, as they stand
        self._classes = {"student": tuple(student_classes), "teacher": tuple(teacher_classes)}
        transform: Any = student.transform
        given = normalisation(transform)
        self._channels = len(given["image_mean"]) if given is not None else 0
        self._num_classes = 0
        self._teacher: Detector | None = None
        self._to_teacher: tuple[Tensor, Tensor] | None = None
        self.own_size: OwnSize | None = None
        if teacher is not None:
            require_two_nets(student, teacher)
            require_one_precision(student, teacher)
            self._teacher = Detector(teacher, "teacher")
            self._to_teacher = _conversion(self._student.model.transform, self._teacher.model.transform)
            if own_size and not _same_size(self._student.model.transform, self._teacher.model.transform):
                self.own_size = OwnSize(self._teacher.model.transform)
            self._frozen = FrozenTeacher(teacher)
        self.offered = self._offered()

    def _offered(self) -> Needs:
        missing, teacher = Needs.NOTHING, self._teacher
        if self._student.anchor_generator is None:
            missing |= Needs.ANCHORS
        if self._student.towers is None or teacher is None or teacher.towers is None:
            missing |= Needs.HEADS
        if teacher is None or not (teacher.two_stages or teacher.dense is not None):
            missing |= Needs.TEACHER_CONFIDENCE
        return ~missing

    def close(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        self._student.close()
        if self._teacher is not None:
            self._teacher.close()
            self._frozen.close()

    def reveal(self, student_layers: Iterable[str], teacher_layers: Iterable[str]) -> tuple[Spec, Spec | None]:
        """See :class:`detkt.tasks.base.Task`."""
        self._student.reveal(student_layers)
        student = self._probe(self._student)
        self._num_classes = student.num_classes
        if self._teacher is None:
            return student, None
        self._teacher.reveal(teacher_layers)
        teacher = self._probe(self._teacher)
        self.shared = shared_classes(student, teacher, self._class_map)
        if self.shared is None:
            return student, teacher
        return self.shared.told(student), self.shared.told(teacher)

    def compile(self) -> None:
        """See :class:`detkt.tasks.base.Task`."""
        for detector in filter(None, (self._student, self._teacher)):
            detector.compile()

    def _probe(self, detector: Detector) -> Spec:
        """Shapes on a noise picture of 4:5 at the training size (the student's), padded as batches are."""
        model, transform = detector.model, self.student.transform
        weight = next(model.parameters())
        if fixed := getattr(transform, "fixed_size", None):
            width, height = fixed
        else:
            short, divisor = getattr(transform, "min_size", (PROBED,))[-1], getattr(transform, "size_divisible", 32)
            height, width = (-(-side // divisor) * divisor for side in (short, short * 5 // 4))
        own = self.own_size if detector.role == "teacher" else None
        if own is not None:
            height, width = own.canvas(height, width, [(height, width)], [(height, width)])
        picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        picture = ((picture - 0.5) * 4).to(weight.device, weight.dtype)
        scores: Scores | None = None
        tower = None
        with torch.no_grad(), evaluating(model), detector.recorder.watching():
            try:
                maps = detector.features(picture)
            except (RuntimeError, ValueError) as error:
                whose = "" if own else "the student's "
                raise InputError(
                    f"the {detector.role} cannot take {whose}pictures of {height} x {width} "
                    f"({first_line(error)}); choose larger ones (min_size) or another net"
                ) from None
            classes, vectors = detector.columns(maps, [(height, width)])
            if detector.two_stages:
                scores = Scores("regions", width=vectors, rpn_anchors=detector.rpn_anchors)
            if (dense := detector.dense) is not None:
                levels = list(as_pyramid(maps).values())
                anchors = dense.anchors(levels, ImageList(picture, [(height, width)]))
                scores = Scores("anchors", dense.sigmoid, anchors, resized=own is not None)
                if detector.towers is not None:
                    sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
                    tower = Tower(detector.towers.channels, sizes)
        names = self._classes[detector.role]
        if names and classes and len(names) != classes - 1:
            raise InputError(
                f"{detector.role}_classes has {len(names)} names, but the {detector.role} has "
                f"{classes} classes, background included"
            )
        return Spec(map_specs(maps, detector.role), classes, names, scores, tower, height)

    def pictures(self, targets: Targets) -> list[int]:
        """Indices of a batch's pictures in the data set."""
        return [int(target["image_id"]) for target in targets]

    def teacher_maps(self, images: list[Tensor]) -> dict[str, Tensor]:
        """See :class:`detkt.tasks.base.Task`."""
        device = next(self.student.parameters()).device
        with torch.no_grad(), evaluating(self.student.transform):
            images = [image.to(device, non_blocking=True) for image in images]
            batch, _ = self._student.transform(list(images))
            return self._teacher_pass(batch, self._frame(batch, images), images)

    def input_size(self, width: int, height: int) -> tuple[int, ...]:
        """See :class:`detkt.tasks.base.Task`. With the teacher's own size, that of its batch besides."""
        transform = self.student.transform
        view = resized_size(transform, height, width)
        divisor = transform.size_divisible
        tall, wide = (-(-side // divisor) * divisor for side in view)
        if self.own_size is None:
            return tall, wide
        return tall, wide, *self.own_size.canvas(tall, wide, [view], [(height, width)])

    def _frame(self, batch: ImageList, images: list[Tensor]) -> ImageList:
        """The teacher's batch: the student's, or its own without its pictures."""
        if self.own_size is None:
            return batch
        frame = self.own_size.frame(batch, [(image.shape[-2], image.shape[-1]) for image in images])
        return batch if frame.tensors.shape[-2:] == batch.tensors.shape[-2:] else frame

    def run(
        self, images: list[Tensor], targets: Targets, needs: Needs
    ) -> tuple[Knowledge | None, Knowledge | None, DetectionHeads]:
        """Images: list of (3, H, W) in [0, 1]; targets as torchvision's. See :class:`detkt.tasks.base.Task`.

        They may be on another device than the networks.

        Raises:
            InputError: the student is to learn while it is in evaluation mode; pictures or targets are missing or
                malformed, or hold (on the CPU) boxes that are inverted, empty or not finite, or labels that are none
                of its classes.
        """
        if Needs.STUDENT in needs:
            require_training(self.student)
        _check_pictures(images, self._channels)
        _check_targets(images, targets, self._num_classes)
        if Needs.STUDENT in needs:
            self._student.require_targets_of_heads(targets)
        weight = next(self.student.parameters())
        device = weight.device
        images = [image.to(device, non_blocking=True).to(weight.dtype) for image in images]
        from_teacher = bool(needs & FROM_TEACHER)
        teacher_features: dict[str, Tensor] = {}
        frames: list[ImageList] = []

        def before(batch: ImageList) -> None:
            """First: of the teacher's activations nothing but its maps is left when the student's pile up."""
            if from_teacher:
                frames.append(self._frame(batch, images))
            if from_teacher and self._cache is None:
                with torch.no_grad():
                    teacher_features.update(self._teacher_pass(batch, frames[0], images))

        def after(batch: ImageList) -> None:
            """Before the RoIs are sampled: cached maps are read while a GPU still computes the student's."""
            if from_teacher and self._cache is not None:
                flipped = [bool(target["flipped"]) for target in targets]
                teacher_features.update(self._cache.read(self.pictures(targets), flipped, device))

        if Needs.STUDENT in needs:
            seen = self._student.train_pass(images, targets, before, after, Needs.HEADS in needs)
        else:
            seen = self._maps_alone(images, targets, bool(needs & Needs.STUDENT_FEATURES))
            before(seen.images)
            after(seen.images)
        frame = frames[0] if frames else seen.images
        valid = _valid(seen.images)
        student = Knowledge(seen.features, valid=valid) if seen.features else None
        teacher = Knowledge(teacher_features, valid=valid) if from_teacher else None
        height, width = seen.images.tensors.shape[-2:]
        if student is not None and Needs.BOXES in needs:
            student.boxes = [scaled(target["boxes"].float(), 1 / width, 1 / height) for target in seen.targets]
        if student is not None and Needs.ANCHORS in needs:
            anchors = self._student.anchors(seen.features, seen.images)
            student.anchors = {name: scaled(found, 1 / width, 1 / height) for name, found in anchors.items()}
        if student is not None and Needs.STUDENT in needs:
            student.losses = seen.losses
            student.classification_loss = "loss_classifier" if self._student.two_stages else "classification"
            if needs & (Needs.STUDENT_LOGITS | Needs.TEACHER_LOGITS):
                self._add_scores(student, teacher if Needs.TEACHER_LOGITS in needs else None, seen, frame)
        if teacher is not None and Needs.TEACHER_CONFIDENCE in needs:
            with torch.no_grad():
                teacher.confidence = known(self._teacher).confidence(teacher.features)
        if student is not None and teacher is not None and Needs.HEADS in needs:
            self._add_towers(student, teacher, seen)
        detectors = {"student": self._student} | ({"teacher": self._teacher} if self._teacher is not None else {})
        return student, teacher, DetectionHeads(detectors, seen, frame)

    def _maps_alone(self, images: list[Tensor], targets: Targets, with_student: bool) -> Pass:
        """The transformed batch, and the student's maps where asked for, without its heads."""
        batch, host = self._student.transform(images, targets)
        device = batch.tensors.device
        seen = Pass(images=batch, targets=[{key: moved(v, device) for key, v in target.items()} for target in host])
        if with_student:
            with torch.no_grad(), evaluating(self._student.backbone), self._student.recorder.watching():
                seen.features = self._student.features(batch.tensors)
        return seen

    def _teacher_pass(self, batch: ImageList, frame: ImageList, pictures: list[Tensor]) -> dict[str, Tensor]:
        """The teacher's maps of *batch*, or of *pictures* in its own *frame*, in its own normalisation; padding stays
        zero."""
        assert self._teacher is not None
        self._frozen.keep()
        images = batch.tensors
        if frame is not batch:
            with self._teacher.normalisation_on(images.device):
                images = known(self.own_size).fill(frame, pictures)
        elif self._to_teacher is not None:
            factor, offset = (part.to(images.device, images.dtype, non_blocking=True) for part in self._to_teacher)
            images = images * factor + offset
            for image, (height, width) in zip(images, batch.image_sizes, strict=True):
                image[:, height:] = 0
                image[:, :, width:] = 0
        # On the CPU more pictures at once are no faster, but the first layers' maps of all of them fill the memory.
        at_once = len(images) if images.is_cuda else max(1, PIXELS_AT_ONCE // images[0, 0].numel())
        with self._teacher.recorder.watching():
            if at_once >= len(images):
                return self._teacher.features(images)
            parts = [self._teacher.features(part) for part in images.split(at_once)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _add_scores(self, student: Knowledge, teacher: Knowledge | None, seen: Pass, frame: ImageList) -> None:
        """Logits, labels and weights of the same rows of both nets; *frame* is the teacher's batch."""
        if seen.logits is None:
            return  # of a head that detkt does not know, which no method that reads scores gets as far as
        ours, theirs = self._student, self._teacher if teacher is not None else None
        scores, labels = {"student": seen.logits}, None
        with torch.no_grad():
            if ours.two_stages:
                labels = ours.region_classes(seen)
                if theirs is not None and teacher is not None:
                    regions = _regions(seen, frame)
                    scores["teacher"], _ = theirs.proposal_scores(teacher.features, regions, frame.image_sizes)
            else:
                labels = known(ours.dense).labels(seen.matched, seen.targets)
                if theirs is not None and teacher is not None:
                    levels = full_precision(list(as_pyramid(teacher.features).values()))
                    scores["teacher"] = known(theirs.dense).logits(levels)
        sigmoid = ours.dense is not None and ours.dense.sigmoid
        if self.shared is not None:
            scores = {role: self.shared.restricted(logits, role, sigmoid) for role, logits in scores.items()}
            labels = self.shared.relabelled(labels)
        if not ours.two_stages:
            scores, labels = self._leading_rows(scores, labels, seen)
        if sigmoid:
            labels = labels.clamp_min(0) - 1  # an object of another class has none of those that are scored
        elif self.shared is not None:
            student.weights, labels = (labels >= 0).to(seen.logits.dtype), labels.clamp_min(0)
        student.logits, student.labels = scores["student"], labels
        if teacher is not None:
            teacher.logits = scores["teacher"]

    def _leading_rows(self, scores: dict[str, Tensor], labels: Tensor, seen: Pass) -> tuple[dict[str, Tensor], Tensor]:
        """*scores* (N, R, K) and *labels* (N, R) of the anchors that are compared: (M, K) and (M,)."""
        rows = _leading(known(self._student.dense), seen, list(scores.values()), labels)
        return {role: _of_pictures(logits, rows) for role, logits in scores.items()}, _of_pictures(labels, rows)

    def _add_towers(self, student: Knowledge, teacher: Knowledge, seen: Pass) -> None:
        """What the dense heads of both nets make of the batch."""
        towers = known(known(self._teacher).towers)
        positives = torch.stack([(matched >= 0).sum().clamp_min(1) for matched in seen.matched]).sum()
        student.dense = Dense(seen.towers["classification"], seen.towers["regression"], positives=positives)
        with torch.no_grad():
            levels = full_precision(list(as_pyramid(teacher.features).values()))
            classification, regression = towers.first(levels)
            logits, codes = towers.rest(classification, regression)
            boxes = towers.decoded(codes, towers.dense.anchors(levels, seen.images))
            shown = towers.dense.shown(levels, teacher.mask)
            teacher.dense = Dense(classification, regression, logits, boxes, shown)


class DetectionHeads:
    """The heads of both detectors on the current batch (see :class:`detkt.methods.base.Heads`).

    *seen*: the student's pass; *frame*: the teacher's batch, the student's unless it has its own size.
    """

    def __init__(self, detectors: dict[str, Detector], seen: Pass, frame: ImageList) -> None:
        self._detectors, self._seen = detectors, seen
        self._batches = {"student": (seen.images, seen.targets), "teacher": (seen.images, seen.targets)}
        if frame is not seen.images:
            self._batches["teacher"] = (
                frame,
                [{**target, "boxes": framed(target["boxes"], seen.images, frame)} for target in seen.targets],
            )

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """The losses that the heads of *role* read from *features* (``output...`` maps by name)."""
        return self._detectors[role].read(features, *self._batches[role])

    def rows(self, features: dict[str, Tensor], role: str) -> Rows:
        """See :class:`detkt.methods.base.Heads`."""
        detector, seen, frame = self._detectors[role], self._seen, self._batches[role][0]
        student = self._detectors["student"]
        with evaluating(detector.model), frozen(detector.model):
            if detector.two_stages:
                logits, vectors = detector.proposal_scores(features, _regions(seen, frame), frame.image_sizes)
                return Rows(logits, student.region_classes(seen), vectors)
            dense = known(detector.dense)
            logits = dense.logits(full_precision(list(as_pyramid(features).values())))
        classes = known(student.dense).labels(seen.matched, seen.targets)
        rows = _leading(known(student.dense), seen, [known(seen.logits)], classes)
        return Rows(_of_pictures(logits, rows), _of_pictures(classes, rows))

    def objectness(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """See :class:`detkt.methods.base.Heads`."""
        detector = self._detectors[role]
        with evaluating(detector.model), frozen(detector.model):
            return detector.objectness(features)

    def remaining(self, classification: list[Tensor], regression: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`detkt.methods.base.Heads`."""
        towers = known(self._detectors["teacher"].towers)
        logits, codes = towers.rest(classification, regression)
        with torch.no_grad():
            anchors = towers.dense.anchors(classification, self._batches["teacher"][0])
        return logits, towers.decoded(codes, anchors)


def _regions(seen: Pass, frame: ImageList) -> list[Tensor]:
    """The student's sampled regions (n, 4) of each picture, in pixels of the batch *frame*."""
    regions = known(seen.proposals)
    return regions if frame is seen.images else [framed(boxes, seen.images, frame) for boxes in regions]


def _leading(dense: DenseHead, seen: Pass, scores: list[Tensor], classes: Tensor) -> list[Tensor]:
    """Indices (n,) of the anchors of each picture of a pass that are compared; see `leading_rows`."""
    pictures = Knowledge(valid=_valid(seen.images))
    with torch.no_grad():
        # Counted on the host: to ask a GPU would be to wait for it.
        maps = list(as_pyramid(seen.features).values())
        shown = dense.shown(maps, lambda level: pictures.mask(torch.empty(level.shape[-2:])))
        return leading_rows([dense.confidence(logits) for logits in scores], classes, shown)


def _of_pictures(values: Tensor, rows: list[Tensor]) -> Tensor:
    """*values* (N, R, ...) of these rows of each picture, in one tensor (M, ...)."""
    return torch.cat([picture[row] for picture, row in zip(values, rows, strict=True)])


def _same_size(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether two transforms make pictures equally large."""
    return all(getattr(student, name, None) == getattr(teacher, name, None) for name in SETTINGS)


def _conversion(student: nn.Module, teacher: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and offset (3, 1, 1) from pictures in the student's normalisation to the teacher's; None: the same."""
    ours, theirs = normalisation(student), normalisation(teacher)
    if ours is None or theirs is None:
        return None
    (mean, std), (to_mean, to_std) = (
        [torch.as_tensor(given[key], dtype=torch.float64).view(-1, 1, 1) for key in ("image_mean", "image_std")]
        for given in (ours, theirs)
    )
    # Differences by rounding are none.
    if torch.allclose(mean, to_mean, atol=1e-4) and torch.allclose(std, to_std, atol=1e-4):
        return None
    return std / to_std, (mean - to_mean) / to_std


def _check_pictures(images: Any, channels: int) -> None:
    """InputError unless *images* are (C, H, W) of *channels* or one; 0: any, of a transform that has its own ways."""
    if not isinstance(images, list | tuple | Tensor) or not len(images):
        raise InputError("images must be a list of tensors (3, H, W) in [0, 1], one or more")
    for number, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3 or not image.is_floating_point():
            given = f"{tuple(image.shape)} of {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"picture {number} of the batch is {given}; give floating-point (3, H, W) in [0, 1]")
        if channels and image.shape[0] not in (1, channels):
            raise InputError(f"picture {number} of the batch is {tuple(image.shape)}; give ({channels}, H, W)")


def _check_targets(images: Any, targets: Any, num_classes: int) -> None:
    if not isinstance(targets, list | tuple) or not all(isinstance(target, dict) for target in targets):
        raise InputError(
            "targets must be a list of dicts with 'boxes' (n, 4) and 'labels' (n,), one a picture, as torchvision's"
        )
    if len(targets) != len(images):
        raise InputError(f"the batch has {len(images)} pictures but {len(targets)} targets; give one a picture")
    for number, target in enumerate(targets):
        _check_target(target, f"target {number} of the batch", num_classes)


def _check_target(target: dict[str, Tensor], where: str, num_classes: int) -> None:
    """InputError for what torchvision would make garbage of; on a GPU, where looking means waiting, only for shapes."""
    for key in ("boxes", "labels"):
        if not isinstance(target.get(key), Tensor):
            raise InputError(f"{where} has no tensor '{key}'; give 'boxes' (n, 4) and 'labels' (n,)")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        shapes = f"boxes of shape {tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}"
        raise InputError(f"{where}: {shapes}; they must be (n, 4) and (n,)")
    if labels.dtype != torch.int64:
        raise InputError(f"{where}: labels are {labels.dtype}; they must be torch.int64")
    if boxes.is_cpu and not (right := (boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1)).all():
        raise InputError(
            f"{where}: box {boxes[~right][0].tolist()} is inverted, empty or not finite; give x1 < x2 and y1 < y2"
        )
    if num_classes and labels.is_cpu and len(labels) and not 1 <= labels.min() <= labels.max() < num_classes:
        raise InputError(
            f"{where}: labels {labels.tolist()}; they must be 1 to {num_classes - 1} (0 is the background)"
        )


def _valid(batch: ImageList) -> list[tuple[float, float]] | None:
    height, width = batch.tensors.shape[-2:]
    valid = [(h / height, w / width) for h, w in batch.image_sizes]
    return None if all(share == (1.0, 1.0) for share in valid) else valid
