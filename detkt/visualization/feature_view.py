"""The maps that a method compares, on one picture: student's, distilled student's, teacher's, regressed teacher's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkt.config import load_config
from detkt.distiller import Distiller
from detkt.engine.checkpoint import load_checkpoint
from detkt.errors import InputError
from detkt.methods.ktan import KTAN
from detkt.tasks.detection import named_outputs

REGRESSED = "teacher, regressed"


@torch.no_grad()
def backbone_map(model: nn.Module, image: Tensor) -> tuple[str, Tensor, tuple[float, float]]:
    """The first output of *model*'s backbone on *image* (3, H, W): its name, the map (1, C, h, w), and the share of its
    height and width that shows picture."""
    model.eval()
    batch, _ = model.transform([image.to(next(model.parameters()).device)])
    name, feature = next(iter(named_outputs(model.backbone(batch.tensors)).items()))
    (height, width), padded = batch.image_sizes[0], batch.tensors.shape[-2:]
    return name, feature, (height / padded[0], width / padded[1])


def trained_regressors(run: Path, student: nn.Module, teacher: nn.Module) -> nn.ModuleDict | None:
    """The teacher-to-student layers that a run of KTAN or DLN left in *run*; None where there are none."""
    if not (run / "last.pt").is_file() or not (run / "config.yaml").is_file():
        return None
    config = load_config(run / "config.yaml")
    if not {"ktan", "dln"} & set(config.method.split("+")):
        return None
    distiller = Distiller(copy.deepcopy(student), copy.deepcopy(teacher), config.method, config.method_settings())
    prefix, part = next((name, part) for name, part in distiller.named_modules() if isinstance(part, KTAN))
    prefix += ".regressors."
    state = load_checkpoint(run / "last.pt").get("distiller", {})
    try:
        part.regressors.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except RuntimeError:
        raise InputError(f"{run / 'last.pt'} does not fit the run's config.yaml; remove it to do without it") from None
    return part.regressors


@torch.no_grad()
def picture_maps(
    models: Mapping[str, nn.Module], image: Tensor, regressors: nn.ModuleDict | None
) -> dict[str, np.ndarray]:
    """name -> map (C, h, w) without padding, in the order of *models* (by title); the regressed teacher's last.

    Args:
        models: title -> detector; the last is the teacher where *regressors* are given.
        image: (3, H, W) in [0, 1].
        regressors: of :func:`trained_regressors`.
    """
    maps, size = {}, None
    for title, model in models.items():
        name, feature, share = backbone_map(model, image)
        maps[title] = _valid_part(feature, share)
        if regressors is not None and title == list(models)[-1]:
            key = name.replace(".", "_")
            maps[REGRESSED] = _valid_part(regressors[key](feature, size), share)
        size = tuple(feature.shape[-2:])
    return maps


def _valid_part(feature: Tensor, share: tuple[float, float]) -> np.ndarray:
    height, width = (max(1, round(side * part)) for side, part in zip(feature.shape[-2:], share, strict=True))
    return feature[0, :, :height, :width].float().cpu().numpy()
