"""Tensors by name out of files and torchvision's downloads, without ever running what is in a file.

Only tensors are read: safetensors, or ``torch.load(..., weights_only=True)``.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor

from detkt.base.errors import InputError, first_line


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in a ``.safetensors`` file or in a file of ``torch.save``, on the CPU.

    Raises:
        InputError: the file is missing, damaged, not weights, or holds more than plain data.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror}") from error
    if not start:
        raise InputError(f"weights {path}: the file is empty")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"weights {path}: this is a web page, not weights; download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise InputError(f"weights {path}: this is a Git LFS pointer, not weights; run 'git lfs pull'")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles that are refused right after
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {path}: no file of torch.save, or one with more than tensors, whose pickled code is never run; "
            "save a state dict of tensors with torch.save or safetensors"
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        raise InputError(
            f"weights {path}: damaged, truncated or not plain weights ({first_line(error, 160)}); "
            "save a state dict of tensors with torch.save or safetensors"
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise InputError(f"weights {path}: no tensors by name in it; save model.state_dict()")
    return {str(name): tensor for name, tensor in tensors.items()}


def has_imagenet(classifier: str) -> bool:
    """Whether torchvision has ImageNet weights of its *classifier*, NAME or NAME:WEIGHTS, by default IMAGENET1K_V1."""
    name, _, tag = classifier.partition(":")
    return (tag or "IMAGENET1K_V1") in torchvision.models.get_model_weights(name).__members__


def imagenet_tensors(classifier: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights of a classifier, named as above, from torch's hub cache or downloaded.

    Raises:
        InputError: they could not be had.
    """
    name, _, tag = classifier.partition(":")
    weights = torchvision.models.get_model_weights(name)[tag or "IMAGENET1K_V1"]
    return fetched(weights, f"the ImageNet weights of {classifier}")


def fetched(weights: Any, what: str) -> dict[str, Tensor]:
    """The tensors of torchvision's *weights*, from torch's hub cache or downloaded; InputError: they could not be had.

    what: they are called in the message.
    """
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # the network, the disk, the hash and the unpickler each raise their own
        raise InputError(
            f"cannot get {what} ({first_line(error, 160)}); download {weights.url} elsewhere and give the file, or "
            f"put it into {torch.hub.get_dir()}/checkpoints"
        ) from error
