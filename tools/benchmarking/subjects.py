"""What the benchmark times: networks and batches, made once, and for every subject the work of one step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarking.memory import tensor_bytes
from benchmarking.random_pictures import random_set
from detkt.base.device import resolve_device
from detkt.base.errors import InputError
from detkt.base.paths import resolve
from detkt.base.seeds import seed_everything
from detkt.config import Config, NetConfig
from detkt.data import DEFAULT_ROOTS
from detkt.data.base import PictureSet
from detkt.data.loading import EndlessBatches, training_loader
from detkt.distiller import Distiller
from detkt.engine.nets import build_net
from detkt.engine.teacher_cache import TeacherCache
from detkt.engine.trainer import Trainer
from detkt.kinds import kind_of
from detkt.methods import parse
from detkt.methods.base import Stage
from detkt.models import load_model
from detkt.models.layout import channels_last
from detkt.tasks import build_task
from detkt.tasks.compiling import compile_backbones

STUDENT, TEACHER, EVALUATION = "student", "teacher", "evaluation"
BATCHES = 4


@dataclass
class Batch:
    """``images`` and ``targets`` as the loader gives them; ``tensors``: what the backbones see, on the device."""

    images: Any
    targets: Any
    tensors: Tensor


Work = Callable[[Batch], None]


class Subjects:
    """Student, teacher, a few batches, and ``works``: a function of a batch for each thing to be timed, by name.

    Each training has a student of its own, all from the same weights, and a learning rate so small that these, and
    with them the work (how many proposals there are, say), stay what they are. Networks whose checkpoint is not there
    have random weights; where the pictures are not there, or with *random*, they are noise of the same sizes.

    Args:
        config: a data set, a pair, the methods' settings; ``train.cache_teacher`` adds the methods' steps with a cache,
            ``train.compile`` those of student and methods with compiled backbones.
        methods: names or sums, each with a teacher.
        random: noise, whether there are pictures or not.
        image_size: of a detector the shorter side of its pictures, of a classifier the side; None: the config's.

    Raises:
        InputError: settings, data or networks that cannot be used.
    """

    def __init__(
        self, config: Config, methods: Sequence[str], random: bool = False, image_size: int | None = None
    ) -> None:
        self.config = config = _constant(config, image_size)
        self.kind = kind_of(config)
        self.device = resolve_device(config.train.device)
        if config.train.precision == "fp16" and self.device.type != "cuda":
            raise InputError("precision fp16 needs a CUDA device; use --precision bf16 or fp32")
        for method in methods:
            if not all(cls.needs_teacher for cls in parse(method, config.methods)):
                raise InputError(f"--methods: '{method}' has no teacher; the plain student is timed anyway")
        seed_everything(config.train.seed)
        self.dataset, self.pictures = self._pictures(random)
        self.weights: dict[str, str] = {}
        self.student = self._network(config.student, "student", image_size)
        self.teacher = self._network(config.teacher, "teacher", image_size).eval().requires_grad_(False)
        self.batches = [Batch(images, targets, self._seen(images)) for images, targets in self._loaded(BATCHES)]
        # In so many steps in a row, every stage has been through all its turns, equally often.
        self.cycle = 1
        self.trainers: dict[str, Trainer] = {}
        self.works: dict[str, Work] = {}
        self.last_stage: dict[str, str] = {}
        self.cached: set[str] = set()  # trainings that read the teacher's maps from a cache
        self.plain = self._add_training(STUDENT, "none")
        self.works[TEACHER] = self._teacher_forward
        for method in methods:
            self._add_training(method, method)
        if config.train.cache_teacher is not None:
            for method in methods:
                self._add_training(f"{method}, cached", method, cached=True)
        if config.train.compile:
            for name, method in ((STUDENT, "none"), *((method, method) for method in methods)):
                self._add_training(f"{name}, compiled", method, compiled=True)
        evaluated = copy.deepcopy(self.student).eval()
        channels_last(evaluated.backbone)
        self.works[EVALUATION] = lambda batch: self._evaluate(evaluated, batch)

    def loader(self):
        """Batches of the training pictures as a run loads them, endlessly."""
        config = self.config.train
        groups = getattr(self.dataset, "aspect_groups", None) if config.group_by_aspect else None
        order = EndlessBatches(len(self.dataset), config.batch_size, config.seed, groups=groups)
        return iter(training_loader(self.dataset, order, config.workers, self.device.type == "cuda"))

    def autocast(self):
        """The training precision, as a context."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def state_bytes(self, name: str) -> int:
        """What the training *name* holds between two steps: weights, optimizers, and the teacher's weights.

        The teacher's count once for every training that has one.
        """
        trainer = self.trainers[name]
        held = [*trainer.distiller.parameters(), *trainer.distiller.buffers()]
        for optimizer in trainer.players.optimizers.values():
            held += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return tensor_bytes(held) + (self.teacher_bytes() if trainer.distiller.teacher is not None else 0)

    def teacher_bytes(self) -> int:
        """The teacher's weights."""
        return tensor_bytes([*self.teacher.parameters(), *self.teacher.buffers()])

    def map_bytes(self, batch: Batch) -> int:
        """The teacher's map, or its pyramid, of *batch*."""
        output = self._teacher_forward(batch)
        return tensor_bytes([output] if isinstance(output, Tensor) else output.values())

    def _pictures(self, random: bool) -> tuple[PictureSet, str]:
        config = self.config
        root = config.data.root or DEFAULT_ROOTS.get(config.data.format)
        if root is not None and resolve(root).is_dir() and not random:
            return self.kind.training_set(config), f"{config.data.train} of {resolve(root)}"
        data = replace(config.data, classes=config.data.classes or self._known_classes())
        channels = config.student.options.get("in_channels", 3)
        return random_set(data, self.kind.task, BATCHES * config.train.batch_size, channels), "random"

    def _known_classes(self) -> list[str] | None:
        """Those of a trained network, where there is one."""
        paths = [net.checkpoint and resolve(net.checkpoint) for net in (self.config.student, self.config.teacher)]
        trained = [path for path in paths if path and path.exists()]
        return load_model(trained[0], task=self.kind.task)[1]["classes"] if trained else None

    def _network(self, net: NetConfig, role: str, image_size: int | None) -> nn.Module:
        if net.checkpoint is not None and resolve(net.checkpoint).exists():
            model = build_net(self.kind, net, role, self.dataset.classes)
            self.weights[role] = net.checkpoint
        else:
            model = self.kind.build(replace(net, weights=None, checkpoint=None), self.dataset.classes)
            self.weights[role] = "random"
        if image_size is not None and self.kind.task == "detection":
            transform = model.transform
            transform.max_size = round(image_size * transform.max_size / transform.min_size[0])
            transform.min_size = (image_size,)
        return model.to(self.device)

    def _loaded(self, count: int) -> list[tuple[Any, Any]]:
        loader = self.loader()
        loaded = [next(loader) for _ in range(count)]
        loader.close()
        return loaded

    def _seen(self, images: Any) -> Tensor:
        """What a task gives to the teacher's backbone, in whichever memory layout it does."""
        inputs = []
        hook = self.teacher.backbone.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        build_task(copy.deepcopy(self.student), self.teacher).teacher_maps(images)
        hook.remove()
        return inputs[0]

    def _add_training(self, name: str, method: str, cached: bool = False, compiled: bool = False) -> Trainer:
        config, classes = replace(self.config, method=method), self.dataset.classes
        cache = TeacherCache(config.train.cache_teacher) if cached else None
        distiller = Distiller(
            copy.deepcopy(self.student),
            None if method == "none" else self.teacher,
            method,
            config.method_settings(),
            classes,
            classes,
            self.kind.image_size(self.dataset),
            cache,
        )
        if cache is not None:
            cache.fill(distiller, self.dataset, config)
            self.cached.add(name)
        if compiled:
            compile_backbones(distiller.task, self.device)
        trainer = self.trainers[name] = Trainer(distiller, self.dataset, config.train, Path("."), quiet=True)
        distiller.train()
        stages = [stage for stage in distiller.stages if stage.steps != 0]
        for stage in stages:
            title = name if method == "none" else f"{name}: {stage.name}"
            self.cycle = math.lcm(self.cycle, stage.every)
            self.works[title] = _steps_of(trainer, stage)
            self.last_stage[name] = title
        return trainer

    @torch.no_grad()
    def _teacher_forward(self, batch: Batch) -> Any:
        with self.autocast():
            return self.teacher.backbone(batch.tensors)

    @torch.inference_mode()
    def _evaluate(self, model: nn.Module, batch: Batch) -> None:
        images = batch.images
        model(images.to(self.device) if isinstance(images, Tensor) else [image.to(self.device) for image in images])


def _steps_of(trainer: Trainer, stage: Stage) -> Work:
    """One step of *stage* after the other, on whichever batch, in its turns."""
    steps = count()
    return lambda batch: trainer.train_step(stage.turn(next(steps)), iter([(batch.images, batch.targets)]))


def _constant(config: Config, image_size: int | None) -> Config:
    """*config* with a budget that fits every stage, whole batches, and a learning rate that changes nothing."""
    config = copy.deepcopy(config)
    config.train.epochs, config.train.accumulate, config.train.lr_per_image = 1_000_000, 1, 1e-12
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size {image_size}: it must be 1 or more")
    if image_size is not None and kind_of(config).task == "classification":
        config.data.image_size = image_size
    return config
