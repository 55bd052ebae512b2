"""torchvision's detectors on a batch of pictures of one size, as one graph without loops over pictures or classes.

torchvision's own forward pass takes a list of pictures, of which a tracer would keep the length. The nets are its own,
shared and not copied; what is done before and after them is written here on whole batches, with the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx import operators
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from detkt.base.errors import InputError
from detkt.export.selection import best_of_each, clip, grouped_nms, highest, is_at_least

_SMALLEST = 1e-2
"""Pixels: shorter boxes of a two-stage detector are dropped, as torchvision does."""


class BatchedDetector(nn.Module):
    """``images`` (N, 3, H, W), RGB in [0, 1] -> boxes (D, 4), labels (D,), scores (D,), pictures (D,).

    Boxes are x1 y1 x2 y2 in pixels of the pictures, D of them in all; ``pictures`` says of which of the N each is, in
    rising order, and within a picture scores fall.
    """

    def __init__(self, detector: Any) -> None:
        """*detector*: torchvision's ``FasterRCNN``, ``RetinaNet``, ``FCOS`` or ``SSD``, in evaluation mode.

        Raises:
            InputError: it is none of them.
        """
        super().__init__()
        self.prepare = Preparation(detector.transform)
        self.network = batched_network(detector)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        prepared, size = self.prepare(images)
        boxes, labels, scores, pictures = self.network(prepared, size)
        height, width = (operators.shape_as_tensor(images)[-2:].to(boxes.dtype) / size.to(boxes.dtype)).unbind()
        return boxes * torch.stack([width, height, width, height]), labels, scores, pictures


class Preparation(nn.Module):
    """Pictures (N, 3, H, W) normalised, resized and padded as torchvision's transform does, and their size before that.

    When traced torchvision computes the resized side in float32, and then rounds down to another number of pixels for
    one size of picture in ten or so, which shifts every box: here it is computed in float64 always. Of a strip, of
    which nothing would be left, one pixel is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.shorter, self.longer = transform.min_size[-1], transform.max_size
        self.divisor = transform.size_divisible
        self.fixed = None if transform.fixed_size is None else tuple(transform.fixed_size[::-1])
        for name, values in (("mean", transform.image_mean), ("std", transform.image_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = (images - self.mean) / self.std
        size = self.resized(images)
        images = F.interpolate(images, size=_sides(size), mode="bilinear", align_corners=False)
        down, right = _sides(-size % self.divisor)
        return F.pad(images, (0, right, 0, down)), size

    def resized(self, images: Tensor) -> Tensor:
        """Height and width (2,) that *images* get."""
        if self.fixed is not None:
            return torch.tensor(self.fixed)
        sides = operators.shape_as_tensor(images)[-2:].double()
        # Two at once: OpenVINO 2026.4 turns the division of a single number around. Tensors of one dimension: the
        # exporter takes those without for Python's numbers, and makes them float32.
        limits = sides.new_tensor([self.shorter, self.longer])
        scale = (limits / torch.cat([sides.amin(0, keepdim=True), sides.amax(0, keepdim=True)])).amin(0, keepdim=True)
        return (sides * scale).floor().clamp(min=1).long()


def _sides(size: Tensor) -> Any:
    """Numbers for torch's functions; tensors while they are traced, which the graph computes."""
    return tuple(size.unbind()) if torch.jit.is_tracing() else tuple(size.tolist())


def batched_network(detector: Any) -> nn.Module:
    """The part of *detector* between prepared pictures and boxes; raises InputError where it has no known form."""
    if hasattr(detector, "roi_heads"):
        return TwoStage(detector)
    if hasattr(detector, "topk_candidates"):
        return SSD(detector) if detector.transform.fixed_size is not None else DenseHead(detector)
    raise InputError(
        f"{type(detector).__name__} cannot be exported: give a torchvision FasterRCNN, RetinaNet, FCOS or SSD"
    )


def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The backbone's maps by name; a single one is called "0"."""
    maps = backbone(images)
    return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


def anchors_of(generator: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Anchors (A, 4) of every map, one after the other, in pixels of the prepared *images*."""
    return generator(ImageList(images, [(0, 0)]), list(maps))[0]


def decode(coder: Any, codes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) of *codes* (..., 4) at *anchors* (..., 4)."""
    if hasattr(coder, "decode_single"):
        return coder.decode_single(codes.reshape(-1, 4), anchors.reshape(-1, 4)).reshape(codes.shape)
    return coder.decode(codes, anchors)


def flat_map(values: Tensor, width: int) -> Tensor:
    """What a convolution says of its anchors, (N, A * width, H, W), as (N, H * W * A, width)."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, width)


class _Candidates:
    """Boxes, scores, places among all anchors, and labels (or levels), gathered level by level: (N, k, ...) each."""

    def __init__(self, anchors: Tensor, coder: Any) -> None:
        self.anchors, self.coder = anchors, coder
        self.offset: Any = 0
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, places: Tensor, codes: Tensor, labels: Tensor) -> None:
        """*scores*, *places* among this level's anchors and *labels*: (N, k); *codes*: (N, A, 4), all of the level."""
        chosen = codes.gather(1, places[..., None].expand(-1, -1, 4))
        boxes = decode(self.coder, chosen, self.anchors[places + self.offset])
        self.parts.append((boxes, scores, labels))
        self.offset = self.offset + codes.shape[1]

    def all(self) -> tuple[Tensor, ...]:
        boxes, scores, labels = zip(*self.parts, strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)


def picture_numbers(like: Tensor) -> Tensor:
    """For a tensor (N, k) the number of its picture at every place, (N, k)."""
    return torch.arange(like.shape[0])[:, None].expand(-1, like.shape[1])


class TwoStage(nn.Module):
    """Faster R-CNN: proposals of all pictures in one list, read by one call of the head."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = detector.backbone, detector.rpn, detector.roi_heads
        pool: Any = self.roi_heads.box_roi_pool
        if pool.scales is None:  # torchvision learns them from the first pictures
            with torch.no_grad():
                side = detector.transform.min_size[-1]
                detector([torch.zeros(3, side, side)])

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        maps = maps_of(self.backbone, images)
        proposals, pictures = self.proposals(images, list(maps.values()), size)
        pooled, proposals, pictures = self.pool(maps, proposals, pictures)
        heads: Any = self.roi_heads
        logits, codes = heads.box_predictor(heads.box_head(pooled))
        return self.detections(logits, codes, proposals, pictures, size, images.shape[0])

    def proposals(self, images: Tensor, maps: list[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Proposals (R, 4) and their pictures (R,)."""
        rpn: Any = self.rpn
        candidates = _Candidates(anchors_of(rpn.anchor_generator, images, maps), rpn.box_coder)
        for level, (objectness, codes) in enumerate(zip(*rpn.head(maps), strict=True)):
            logits, places = highest(flat_map(objectness, 1).flatten(1), rpn.pre_nms_top_n(), 1)
            candidates.add(logits.sigmoid(), places, flat_map(codes, 4), torch.full_like(places, level))
        boxes, scores, levels = candidates.all()
        boxes = clip(boxes, size)
        kept = (is_at_least(boxes, rpn.min_size) & (scores >= rpn.score_thresh)).flatten().nonzero()[:, 0]
        pictures = picture_numbers(scores).flatten()[kept]
        boxes, scores, levels = boxes.reshape(-1, 4)[kept], scores.flatten()[kept], levels.flatten()[kept]
        count = len(candidates.parts)
        left = grouped_nms(boxes, scores, pictures * count + levels, images.shape[0] * count, rpn.nms_thresh)
        best, pictures = best_of_each(scores[left], pictures[left], images.shape[0], rpn.post_nms_top_n())
        return boxes[left][best], pictures

    def pool(self, maps: dict[str, Tensor], proposals: Tensor, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the head reads at every proposal (R, C, h, w), and the proposals and pictures in that order."""
        pool: Any = self.roi_heads.box_roi_pool
        used = [values for name, values in maps.items() if name in pool.featmap_names]
        if len(used) > 1:
            # By level, one after the other: nothing has to be brought into another order afterwards.
            levels = pool.map_levels([proposals])
            shares = [(levels == level).nonzero()[:, 0] for level in range(len(used))]
        else:
            shares = [torch.arange(proposals.shape[0])]
        order = torch.cat(shares)
        rois = torch.cat([pictures[:, None].to(proposals.dtype), proposals], 1)
        parts = [
            roi_align(values, rois[share], pool.output_size, scale, pool.sampling_ratio)
            for values, share, scale in zip(used, shares, pool.scales, strict=True)
        ]
        return torch.cat(parts), proposals[order], pictures[order]

    def detections(
        self, logits: Tensor, codes: Tensor, proposals: Tensor, pictures: Tensor, size: Tensor, batch: Any
    ) -> tuple[Tensor, ...]:
        heads: Any = self.roi_heads
        scores = logits.softmax(-1)
        classes = logits.shape[-1]
        # Without the background's column, which is the first.
        roi, place = (scores[:, 1:] > heads.score_thresh).nonzero().unbind(1)
        labels = place + 1
        codes = codes.reshape(codes.shape[0], -1, 4)[roi, labels]
        boxes = clip(decode(heads.box_coder, codes, proposals[roi]), size)
        kept = is_at_least(boxes, _SMALLEST).nonzero()[:, 0]
        boxes, labels, scores, pictures = boxes[kept], labels[kept], scores[roi, labels][kept], pictures[roi][kept]
        return _suppressed(boxes, labels, scores, pictures, batch, classes, heads.nms_thresh, heads.detections_per_img)


class _OneStage(nn.Module):
    """The parts of a one-stage detector that its graph is made of."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head, self.anchor_generator = detector.backbone, detector.head, detector.anchor_generator
        self.box_coder, self.score_thresh, self.nms_thresh = (
            detector.box_coder,
            detector.score_thresh,
            detector.nms_thresh,
        )
        self.topk_candidates, self.detections_per_img = detector.topk_candidates, detector.detections_per_img


class DenseHead(_OneStage):
    """RetinaNet and FCOS: the best of each level's anchors and classes."""

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        maps = list(maps_of(self.backbone, images).values())
        candidates = _Candidates(anchors_of(self.anchor_generator, images, maps), self.box_coder)
        classes: Any = 0
        for values in maps:
            outputs = self.head([values])
            scores = outputs["cls_logits"].sigmoid()
            if "bbox_ctrness" in outputs:
                scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
            classes = scores.shape[-1]
            scores, places = highest(scores.flatten(1), self.topk_candidates, 1)
            anchors = torch.div(places, classes, rounding_mode="floor")
            candidates.add(scores, anchors, outputs["bbox_regression"], places % classes)
        boxes, scores, labels = candidates.all()
        return _kept(self, clip(boxes, size), scores, labels, images.shape[0], classes)


class SSD(_OneStage):
    """SSD and SSDlite: the best of each class, of all levels' anchors together."""

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        maps = list(maps_of(self.backbone, images).values())
        outputs = self.head(maps)
        scores, codes = outputs["cls_logits"].softmax(-1), outputs["bbox_regression"]
        anchors = anchors_of(self.anchor_generator, images, maps)
        boxes = clip(decode(self.box_coder, codes, anchors[None].expand(codes.shape[0], -1, -1)), size)
        classes = scores.shape[-1]
        best, places = highest(scores[..., 1:].transpose(1, 2), self.topk_candidates, 2)
        labels = torch.arange(1, classes)[None, :, None].expand(best.shape[0], -1, best.shape[2])
        chosen = boxes.gather(1, places.flatten(1)[..., None].expand(-1, -1, 4))
        return _kept(self, chosen, best.flatten(1), labels.flatten(1), images.shape[0], classes)


def _kept(head: Any, boxes: Tensor, scores: Tensor, labels: Tensor, batch: Any, classes: Any) -> tuple[Tensor, ...]:
    """Of candidates (N, k, ...) those above the threshold that suppression leaves."""
    kept = (scores > head.score_thresh).flatten().nonzero()[:, 0]
    pictures = picture_numbers(scores).flatten()[kept]
    boxes, labels, scores = boxes.reshape(-1, 4)[kept], labels.flatten()[kept], scores.flatten()[kept]
    return _suppressed(boxes, labels, scores, pictures, batch, classes, head.nms_thresh, head.detections_per_img)


def _suppressed(
    boxes: Tensor, labels: Tensor, scores: Tensor, pictures: Tensor, batch: Any, classes: Any, iou: float, limit: int
) -> tuple[Tensor, ...]:
    left = grouped_nms(boxes, scores, pictures * classes + labels, batch * classes, iou)
    best, pictures = best_of_each(scores[left], pictures[left], batch, limit)
    left = left[best]
    return boxes[left], labels[left], scores[left], pictures
