"""docs/architecture.md is true: its names exist, its floors are the contract's, its hops are called in its order."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from detkt.distiller import Distiller
from detkt.engine.run import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`([\w./]+\.py):([\w.]+)`", PAGE)))
FILES = sorted(set(re.findall(r"`((?:[\w.]+/)+(?:\w+\.py)?)[`:]", PAGE)))


def section(title: str) -> str:
    """What stands under a heading of the page."""
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], flags=re.M)[0]


def hops(title: str) -> list[str]:
    return re.findall(r"^\d+\. `([\w./]+\.py:[\w.]+)`", section(title), flags=re.M)


@pytest.mark.parametrize(("file", "name"), [pair for pair in NAMES if pair != ("file.py", "Name.name")])
def test_a_name_exists(file, name):
    if file.startswith("tests/"):
        tree = ast.parse((ROOT / file).read_text())
        assert name in [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    elif file != "path/to/file.py":
        assert found(f"{file}:{name}") is not None


@pytest.mark.parametrize("path", [path for path in FILES if path != "path/to/file.py"])
def test_a_file_or_folder_exists(path):
    assert (ROOT / path).exists() or (ROOT / "detkt" / path).exists()


def test_floors_are_those_of_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    assert re.findall(r"^\| `(\w+)` \|", section("Floors"), flags=re.M) == contract["layers"]


def module_of(file: str):
    path = file.removesuffix("/__init__.py").removesuffix("__init__.py").removesuffix(".py")
    return importlib.import_module(".".join(["detkt", *path.split("/")]))


def found(hop: str):
    """The object that ``file.py:Name.name`` names."""
    file, _, name = hop.partition(":")
    return functools.reduce(getattr, name.split("."), module_of(file))


@pytest.fixture
def spy(monkeypatch):
    """``spy(hops, method)``: watched from the first hop on: a list that each is added to when it is first called."""

    def watch(hops: list[str], method: str) -> list[str]:
        called: list[str] = []
        for hop in hops:
            file, _, name = hop.partition(":")
            place = method if hop == "methods/base.py:Method.step" else hop
            original = found(place)

            def recording(*arguments, _hop=hop, _original=original, **named):
                if _hop not in called and (called or _hop == hops[0]):
                    called.append(_hop)
                return _original(*arguments, **named)

            recording = functools.wraps(original)(recording)
            owner, _, attribute = place.partition(":")[2].rpartition(".")
            if owner:
                monkeypatch.setattr(found(f"{place.partition(':')[0]}:{owner}"), attribute, recording)
                continue
            # A function: whoever has imported it.
            for module in [m for key, m in sys.modules.items() if key.split(".")[0] == "detkt"]:
                for key, value in list(vars(module).items()):
                    if value is original:
                        monkeypatch.setattr(module, key, recording)
        return called

    return watch


def test_a_run_takes_the_hops_in_their_order(spy, tiny_config, tmp_path):
    path = hops("The path of a batch in a run")
    assert len(path) > 15
    called = spy(path, "methods/kd.py:KD.step")
    train(tiny_config("method=kd", "train.epochs=1"), tmp_path / "run", quiet=True)
    assert called == path


def test_a_loop_of_ones_own_takes_the_hops_in_their_order(spy, detector, batch):
    path = hops("The path of a batch in a loop of one's own")
    assert len(path) > 7
    student, teacher = detector(), detector(seed=1)
    settings = {"regressor_steps": 1, "warmup_steps": 0, "discriminator_width": 8}
    with Distiller(student, teacher, "ktan", settings) as distiller:
        distiller.prepare([batch])
        optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-3)
        called = spy(path, "methods/ktan.py:KTAN.step")
        sum(distiller(*batch).values()).backward()
        optimizer.step()
    assert called == path
