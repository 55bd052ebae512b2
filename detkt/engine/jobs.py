"""What training a detector and training a classifier do differently: data, networks, scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.utils.data import Dataset

from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.base.processes import Processes
from detkt.config import Config, DataConfig, NetConfig, TrainConfig
from detkt.data import classification_data, shapes_config, test_set, training_set
from detkt.data.classification import normalisation
from detkt.evaluation.accuracy import classify
from detkt.evaluation.detector import detect, score
from detkt.models import build_classifier, build_detector, default_options
from detkt.models.classifier import default_classifier_options


class Job(Protocol):
    """A task as :func:`detkt.engine.run.train` sees it."""

    task: str
    measures: ClassVar[dict[str, str]]  # key of metrics.json -> column title, the one that counts first

    def training_set(self, config: Config, progress: Callable | None) -> Dataset:
        """The pictures to learn from; ``ids`` names them, ``classes`` is the class list."""
        ...

    def test_set(self, config: Config, classes: list[str]) -> Dataset:
        """The held-out pictures."""
        ...

    def build(self, net: NetConfig, classes: list[str]) -> nn.Module:
        """The network of *net*, without its checkpoint."""
        ...

    def has_trained(self, net: NetConfig) -> bool:
        """Whether *net* comes with weights that make it a teacher."""
        ...

    def options(self, net: NetConfig) -> dict[str, Any]:
        """Every option of *net*, defaults written out."""
        ...

    def summary(self, scores: dict[str, Any]) -> str:
        """The scores that count, in words."""
        ...

    def resolve_data(self, data: DataConfig) -> None:
        """Write out, in *data*, every setting of the pictures that has a default of its own."""
        ...

    def description(self, data: DataConfig) -> dict[str, Any]:
        """What a model's file has to tell of the pictures it was trained on."""
        ...

    def check(self, model: nn.Module, role: str, data: DataConfig, description: dict[str, Any] | None) -> None:
        """InputError where *model* cannot see the pictures of *data* as it should; *description*: its own, if known."""
        ...

    def image_size(self, dataset: Dataset) -> tuple[int, int] | None:
        """Height and width of the pictures to probe the networks with; None where a network knows its own."""
        ...

    def evaluate(
        self,
        model: nn.Module,
        held_out: Dataset,
        device: torch.device,
        train: TrainConfig,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> dict[str, Any]:
        """The scores of ``metrics.json``; all *processes* share the work and get them."""
        ...


class DetectionJob:
    """Detectors on VOC-format folders."""

    task = "detection"
    measures = {"map_voc07": "mAP VOC07", "map_area": "mAP area", "map_coco": "mAP COCO"}

    def training_set(self, config: Config, progress: Callable | None = None) -> Dataset:
        return training_set(config.data, progress)

    def test_set(self, config: Config, classes: list[str]) -> Dataset:
        return test_set(config.data, classes)

    def build(self, net: NetConfig, classes: list[str]) -> nn.Module:
        return build_detector(net.architecture, len(classes) + 1, net.weights, **net.options)

    def has_trained(self, net: NetConfig) -> bool:
        return net.checkpoint is not None

    def summary(self, scores: dict[str, Any]) -> str:
        return ", ".join(f"{title} {100 * scores[measure]:.1f}" for measure, title in self.measures.items())

    def options(self, net: NetConfig) -> dict[str, Any]:
        return default_options(net.architecture) | net.options

    def resolve_data(self, data: DataConfig) -> None:
        if data.format == "shapes":
            settings = asdict(shapes_config(data))
            data.shapes = settings | {"classes": list(settings["classes"])}

    def description(self, data: DataConfig) -> dict[str, Any]:
        return {}  # a detector normalises pictures itself

    def check(self, model: nn.Module, role: str, data: DataConfig, description: dict[str, Any] | None) -> None:
        pass

    def image_size(self, dataset: Dataset) -> None:
        return None

    def evaluate(
        self,
        model: nn.Module,
        held_out: Dataset,
        device: torch.device,
        train: TrainConfig,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> dict[str, Any]:
        detections, milliseconds = detect(
            model,
            held_out,
            device,
            batch_size=train.batch_size,
            workers=train.workers,
            quiet=quiet,
            processes=processes,
        )
        scores = score(detections, held_out.annotations(), held_out.classes)
        return {**scores, "milliseconds_per_picture": milliseconds}


class ClassificationJob:
    """Classifiers on CIFAR, MNIST, ImageNet and image folders."""

    task = "classification"
    measures = {"top1": "top-1", "top5": "top-5"}

    def training_set(self, config: Config, progress: Callable | None = None) -> Dataset:
        return classification_data(config.data, train=True)

    def test_set(self, config: Config, classes: list[str]) -> Dataset:
        return classification_data(config.data, train=False, classes=classes)

    def build(self, net: NetConfig, classes: list[str]) -> nn.Module:
        return build_classifier(net.architecture, len(classes), net.weights, **net.options)

    def has_trained(self, net: NetConfig) -> bool:
        # Published weights of a classifier are whole; a detector's "imagenet" is but its backbone.
        return net.checkpoint is not None or net.weights is not None

    def summary(self, scores: dict[str, Any]) -> str:
        return ", ".join(f"{title} {100 * scores[measure]:.2f} %" for measure, title in self.measures.items())

    def options(self, net: NetConfig) -> dict[str, Any]:
        return default_classifier_options(net.architecture) | net.options

    def resolve_data(self, data: DataConfig) -> None:
        data.mean, data.std = (list(values) for values in normalisation(data))

    def description(self, data: DataConfig) -> dict[str, Any]:
        mean, std = normalisation(data)
        return {"normalisation": {"mean": list(mean), "std": list(std)}}

    def check(self, model: nn.Module, role: str, data: DataConfig, description: dict[str, Any] | None) -> None:
        ours = self.description(data)["normalisation"]
        channels = model.detkt["input"]["channels"]
        if channels != len(ours["mean"]):
            raise InputError(
                f"the {role} takes pictures of {channels} channels and those of {data.format} have "
                f"{len(ours['mean'])}; set {role}.options.in_channels={len(ours['mean'])} where the net has that option"
            )
        theirs = (description or {}).get("normalisation", ours)
        if theirs != ours:
            raise InputError(
                f"the {role}'s checkpoint saw pictures with mean {theirs.get('mean')} and std {theirs.get('std')} "
                f"removed, these have {ours['mean']} and {ours['std']}; set data.mean and data.std to the former"
            )

    def image_size(self, dataset: Dataset) -> tuple[int, int]:
        return dataset.image_size

    def evaluate(
        self,
        model: nn.Module,
        held_out: Dataset,
        device: torch.device,
        train: TrainConfig,
        quiet: bool = False,
        processes: Processes | None = None,
    ) -> dict[str, Any]:
        return classify(
            model,
            held_out,
            device,
            batch_size=train.batch_size,
            workers=train.workers,
            quiet=quiet,
            processes=processes,
        )


_JOBS: dict[str, Job] = {job.task: job for job in (DetectionJob(), ClassificationJob())}


def job_of(config: Config) -> Job:
    """The job that the config's data ask for."""
    return _JOBS[config.task]


def require_task(config: Config, task: str) -> None:
    """InputError where *config* is of the other tool."""
    if config.task != task:
        other = {"detection": "train-det", "classification": "train-cls"}[config.task]
        raise InputError(
            f"data.format={config.data.format} is for {config.task}: use {command(other)}, or another --config"
        )
