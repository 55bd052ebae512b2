"""Methods from outside the package: a file's class, an installed package's entry point, and what is wrong with them."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

import detkt
from detkt import methods
from detkt.base.errors import InputError
from detkt.config import load_config
from detkt.engine.run import resolve_config
from detkt.engine.trainer import Interrupted
from detkt.methods import outside

SOURCE = '''
from __future__ import annotations

from dataclasses import dataclass

from detkt import Method, Needs, Stage, Update
from detkt.methods import MethodConfig


@dataclass
class ShiftConfig(MethodConfig):
    weight: float = 2.0


class Shift(Method):
    """The student's map has the mean of the teacher's. One stage."""

    name = "shift"
    citation = "Nobody, Nothing of the Kind, arXiv:2012.00001 (2021)"
    Config = ShiftConfig

    def stages(self):
        return [Stage("distill", Needs.STUDENT | Needs.TEACHER_FEATURES)]

    def step(self, stage, student, teacher, heads):
        gap = student.features["output"].mean() - teacher.features["output"].mean()
        yield Update("student", {self.name: self.config.weight * gap.square()})
'''


@pytest.fixture
def shift(tmp_path):
    """``path/to/shift.py:Shift``"""
    (tmp_path / "shift.py").write_text(SOURCE)
    return f"{tmp_path}/shift.py:Shift"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``package(points, source, name)``: a package is installed that offers methods; gone after the test."""
    before = set(sys.modules)

    def install(points: dict[str, str], source: str = SOURCE, name: str = "plugin") -> None:
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}\n" for key, value in points.items()]
        (info / "entry_points.txt").write_text("".join(["[detkt.methods]\n", *lines]))
        (tmp_path / "site" / f"{name}_methods.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        outside._entry_points.cache_clear()

    yield install
    monkeypatch.undo()
    outside._entry_points.cache_clear()
    for module in set(sys.modules) - before:
        if module.endswith("_methods"):
            del sys.modules[module]


def refusal(method: str) -> str:
    with pytest.raises(InputError) as refused:
        methods.parse(method)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- of a file -------------------------------------------------------------------------------------------------------


def test_a_file_is_run_once_and_its_class_has_settings(shift, tmp_path, monkeypatch):
    cls = methods.method_class(shift)
    assert (cls.name, cls.__name__) == ("shift", "Shift")
    assert issubclass(cls, detkt.Method)
    monkeypatch.chdir(tmp_path)
    assert methods.method_class("shift.py:Shift") is methods.method_class("./shift.py:Shift") is cls
    assert methods.parse(shift, {"shift": {"weight": 3}}) == {cls: cls.Config(weight=3.0)}
    kd = methods.method_class("kd")
    assert list(methods.parse("shift.py:Shift + kd", {"kd": {"alpha": 0.5}})) == [cls, kd]
    assert "shift" not in methods.available()
    with pytest.raises(InputError, match=r"unknown key 'methods.shift.wieght' \(did you mean 'weight'\?\)"):
        methods.parse(shift, {"shift": {"wieght": 3}})


@pytest.mark.parametrize(
    ("method", "source", "message"),
    [
        ("{file}", SOURCE, "method '{file}' names a file but no class in it; write {file}:CLASS"),
        ("{file}:", SOURCE, "method '{file}:' names a file but no class in it; write {file}:CLASS"),
        ("no/{name}:Shift", SOURCE, "method 'no/{name}:Shift': there is no file no/{name}"),
        ("{file}:Shfit", SOURCE, "'Shfit' derived from detkt.Method (did you mean 'Shift'?); it has: Shift"),
        ("{file}:ShiftConfig", SOURCE, "has no class 'ShiftConfig' derived from detkt.Method"),
        ("{file}:Method", SOURCE, "has no class 'Method' derived from detkt.Method"),
        ("{file}:Shift", "x = 1", "has no class 'Shift' derived from detkt.Method; it has: none"),
        ("{file}:Shift", "\n\nx = (", "method file {file}, line 3: SyntaxError: '(' was never closed"),
        ("{file}:Shift", "x = 1\ny = 1 / (x - 1)", "method file {file}, line 2: ZeroDivisionError: division by zero"),
        ("{file}:Shift", "import nowhere_at_all", "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("{file}:Shift", SOURCE.replace('"shift"', '"kd"'), "is called 'kd', as another is: set its name to a new one"),
        ("{file}:Shift", SOURCE.replace('"shift"', '"a b"'), "has the name 'a b'; set its attribute name to letters"),
        ("{file}:Shift", SOURCE.replace('name = "shift"', ""), "has the name ''; set its attribute name to letters"),
        ("{file}:Shift+{file}:Shift", SOURCE, "names a method twice"),
        ("{file}:Shift+none", SOURCE, "'none' adds nothing to a sum"),
        ("shift", SOURCE, "unknown method 'shift'"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit(tmp_path, method, source, message):
    file = tmp_path / "own_method.py"
    file.write_text(source)
    names = {"file": str(file), "name": file.name}
    assert message.format(**names) in refusal(method.format(**names))


def test_a_file_that_failed_is_tried_again(tmp_path):
    file = tmp_path / "own_method.py"
    file.write_text("1 / 0")
    assert "division by zero" in refusal(f"{file}:Shift")
    file.write_text(SOURCE)
    assert methods.method_class(f"{file}:Shift").name == "shift"


def test_a_config_keeps_the_file_from_the_root_on(shift, tiny_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(tiny_file, ["method=shift.py:Shift+kd", "methods.shift.weight=7"])
    assert (config.method, config.method_name) == (f"{shift}+kd", "shift+kd")
    assert resolve_config(config).methods["shift"]["weight"] == 7
    assert resolve_config(config).methods["kd"]["alpha"] == 0.9
    alone = load_config(tiny_file, [f"method={shift}", "methods.shift.weight=7"])
    assert alone.method_settings() == {"weight": 7}
    # Without the file nobody knows the section's keys.
    with pytest.raises(InputError, match="unknown method 'shift'"):
        load_config(tiny_file, ["methods.shift.weight=7"])


def test_a_run_with_a_file_goes_on_from_another_folder(shift, tool, tiny_file, tmp_path, monkeypatch, at_step):
    """Trained in one go, and stopped and resumed elsewhere: the same numbers; the run is called by the class's name."""
    logs = []
    flags = ["--config", str(tiny_file), "--method", "shift.py:Shift+kd", "methods.shift.weight=7", "--quiet"]
    for name in ("whole", "stopped"):
        run = tmp_path / name
        monkeypatch.chdir(tmp_path)
        if name == "stopped":
            at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
            with pytest.raises(Interrupted):
                tool("train_det").main([*flags, "--output", str(run)])
            at_step(0, None)
            monkeypatch.chdir("/")
            tool("train_det").main(["--resume", str(run), "--quiet"])
        else:
            tool("train_det").main([*flags, "--output", str(run)])
        logs.append([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
        assert json.loads((run / "metrics.json").read_text())["method"] == "shift+kd"
        assert f"method: {shift}+kd" in (run / "config.yaml").read_text()
    last = [{key: value for key, value in log[-1].items() if "images" not in key} for log in logs]
    assert last[0] == last[1]
    assert last[0]["shift"] > 0


def test_compare_names_runs_by_the_class(shift, tool, tiny_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--config", str(tiny_file), "--methods", "none,shift.py:Shift", "--seeds", "0", "--output", "compared"]
    tool("compare").main([*flags, "--quiet", "train.epochs=1", "methods.shift.weight=7"])
    assert "| shift  " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "compared").iterdir() if path.is_dir()) == [
        "tiny-none-s0",
        "tiny-shift-s0",
    ]
    assert "weight: 7" in (tmp_path / "compared" / "tiny-shift-s0" / "config.yaml").read_text()
    tool("compare").main([*flags, "--collect", "train.epochs=1", "methods.shift.weight=7"])
    with pytest.raises(InputError, match=r"tiny-shift-s0 holds a run with other settings \(methods\)"):
        tool("compare").main([*flags, "--collect", "train.epochs=1", "methods.shift.weight=8"])


# -- of an installed package -----------------------------------------------------------------------------------------


def test_an_installed_package_offers_a_method(package, tiny_config, detector):
    package({"shift": "plugin_methods:Shift"})
    assert "shift" in methods.available()
    assert "plugin_methods" not in sys.modules, "it is imported when it is used"
    config = tiny_config("method=shift+kd", "methods.shift.weight=7")
    assert [cls.__module__ for cls in methods.classes(config.method)] == ["plugin_methods", "detkt.methods.kd"]
    assert config.method_name == "shift+kd"
    distiller = detkt.Distiller(detector(), detector(seed=1), "shift", {"weight": 3})
    assert distiller.method.config.weight == 3
    assert tiny_config("method=kd", "methods.shift.weight=7").methods["shift"] == {"weight": 7}
    assert "unknown method 'shfit' (did you mean 'shift'?)" in refusal("shfit")


@pytest.mark.parametrize(
    ("points", "source", "method", "message"),
    [
        ({"shift": "plugin_methods:Shift"}, "1 / 0", "shift",
         "plugin_methods:Shift of the package plugin cannot be imported: ZeroDivisionError: division by zero"),
        ({"shift": "plugin_methods:Shfit"}, SOURCE, "shift",
         "plugin_methods:Shfit of the package plugin cannot be imported: AttributeError"),
        ({"shift": "plugin_methods:ShiftConfig"}, SOURCE, "shift",
         "plugin_methods:ShiftConfig of the package plugin is no class derived from detkt.Method"),
        ({"move": "plugin_methods:Shift"}, SOURCE, "move",
         "plugin_methods:Shift of the package plugin is called 'shift'; name the package's entry point 'move' so"),
        ({"kd": "plugin_methods:Shift"}, SOURCE.replace('"shift"', '"kd"'), "kd",
         "method 'kd' is detkt's own, but plugin_methods is installed under that name, too"),
    ],
)  # fmt: skip
def test_a_package_that_does_not_fit(package, points, source, method, message):
    package(points, source)
    assert message in refusal(method)
    assert methods.method_class("ktan").name == "ktan", "the others work"


def test_two_packages_of_one_name_and_a_file_of_an_installed_name(package, shift):
    package({"shift": "plugin_methods:Shift"})
    assert "is called 'shift', as another is: set its name to a new one" in refusal(shift)
    package({"shift": "other_methods:Shift"}, name="other")
    assert "method 'shift' is offered by " in refusal("shift")
    assert "uninstall one of them" in refusal("shift")
