"""Every command of README and guides is understood; the guide to own data is followed from folder to exported file."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from tiny import TINY_OPTIONS

from detkt.base.commands import COMMANDS
from detkt.cli import shared
from detkt.config import find_config, load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs/index.md", *sorted((ROOT / "docs/guides").glob("*.md"))]
FILES = {file: command for command, file in COMMANDS.items() if file}
OWN = ROOT / "docs/guides/own_data.md"


def commands_of(page: Path) -> list[tuple[str, list[str]]]:
    """(command of detkt, its arguments) of every line of the page's shell blocks that calls one."""
    found = []
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if language in ("", "sh", "bash")):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"detkt |python -m detkt |python tools/|torchrun .*(tools/|-m detkt )", line):
                continue
            words = shlex.split(re.sub(r" > \S+$", "", line), comments=True)
            program = re.search(r"(?:^|\s)detkt ([a-z-]+)|tools/(\w+)\.py", " ".join(words))
            if not program:
                continue
            name = program[1] or FILES.get(program[2], "")
            if name in COMMANDS:
                start = next(i for i, word in enumerate(words) if word == name or word.endswith(f"/{program[2]}.py"))
                found.append((name, words[start + 1 :]))
    return found


EVERY = [(page.name, name, arguments) for page in PAGES for name, arguments in commands_of(page)]


class Understood(BaseException):
    def __init__(self, arguments) -> None:
        self.arguments = arguments


def test_the_pages_have_commands():
    assert len(EVERY) >= 30
    assert {name for _, name, _ in EVERY} >= {
        "train-det",
        "train-cls",
        "eval",
        "diff",
        "compare",
        "export",
        "reproduce",
    }


@pytest.mark.parametrize(
    ("page", "name", "arguments"), EVERY, ids=[f"{p}-{n}-{i}" for i, (p, n, _) in enumerate(EVERY)]
)
def test_a_command_is_understood(page, name, arguments, monkeypatch, tmp_path):
    """Its flags are there, its config is found, and every setting that it overrides exists."""
    for parse in ("parse_args", "parse_intermixed_args"):
        original = getattr(shared.Parser, parse)

        def understood(self, *given, original=original, **more):
            raise Understood(original(self, *given, **more))

        monkeypatch.setattr(shared.Parser, parse, understood)
    module = importlib.import_module(f"detkt.cli.{name.replace('-', '_')}")
    with pytest.raises(Understood) as caught:
        module.main(arguments)
    found = caught.value.arguments
    config = getattr(found, "config", None)
    if name in ("train-det", "train-cls", "compare"):
        own = tmp_path / "own.yaml"
        own.write_text(own_config())
        path = own if config == "own.yaml" else find_config(config or "shapes")
        load_config(path, found.overrides)


def own_config() -> str:
    return re.search(r"```yaml\n(.*?)```", OWN.read_text(), re.DOTALL)[1]


def test_the_guide_to_own_data_from_a_folder_to_a_file(voc_folder, tmp_path, monkeypatch, capsys):
    """Every command in its order. Trainings have --trial, tiny nets from no weights, and a seed or two."""
    monkeypatch.chdir(tmp_path)
    run(
        "prepare",
        [str(voc_folder), "--convert", "coco", "--output", "data/own", "data.train=trainval", "data.test=test"],
    )
    annotations = tmp_path / "data/own/annotations"
    for json_file, name in (("instances_trainval.json", "train.json"), ("instances_test.json", "val.json")):
        (annotations / json_file).rename(tmp_path / "data/own" / name)
    (tmp_path / "own.yaml").write_text(own_config())
    options = "{" + ", ".join(f"{key}: {value}" for key, value in TINY_OPTIONS.items()) + "}"
    nets = [f"{net}.{key}" for net in ("student", "teacher") for key in ("weights=null", f"options={options}")]
    nets += ["student.architecture=fasterrcnn_resnet10x0.125_c4", "teacher.architecture=fasterrcnn_resnet10x0.25_c4"]
    short = [*nets, "train.device=cpu", "train.workers=0", "train.batch_size=2"]
    done = []
    for name, arguments in commands_of(OWN):
        if name == "train-det":
            arguments = [*arguments, "--trial", "--quiet", *short]
        if name == "compare":
            arguments = [word.replace("0,1,2,3,4,5", "0") for word in arguments]
            arguments += ["--quiet", *short, "train.stage_limit=2"]
        if name in ("diff", "predict"):
            arguments = [*arguments, "--device", "cpu", "--quiet"]
        run(name, arguments)
        done.append(name)
    assert done == ["prepare", *["train-det"] * 3, "diff", "eval", "compare", "export", "predict"]
    assert (tmp_path / "runs/own-pkd/diff/report/index.html").is_file()
    assert (tmp_path / "exported/model.onnx").is_file() and (tmp_path / "exported/model.md").is_file()
    forms = json.loads((tmp_path / "exported/export.json").read_text())["forms"]
    assert {form["form"] for form in forms if form["scores"]} == {"torch", "ONNX"}, "the guide says they are scored"
    assert list((tmp_path / "drawn").glob("*.jpg")) + list((tmp_path / "drawn").glob("*.png"))


def run(name: str, arguments: list[str]) -> None:
    importlib.import_module(f"detkt.cli.{name.replace('-', '_')}").main(arguments)
