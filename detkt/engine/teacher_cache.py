"""The frozen teacher's maps of all training pictures, on disk: with them no training step runs the teacher's backbone.

A pass over the data before training writes what the task reveals of the teacher (the backbone's outputs and the layers
that the method names), for every picture as it is and mirrored, computed in float32 and kept in bfloat16. Training
steps read them through a memory mapping.

* It is the teacher's own maps that are kept, not maps regressed to the student's size: they serve every method and
  every student, and the stage in which KTAN's regressor learns. A regressor is a 1x1 convolution, and costs little.
* With ``teacher.own_size`` they are those of its own size.
* Every other augmentation would give a picture new maps each time; so only flips are allowed.
* What reads the teacher's maps still runs: its head, where a method asks for scores (``kd``) or for its losses (KTAN's
  first stage).
* A detector's batch is padded to its largest picture, but here each picture was seen alone, padded to the size divisor.
  Its maps are laid into the batch's; beyond them are zeros, which the methods mask, and cells near such a border differ
  from those of a run without the cache, as far as padding reaches into the picture. Where all pictures of a batch have
  the same size the maps are the same, rounded to bfloat16.

The folder holds the maps, one picture after the other, and a JSON file that says what they were made of. A cache that
was made of anything else than this run has is refused. One that is not complete is completed.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.base.files import make_folder
from detkt.config import Config
from detkt.data.base import PictureSet
from detkt.data.loading import dead_workers_in_one_line, training_loader
from detkt.distiller import Distiller
from detkt.engine.teacher_maps import (
    BYTES,
    FORMAT,
    MAPS,
    Header,
    Layout,
    Shapes,
    StoredMaps,
    append,
    is_complete,
    lock,
    read_header,
    save,
)
from detkt.kinds import kind_of
from detkt.models.card import ModelCard, find_card
from detkt.tasks import Task

SAVE_EVERY = 2**28  # bytes: what a killed process has to compute again at most

log = logging.getLogger(__name__)


class TeacherCache:
    """The maps kept in *folder*: made before the distiller that is to read them, filled once there is one.

    With it a :class:`detkt.Distiller` takes the teacher's maps from here, and not from the teacher's backbone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._maps: StoredMaps | None = None

    def fill(self, distiller: Distiller, dataset: PictureSet, config: Config, quiet: bool = False) -> None:
        """Write or complete what is missing of the teacher's maps; another run that is writing them is awaited.

        Args:
            distiller: whose teacher it is, and whose method says which layers are kept.
            dataset: the training pictures.
            config: says how pictures are augmented, and the batch size and workers of the pass.
            quiet: no progress bar.

        Raises:
            InputError: the method has no teacher, pictures are changed by more than flips, the cache is of another
                teacher, data set or transform, the folder cannot be made, or the disk is too full.
        """
        _check_cacheable(config, distiller)
        states = ([False] if config.data.flip < 1 else []) + ([True] if config.data.flip > 0 else [])
        key, task = _key(distiller, dataset, states), distiller.task
        known = {size: " x ".join(map(str, task.input_size(*size))) for size in set(dataset.picture_sizes)}
        inputs = [known[size] for size in dataset.picture_sizes]
        header = read_header(self.folder, key)
        if header is None or not is_complete(self.folder, header, Layout(inputs, header.shapes, states)):
            make_folder(self.folder, "--cache-teacher")
            # Unbuffered: what a full disk has refused must not be tried again when the file is closed.
            with open(self.folder / MAPS, "ab", buffering=0) as file:
                lock(file, self.folder)
                header = read_header(self.folder, key) or Header(FORMAT, key, _probe(task, dataset, inputs))
                layout = Layout(inputs, header.shapes, states)
                if not is_complete(self.folder, header, layout):
                    _write(file, self.folder, header, layout, config, task, dataset, quiet)
        self._maps = StoredMaps(self.folder / MAPS, Layout(inputs, header.shapes, states))

    def read(self, pictures: Sequence[int], flipped: Sequence[bool], device: torch.device) -> dict[str, Tensor]:
        """The teacher's maps of a batch by name: (N, C, H, W) on *device*, H and W those of the largest.

        They are float32, under autocast its type. pictures: indices in the data set; flipped: which are mirrored.
        """
        if self._maps is None:
            raise InputError(f"the teacher cache {self.folder} was not filled: call fill() before the first batch")
        return self._maps.read(pictures, flipped, device)


