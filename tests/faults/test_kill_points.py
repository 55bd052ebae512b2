"""kill -9 at every point that matters: the checkpoint before is whole, and going on from it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child, kill_self
from run_comparison import assert_same_run

from detkt.config import load_config
from detkt.data.shapes import ShapesConfig, write_shapes
from detkt.engine import run
from detkt.engine.checkpoint import load_checkpoint
from detkt.engine.jobs import ClassificationJob
from detkt.engine.reporting import Reporter
from detkt.engine.run import train
from detkt.engine.trainer import Trainer
from detkt.methods.players import Players
from detkt.models import load_model

# Two epochs of 4 steps. Checkpoints: after steps 2, 4 (before and after it is scored, and by the clock), 6, and 8.
SETTINGS = ("data.val=val", "train.keep=2", "train.checkpoint_every=2", "train.log_every=3")


@pytest.fixture(scope="module")
def config(tiny_classifier_file):
    return load_config(tiny_classifier_file, SETTINGS)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config, folder, quiet=True)
    return folder


# -- where it is killed: each is called in the child, before the run -------------------------------------------------


def on_call(owner: object, name: str, number: int, before: Callable = kill_self) -> Callable[[], None]:
    """Killed when the method *name* is called for the *number*-th time."""

    def arrange() -> None:
        original, calls = getattr(owner, name), 0

        def counted(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                before(*arguments) if before is not kill_self else kill_self()
            return original(*arguments, **options)

        setattr(owner, name, counted)

    return arrange


def on_write(name: str, number: int, moment: str) -> Callable[[], None]:
    """Killed when the file *name* is written for the *number*-th time: half of it is, or all but its name, or all."""

    def arrange() -> None:
        original, calls = os.replace, 0

        def replace(temporary, path):
            nonlocal calls
            calls += str(path).endswith(f"/{name}")
            if calls == number and str(path).endswith(f"/{name}"):
                if moment == "half":
                    os.truncate(temporary, os.path.getsize(temporary) // 2)
                elif moment == "after":
                    original(temporary, path)
                kill_self()
            original(temporary, path)

        os.replace = replace

    return arrange


def half_a_line(reporter: Reporter, entry: dict) -> None:
    reporter._file.write(json.dumps(entry)[:40])
    reporter._file.flush()
    kill_self()


POINTS = {  # id: (how, the step of last.pt then; None: there is none)
    "before-the-folder": (on_call(run, "open_folder", 1), None),
    "config-half": (on_write("config.yaml", 1, "half"), None),
    "config-whole": (on_write("config.yaml", 1, "whole"), None),
    "first-step": (on_call(Trainer, "train_step", 1), None),
    "step": (on_call(Trainer, "train_step", 6), 4),
    "update": (on_call(Players, "step", 7), 6),
    "first-last-half": (on_write("last.pt", 1, "half"), None),
    "first-last-whole": (on_write("last.pt", 1, "whole"), None),
    "first-last-after": (on_write("last.pt", 1, "after"), 2),
    "last-half": (on_write("last.pt", 5, "half"), 4),
    "last-whole": (on_write("last.pt", 5, "whole"), 4),
    "last-after": (on_write("last.pt", 5, "after"), 6),
    "older-whole": (on_write("checkpoint-4.pt", 1, "whole"), 4),
    "older-after": (on_write("checkpoint-4.pt", 1, "after"), 4),
    "log-line": (on_call(Reporter, "log", 3, half_a_line), 4),
    "scores": (on_call(ClassificationJob, "evaluate", 2), 8),
    "best-half": (on_write("best/model.safetensors", 1, "half"), 4),
    "best-between": (on_write("best/model.safetensors", 1, "after"), 4),
    "best-after": (on_write("best/model.json", 1, "after"), 4),
    "test-scores": (on_call(ClassificationJob, "evaluate", 3), 8),
    "model-half": (on_write("run/model.safetensors", 1, "half"), 8),
    "model-between": (on_write("run/model.safetensors", 1, "after"), 8),
    "metrics-half": (on_write("metrics.json", 1, "half"), 8),
    "metrics-whole": (on_write("metrics.json", 1, "whole"), 8),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_leaves_the_checkpoint_before_and_goes_on(point, config, whole, tmp_path):
    arrange, step = POINTS[point]
    folder = tmp_path / "run"
    child = Child(lambda: (arrange(), train(config, folder, quiet=True)), tmp_path)
    assert child.wait() == -9
    assert child.stderr == ""
    checkpoints = {path.name: load_checkpoint(path)["step"] for path in folder.glob("*.pt")}
    assert checkpoints.get("last.pt") == step
    assert all(name in ("last.pt", f"checkpoint-{found}.pt") for name, found in checkpoints.items())
    assert not (folder / "metrics.json").exists()
    if (folder / "config.yaml").exists():
        assert load_config(folder / "config.yaml").train.keep == 2, "whole"
    train(config, folder, resume=folder / "last.pt" if step else None, overwrite=step is None, quiet=True)
    assert_same_run(folder, whole)
    assert list(folder.rglob(".*")) == [], "what the killed process was writing is gone"


@pytest.mark.parametrize(("number", "left"), [(1, "all"), (2, "no config"), (5, "no config")])
def test_a_run_killed_while_it_replaces_another_leaves_no_mixture(number, left, config, whole, tmp_path):
    """The old run's config goes first: what is left then is nothing to go on with, and cannot pass for the new run."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    other = load_config(whole / "config.yaml", ["method=kd"])
    child = Child(
        lambda: (on_call(Path, "unlink", number)(), train(other, folder, overwrite=True, quiet=True)), tmp_path
    )
    assert child.wait() == -9
    files = {path.name for path in folder.iterdir()}
    assert len({path.name for path in whole.iterdir()} - files) == number - 1
    assert ("config.yaml" in files) == (left == "all")
    if left == "all":
        assert_same_run(folder, whole)
    train(config, folder, overwrite=True, quiet=True)
    assert_same_run(folder, whole)


def test_shapes_killed_while_they_are_drawn_are_not_there(tmp_path):
    config = ShapesConfig(image_size=64, train=4, test=2, val=2)
    child = Child(
        lambda: (on_call(Path, "write_bytes", 5)(), write_shapes(tmp_path / "shapes", config)),
        tmp_path,
    )
    assert child.wait() == -9
    assert not (tmp_path / "shapes").exists()
    write_shapes(tmp_path / "shapes", config)
    assert len(list((tmp_path / "shapes" / "JPEGImages").iterdir())) == 8


@pytest.mark.parametrize("moment", ["half", "whole"])
def test_an_export_killed_while_it_writes_leaves_the_model_before(moment, place, tool, tmp_path):
    folder, before = place["run"], (place["run"] / "model.safetensors").read_bytes()
    flags = ["--checkpoint", str(place["student"]), "--output", str(folder)]
    child = Child(lambda: (on_write("model.safetensors", 1, moment)(), tool("export").main(flags)), tmp_path)
    assert child.wait() == -9
    assert (folder / "model.safetensors").read_bytes() == before
    load_model(folder)
    tool("export").main(flags)
    assert (folder / "model.safetensors").read_bytes() == (place["student"] / "model.safetensors").read_bytes()
