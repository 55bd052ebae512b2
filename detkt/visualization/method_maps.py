"""What the method of a finished run compares, on pictures: the maps of both networks and of the method's own nets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.data.base import PictureSet
from detkt.data.loading import evaluation_loader
from detkt.distiller import Distiller, settings_told_as_keys
from detkt.engine.checkpoint import LAST, load_checkpoint
from detkt.engine.nets import build_teacher
from detkt.kinds import kind_of
from detkt.knowledge import Knowledge
from detkt.methods.base import Heads, Needs
from detkt.models import load_model
from detkt.visualization.feature_maps import PictureMaps
from detkt.visualization.matching import check_choice

CONFIG = "config.yaml"


def holds_method(run: Path) -> bool:
    """Whether *run* has what `restore` reads."""
    return (run / CONFIG).is_file() and (run / LAST).is_file()


def open_run(run: Path, data_root: str | None = None) -> tuple[Distiller, PictureSet]:
    """A finished run of ``train_det.py`` or ``train_cls.py``, in evaluation mode, and the pictures it was tested on.

    data_root: where these are, if not where the run's ``config.yaml`` says.

    Raises InputError: not the folder of such a run, or its networks, its teacher or its data cannot be read.
    """
    if not holds_method(run):
        raise InputError(
            f"{run} does not hold {CONFIG} and {LAST}; give a finished run's folder, of train_det.py or train_cls.py"
        )
    config = load_config(run / CONFIG)
    if data_root is not None:
        config.data.root = data_root
    kind = kind_of(config)
    student, meta = load_model(run, task=kind.task)
    dataset = kind.test_set(config.data, list(meta["classes"]))
    teacher = build_teacher(kind, config.teacher, dataset.classes)[0] if config.needs_teacher else None
    return restore(run, student, teacher, kind.image_size(dataset)), dataset


def restore(
    run: Path, student: nn.Module, teacher: nn.Module | None, image_size: tuple[int, int] | None = None
) -> Distiller:
    """*student*, *teacher* and the method of *run*, all with the weights of its ``last.pt``, in evaluation mode.

    Raises InputError: ``last.pt`` or ``config.yaml`` cannot be read, or do not fit one another or the two networks.
    """
    config = load_config(run / CONFIG)
    with settings_told_as_keys():
        distiller = Distiller(
            student,
            teacher,
            config.method,
            config.method_settings(),
            image_size=image_size,
            own_size=config.teacher.own_size,
        )
    state = load_checkpoint(run / LAST).get("distiller", {})
    try:
        distiller.load_state_dict(state)
    except (RuntimeError, KeyError):
        raise InputError(f"{run / LAST} does not fit the run's {CONFIG}, or is of other networks") from None
    return distiller.eval()


@torch.no_grad()
def picture_maps(distiller: Distiller, dataset: PictureSet, index: int) -> PictureMaps:
    """Picture number *index* with what `Method.views` shows of it, padding cut off.

    distiller: in evaluation mode. dataset: of pictures without augmentation, as the networks take them.
    """
    images, targets = next(iter(evaluation_loader(dataset, batch_size=1, workers=0, indices=[index])))
    needs = Needs.STUDENT_FEATURES | (Needs.TEACHER_FEATURES if distiller.teacher is not None else Needs.NOTHING)
    student, teacher, _ = cast(tuple[Knowledge, Knowledge, Heads], distiller.task.run(images, targets, needs))
    share = student.valid[0] if student.valid is not None else (1.0, 1.0)
    views = distiller.method.views(student, teacher)
    maps = {title: _valid_part(feature[0], share) for title, feature in views.items()}
    return PictureMaps(str(dataset.ids[index]), shown_pixels(images[0], dataset), maps)


def shown_pixels(image: Tensor, dataset: PictureSet) -> np.ndarray:
    """A picture (C, H, W) of *dataset* to look at: (H, W, 3) uint8, the normalisation of classifiers' undone."""
    pixels = (dataset.unnormalised(image).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def choose_indices(dataset: PictureSet, count: int, images: Sequence[str] | None = None) -> list[int]:
    """Numbers of the pictures called *images*, in this order; without names, *count* spread evenly over the data set.

    Raises InputError: a picture that is not there, a count below 1.
    """
    check_choice(dataset.ids, dataset.classes, count, images=images)
    if images is not None:
        number_of = {str(name): number for number, name in enumerate(dataset.ids)}
        return [number_of[name] for name in dict.fromkeys(images)]
    return np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()


def _valid_part(feature: Tensor, share: tuple[float, float]) -> np.ndarray:
    """*feature* (C, H, W) over this share of its height and width."""
    height, width = (max(1, round(side * part)) for side, part in zip(feature.shape[-2:], share, strict=True))
    return feature[:, :height, :width].float().cpu().numpy()
