"""``pip install .`` into an empty environment, outside the clone: the command, configs, models and types are there."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SMALL = [
    *("--epochs", "1", "--batch-size", "4", "--device", "cpu", "--quiet", "data.shapes.train=8", "data.shapes.test=4"),
    *("data.shapes.val=0", "train.warmup_steps=1", "methods.ktan.regressor_steps=1", "methods.ktan.warmup_steps=1"),
]


def test_every_package_is_named_in_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg")
    named = setup["options"]["packages"].split()
    found = {".".join(path.parent.relative_to(PROJECT).parts) for path in PROJECT.glob("detkt/**/__init__.py")}
    assert set(named) == found | {"detkt.shipped.configs", "detkt.shipped.data"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with nothing but detkt in it; what detkt needs is lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"  # pip leaves its build in the folder it installs from
    keep = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("detkt", "configs", "data/models"):
        shutil.copytree(PROJECT / name, source / name, ignore=keep)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(PROJECT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text("\n".join(lent))
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed", source]
    subprocess.run([folder / "venv" / "bin" / "python", *install], env=clean(), check=True, capture_output=True)
    shutil.rmtree(source)
    return folder / "venv"


def clean() -> dict[str, str]:
    """The process's variables, without what would lead to the clone."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_an_installed_detkt_trains_in_an_empty_folder(environment, tmp_path):
    def run(*command: str) -> subprocess.CompletedProcess:
        program, *arguments = command
        return subprocess.run(
            [environment / "bin" / program, *arguments], cwd=tmp_path, env=clean(), capture_output=True, text=True
        )

    program = """
import detkt.config, detkt.base.commands
print(detkt.__path__[0], detkt.config.find_config("shapes"), detkt.base.commands.command("eval"), sep="\\n")"""
    where, config, command = run("python", "-c", program).stdout.splitlines()
    shipped = Path(where) / "shipped"
    assert Path(where).is_relative_to(environment)
    assert Path(config) == shipped / "configs" / "shapes.yaml"
    assert command == "detkt eval"
    for kind in ("configs", "data/models"):
        here = {path.relative_to(PROJECT) for path in (PROJECT / kind).rglob("*.*")}
        assert {path.relative_to(shipped) for path in (shipped / kind).rglob("*.*")} == here
    assert (Path(where) / "py.typed").is_file()
    for folder in ("visualization/report_template", "cli"):
        assert {path.name for path in (Path(where) / folder).glob("*.*")} == {
            path.name for path in (PROJECT / "detkt" / folder).glob("*.*")
        }

    told = run("detkt", "train-det", "--method", "ktan", *SMALL)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("ktan on shapes, seed 0: ")
    metrics = json.loads((tmp_path / "runs" / "shapes-ktan-s0" / "metrics.json").read_text())
    assert (metrics["updates"], metrics["method"]) == (2, "ktan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"], "nothing is written elsewhere"
    assert not (shipped / "data" / "shapes").exists()
