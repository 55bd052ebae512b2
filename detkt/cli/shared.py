"""What the commands share: flags, error lines, exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from detkt import methods
from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.config import Config, find_config, load_config, load_data_config, shorten
from detkt.engine.trainer import Interrupted

RESUME = "go on with --resume {folder}"


def run_tool(main: Callable[[list[str] | None], None], to_go_on: str = RESUME) -> None:
    """Call *main* and exit: 0 done; 2 bad input, with one line ``error: ...``; 128 + signal when stopped.

    *to_go_on* is what the command tells after a training that was stopped; "{folder}" in it is the run's.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # until now the process just ended, see detkt.cli.main
    # What the package tells while it works, such as which of a file's weights were loaded.
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("detkt").setLevel(logging.INFO)
    try:
        main(None)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"{stop}; the checkpoint is saved, {to_go_on.format(folder=stop.folder)}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone
        # Else the interpreter complains once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # what no reader or writer of files foresaw: a name too long, a disk that fails
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {InputError(f'{where}{error.strerror or error}')}", file=sys.stderr)
        sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Usage errors in the same form as all others: one line, status 2. What follows the flags is shown as written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def own_reading(checkpoint: Path) -> dict[str, str]:
    """How the run of *checkpoint* read its data, if it is one's: they are read alike here, unless told otherwise."""
    try:
        data = load_data_config((checkpoint if checkpoint.is_dir() else checkpoint.parent) / "config.yaml")
    except InputError:  # the model is no run's
        return {}
    reading = {"format": data.format, "exif": data.exif, "boxes": data.boxes}
    return {key: value for key, value in reading.items() if key != "format" or value in ("coco", "yolo")}


def training_parser(name: str, description: str, example: str, default_config: str) -> Parser:
    """The flags that the commands ``train-det`` and ``train-cls`` share; *name* is which."""
    parser = Parser(
        prog=command(name),
        description=description,
        epilog=f"example:\n  {example}",
    )
    names = ", ".join(methods.available())
    parser.add_argument("--method", help=f"{names}; path/to/file.py:CLASS for one of yours; a sum such as ktan+kd")
    parser.add_argument(
        "--config", help=f"data set and teacher/student pair: a YAML file or its name in configs/ ({default_config})"
    )
    parser.add_argument("--data-root", help="the data set's folder")
    parser.add_argument("--role", choices=("student", "teacher"), help="which network of the pair to train")
    parser.add_argument(
        "--teacher", metavar="CKPT", help="trained teacher: a run's folder, torchvision:NAME, or weights"
    )
    parser.add_argument("--student-init", metavar="CKPT", help="trained network to start from ('none': from scratch)")
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/CONFIG-METHOD-sSEED)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, help="processes that load pictures")
    parser.add_argument(
        "--cache-teacher", metavar="DIR", help="keep the teacher's maps on disk, so that steps cost the student alone"
    )
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile for the backbones")
    parser.add_argument(
        "--resume", metavar="CKPT", nargs="?", const="", help="go on with a run (default CKPT: OUTPUT/last.pt)"
    )
    parser.add_argument("--keep", type=int, metavar="N", help="how many checkpoints to keep (default: 1, last.pt)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    parser.add_argument(
        "--trial",
        action="store_true",
        help="two updates a stage, eight test pictures: see that all works before a long run",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any setting of the config")
    return parser


_FLAGS = {
    "method": "method",
    "data_root": "data.root",
    "role": "role",
    "teacher": "teacher.checkpoint",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "device": "train.device",
    "precision": "train.precision",
    "workers": "train.workers",
    "keep": "train.keep",
    "compile": "train.compile",
    "cache_teacher": "train.cache_teacher",
}
# What may differ between a run and its continuation without changing what is learnt.
_RUNTIME = {"data_root", "device", "workers", "keep", "quiet", "output", "resume"}


def training_config(arguments: argparse.Namespace, default_config: str) -> tuple[Config, Path, Path | None]:
    """The resolved config, the output folder and the checkpoint to resume from (None: a new run).

    A resumed run takes its settings from its own ``config.yaml``; flags that would change them are refused.
    """
    if arguments.resume is not None:
        return _resumed(arguments)
    config = load_config(find_config(arguments.config or default_config), _overrides(arguments, _FLAGS))
    start = None if arguments.student_init == "none" else arguments.student_init
    if config.role == "teacher":
        if arguments.teacher:
            raise InputError("--teacher is for students; a teacher starts from a checkpoint with --student-init CKPT")
        # The config's own is what teaches students; one that was asked for is meant.
        if start or not any(str(given).startswith("teacher.checkpoint=") for given in arguments.overrides):
            config.teacher.checkpoint = start
    elif arguments.student_init:
        config.student.checkpoint = start
    name = config.run_name
    if arguments.trial:
        shorten(config)
        name += "-trial"
    return config, Path(arguments.output or f"runs/{name}"), None


def train_and_tell(arguments: argparse.Namespace, default_config: str, task: str) -> None:
    """Train what the flags of :func:`training_parser` ask for, and print the scores; of several processes one does."""
    # Imported here: tools that do not train would wait for it.
    from detkt.base.processes import Processes
    from detkt.engine.run import train
    from detkt.kinds import kind_of, require_kind

    config, folder, resume = training_config(arguments, default_config)
    require_kind(config, task)
    metrics = train(config, folder, resume=resume, overwrite=arguments.overwrite, quiet=arguments.quiet)
    if Processes().is_main:
        print(
            f"{config.label} on {config.name}, seed {config.train.seed}: "
            f"{kind_of(config).summary(metrics)} on {metrics['split']}; "
            f"{metrics['updates']} updates in {metrics['seconds']:.0f} s; model in {folder}"
            + ("; a trial, whose scores say nothing" if arguments.trial else "")
        )


def _resumed(arguments: argparse.Namespace) -> tuple[Config, Path, Path]:
    if not arguments.resume and not arguments.output:
        raise InputError("--resume needs to know the run: give its checkpoint, or --output with its folder")
    checkpoint = Path(arguments.resume) if arguments.resume else Path(arguments.output) / "last.pt"
    if checkpoint.is_dir():
        checkpoint /= "last.pt"
    folder = Path(arguments.output) if arguments.output else checkpoint.parent
    changed = [
        "--" + name.replace("_", "-")
        for name, value in vars(arguments).items()
        if value is not None and value is not False and name not in _RUNTIME and name != "overrides"
    ]
    if changed or arguments.overrides:
        raise InputError(
            f"{(changed + arguments.overrides)[0]} cannot be given with --resume: the run goes on with its own "
            "settings; leave it out"
        )
    if not checkpoint.is_file():
        raise InputError(f"no checkpoint at {checkpoint}; nothing to resume")
    flags = {name: key for name, key in _FLAGS.items() if name in _RUNTIME}
    return load_config(checkpoint.parent / "config.yaml", _overrides(arguments, flags)), folder, checkpoint


def _overrides(arguments: argparse.Namespace, flags: dict[str, str]) -> list[str]:
    # JSON is YAML in which a path stays the string it is, whatever it looks like.
    given = {key: getattr(arguments, name) for name, key in flags.items() if getattr(arguments, name) is not None}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()] + arguments.overrides
