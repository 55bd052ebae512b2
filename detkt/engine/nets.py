"""The networks of a run: built by name, from a checkpoint, from torchvision or from a plain file of weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.config import DataConfig, NetConfig, TeacherConfig, published_name
from detkt.data.annotated import shorten
from detkt.kinds import Kind
from detkt.models import load_model
from detkt.models.layout import channels_last
from detkt.models.plain import classes_in, load_whole
from detkt.models.published import (
    is_without_eps,
    published,
    published_classes,
    published_file,
    tensors_of,
    with_eps,
)
from detkt.models.reading import read_tensors
from detkt.models.saved import META_FILE, WEIGHTS_FILE

log = logging.getLogger(__name__)

PARTS = {"neck": ("backbone.fpn.", "backbone.extra."), "head": ("rpn.", "roi_heads.", "head.")}
"""What ``student.inherit`` may name, and how the names of its tensors begin."""
_PREDICTORS = (
    "roi_heads.box_predictor.",
    "head.classification_head.cls_logits.",
    "head.classification_head.module_list.",
)


def build_net(
    kind: Kind, net: NetConfig, role: str, classes: Sequence[str], data: DataConfig | None = None
) -> nn.Module:
    """The network of *net*: its architecture with weights, or with a trained checkpoint of the same architecture.

    Raises:
        InputError: the checkpoint is of another architecture, was built with other options, or has other classes than
            the data; with *data*, of a classifier, pictures have other channels or were normalised otherwise.
    """
    if net.checkpoint is None:
        model, description = kind.build(net, classes), None
    elif published_name(net.checkpoint):
        raise InputError(
            f"{role}.checkpoint={net.checkpoint} is of torchvision's classes: to start from its weights, with a "
            f"predictor of yours, set {role}.architecture and {role}.weights=torchvision"
        )
    else:
        path = resolve(net.checkpoint)
        model, meta = _trained_net(kind, net, path, role)
        description = meta.get("extra")
        if list(meta["classes"]) != list(classes):
            raise InputError(
                f"the {role}'s checkpoint {path} knows the classes {', '.join(meta['classes'])}, but the data set has "
                f"{', '.join(classes)}; train the {role} on this data set or give data.classes in its order"
            )
    return _ready(kind, model, role, data, description)


def build_teacher(
    kind: Kind, net: TeacherConfig, classes: Sequence[str], data: DataConfig | None = None
) -> tuple[nn.Module, list[str]]:
    """A trained teacher for a student of *classes*, and the classes that it knows itself; errors as `build_net`'s.

    Its weights are a saved model, torchvision's ``torchvision:NAME@WEIGHTS``, a plain state dict of
    ``teacher.architecture``, or, of a classifier, published ones.
    """
    source = net.checkpoint
    if source is None and net.weights is not None and kind.task == "detection":
        source = f"torchvision:{net.architecture}" if net.weights == "torchvision" else net.weights
        if source.startswith("torchvision:") and net.weights != "torchvision":
            source = f"torchvision:{net.architecture}@{source.partition(':')[2]}"
    description = None
    if source is None:
        model, known = kind.build(net, classes), list(classes)
    elif name := published_name(source):
        weights = published(*name)
        known = published_classes(weights)
        model = kind.family.build(name[0], len(known) + kind.family.background, None, **net.options)
        load_whole(model, tensors_of(weights, name[0]), f"teacher {source}")
    elif kind.task == "detection" and _is_plain(path := resolve(source)):
        model, known = _plain_teacher(kind, net, path, classes)
    else:
        model, meta = _trained_net(kind, net, resolve(source), "teacher")
        description, known = meta.get("extra"), list(meta["classes"])
    if net.classes is not None and list(net.classes) != known:
        raise InputError(
            f"teacher.classes are {', '.join(net.classes)}, but the teacher's own are {', '.join(known)}; leave "
            "teacher.classes out"
        )
    return _ready(kind, model, "teacher", data, description), known


def _ready(
    kind: Kind, model: nn.Module, role: str, data: DataConfig | None, description: dict[str, Any] | None
) -> nn.Module:
    if data is not None:
        kind.check(model, role, data, description)
    channels_last(model.get_submodule("backbone"))
    return model


def _is_plain(path: Path) -> bool:
    """Whether *path* is a file of weights alone, and not a part of a saved model or of a run."""
    return path.is_file() and path.name not in (WEIGHTS_FILE, META_FILE) and not (path.parent / META_FILE).exists()


def _plain_teacher(kind: Kind, net: TeacherConfig, path: Path, classes: Sequence[str]) -> tuple[nn.Module, list[str]]:
    tensors = read_tensors(path)
    weights = published_file(path, net.architecture)
    if weights is not None and is_without_eps(weights, net.architecture):
        tensors = with_eps(tensors)
    count = classes_in(tensors, net.architecture, net.options) or len(net.classes or classes) + 1
    if net.classes is not None:
        known = list(net.classes)
    elif weights is not None:
        known = published_classes(weights)
    elif count in (len(classes) + 1, 91):
        ours = count == len(classes) + 1
        known = list(classes) if ours else published_classes(published("fasterrcnn_resnet50_fpn"))
        log.warning(
            "teacher %s names no classes: its %d are taken to be %s, in this order: %s; name them in teacher.classes "
            "if they are others",
            path,
            count - 1,
            "the student's" if ours else "COCO's",
            shorten(known),
        )
    else:
        known = []
    if len(known) + 1 != count:
        told = f"teacher.classes names {len(known)}" if net.classes else "name them in teacher.classes, in their order"
        raise InputError(f"teacher {path} has {count - 1} classes besides the background; {told}")
    model = kind.family.build(net.architecture, count, None, **net.options)
    load_whole(model, tensors, f"teacher {path}")
    return model, known


def _trained_net(kind: Kind, net: NetConfig, path: Path, role: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network of the saved model *path*, and what its ``model.json`` says."""
    if net.weights is not None and net.checkpoint is not None:
        log.warning("%s.weights=%s is not used: the checkpoint %s holds all weights", role, net.weights, path)
    model, meta = load_model(path, task=kind.task)
    if meta["architecture"] != net.architecture:
        raise InputError(
            f"checkpoint {path} is a {meta['architecture']} but the {role} is to be a {net.architecture}; "
            f"set {role}.architecture={meta['architecture']} or give another checkpoint"
        )
    for key, value in net.options.items():
        if meta["options"].get(key) != value:
            raise InputError(
                f"{role}.options.{key} is {value}, but the {role}'s checkpoint {path} was built with "
                f"{meta['options'].get(key)}; a checkpoint keeps its options: set {role}.options.{key} to that"
            )
    return model, meta


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module, parts: Sequence[str], same_classes: bool) -> dict[str, Any]:
    """Copy *parts* of the teacher into the student, tensor by tensor where names and shapes agree.

    Args:
        parts: keys of :data:`PARTS`.
        same_classes: whether both know the same classes in the same order; else no predictor is copied.

    Returns:
        What ``metrics.json`` tells of it: the parts, and how many tensors.

    Raises:
        InputError: nothing of a part agrees.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    copied = 0
    for part in parts:
        names = [
            name
            for name, tensor in own.items()
            if name.startswith(PARTS[part])
            and name in theirs
            and theirs[name].shape == tensor.shape
            and (same_classes or not name.startswith(_PREDICTORS))
        ]
        if not names:
            raise InputError(
                f"student.inherit: no tensor of the student's {part} has the name and shape of one of the teacher's; "
                f"leave {part} out, or take nets of one family and one width there"
            )
        for name in names:
            own[name].copy_(theirs[name])
        copied += sum(not name.endswith("num_batches_tracked") for name in names)
    log.info("the student inherits %d tensors of the teacher's %s", copied, " and ".join(parts))
    return {"modules": list(parts), "tensors": copied}