def _check_cacheable(config: Config, distiller: Distiller) -> None:
    if distiller.teacher is None:
        raise InputError(f"method '{config.method}' learns from no teacher: leave --cache-teacher out")
    for name, changing in kind_of(config).random_changes(config.data).items():
        if changing:
            raise InputError(
                "--cache-teacher keeps maps of whole pictures and their mirror images, but with "
                f"data.{name}={getattr(config.data, name)} pictures are changed at random in other ways; switch that "
                "off, or leave --cache-teacher out"
            )
    transform = getattr(distiller.student, "transform", None)
    if transform is not None and len(transform.min_size) > 1:
        raise InputError("--cache-teacher needs pictures of one size, but the student's transform has several min_size")


def _key(distiller: Distiller, dataset: PictureSet, states: list[bool]) -> dict[str, Any]:
    """What the maps depend on, by names that an error message can use."""
    teacher, spec = distiller.teacher, distiller.method.teacher_spec
    assert teacher is not None and spec is not None
    card = find_card(teacher) or ModelCard("", type(teacher).__name__, 0, {})
    transform = getattr(distiller.student, "transform", None)
    own_size = getattr(distiller.task, "own_size", None)
    own = own_size.settings if own_size is not None else {}
    settings = ("min_size", "max_size", "image_mean", "image_std", "size_divisible", "fixed_size") if transform else ()
    key = {
        "the teacher's architecture": card.architecture,
        **{f"the teacher's option {name}": value for name, value in card.options.items()},
        "the hash of the teacher's weights": _weights_hash(teacher),
        "the list of layers": list(spec.features),
        **{f"{name} of the image transform": getattr(transform, name) for name in settings},
        **{f"{name} of the teacher's own transform": value for name, value in own.items()},
        "the hash of the pictures' list, sizes and times": dataset.fingerprint(),
        "the list of flips": states,
        "the precision": "bfloat16",
    }
    return json.loads(json.dumps(key))  # tuples become lists, as they come back from the file


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _probe(task: Task, dataset: PictureSet, inputs: list[str]) -> Shapes:
    """Shapes of the maps for every input size, from one picture of each."""
    plain, shapes = dataset.plain(), {}
    first = {size: picture for picture, size in reversed(list(enumerate(inputs)))}
    for size, (images, _) in zip(first, training_loader(plain, [[i] for i in first.values()], 0, False), strict=True):
        shapes[size] = {name: list(found.shape[1:]) for name, found in task.teacher_maps(images).items()}
    return shapes


def _write(
    file: BinaryIO,
    folder: Path,
    header: Header,
    layout: Layout,
    config: Config,
    task: Task,
    dataset: PictureSet,
    quiet: bool,
) -> None:
    """Append what is missing, and say in the header, from time to time, how far it is safe."""
    whole = bisect.bisect_right(layout.ends, os.fstat(file.fileno()).st_size // BYTES)
    written = min(header.written, whole)
    kept = BYTES * layout.ends[written - 1] if written else 0
    missing = BYTES * layout.ends[-1] - kept
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise InputError(
            f"the teacher cache needs {_size(missing)} in {folder}, but {_size(free)} are free there; free space, or "
            "choose another --cache-teacher"
        )
    log.info(
        "teacher cache %s: writing %s, the maps %s of %d pictures%s",
        folder,
        _size(missing),
        ", ".join(layout.names),
        len(layout.order) - written,
        " and their mirror images" if len(layout.states) == 2 else "",
    )
    file.truncate(kept)
    header.written = written
    batches = layout.batches(written, config.train.batch_size)
    loader = training_loader(dataset.plain(), batches, config.train.workers, False)
    bar = tqdm(
        total=len(layout.order),
        initial=written,
        desc="cache teacher",
        unit="picture",
        disable=quiet,
        file=sys.stderr,
    )
    unsaved = 0
    try:
        with bar, dead_workers_in_one_line():
            for batch, (images, _) in zip(batches, loader, strict=True):
                content = _entries(task, images, layout)
                append(file, content, folder)
                header.written += len(batch)
                unsaved += len(content)
                bar.update(len(batch))
                if unsaved >= SAVE_EVERY:
                    save(file, folder, header)
                    unsaved = 0
    except BaseException:
        # After Ctrl-C, too, what is written is kept; where the disk is full, there may be no room to say so.
        with suppress(InputError):
            save(file, folder, header)
        raise
    save(file, folder, header)


def _entries(task: Task, images: Any, layout: Layout) -> memoryview:
    """The bytes of a batch: picture by picture, state by state, map by map."""
    states = []
    for mirrored in layout.states:
        maps = task.teacher_maps(_mirror(images) if mirrored else images)
        states += [maps[name].to(torch.bfloat16).flatten(1) for name in layout.names]
    return torch.cat(states, dim=1).cpu().view(torch.int16).numpy().data.cast("B")


def _mirror(images: Tensor | Iterable[Tensor]) -> Tensor | list[Tensor]:
    return images.flip(-1) if isinstance(images, Tensor) else [image.flip(-1) for image in images]


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
