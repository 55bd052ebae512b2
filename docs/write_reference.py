#!/usr/bin/env python
"""Write docs/reference/settings.md and methods.md from the code: `python docs/write_reference.py`.

And detkt/cli/measured.json from docs/results, docs/guides/notebook.md from the notebook.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from detkt import config, methods
from detkt.cli.methods import MEASURED, MEASUREMENTS, describe

FOLDER = Path(__file__).parent / "reference"
NOTEBOOK = Path(__file__).parent / "guides" / "own_photographs.ipynb"
BENCHMARK = Path(__file__).parent / "results" / "benchmark"
SHAPES = Path(__file__).parent / "results" / "shapes"
SHAPES_CONFIG = Path(__file__).parent.parent / "configs" / "shapes.yaml"
PHOTOS = Path(__file__).parent / "results" / "photos"
REPORTS = ("retinanet.json", "shapes-modern.json", "shapes.json")
SECTIONS = {
    "data": config.DataConfig,
    "student": config.StudentConfig,
    "teacher": config.TeacherConfig,
    "train": config.TrainConfig,
}


def main() -> None:
    MEASURED.write_text(measured(), encoding="utf-8")
    (FOLDER / "settings.md").write_text(settings_page(), encoding="utf-8")
    (FOLDER / "methods.md").write_text(methods_page(), encoding="utf-8")
    NOTEBOOK.with_name("notebook.md").write_text(notebook_page(), encoding="utf-8")


def measured() -> str:
    """What `detkt methods` tells of measurements, by method."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, values in (("step", step_costs()), ("gain", gains()), ("photographs", photographs())):
        for name, value in values.items():
            found.setdefault(name, {})[key] = value
    return json.dumps(dict(sorted(found.items())), indent=1) + "\n"


def step_costs() -> dict[str, dict[str, float]]:
    """Ratios of a step to its floor by method, without a teacher cache: of the shapes pair, else of the RetinaNets."""
    measured = {}
    for report in REPORTS:
        measured |= json.loads((BENCHMARK / report).read_text(encoding="utf-8"))["methods"]
    return {name: method["ratio"] for name, method in measured.items() if "," not in name}


def gains() -> dict[str, dict[str, Any]]:
    """Points of mAP VOC07 above the plain student of the same seed on the shapes pair, list `test`, by method.

    Of the older table, and of the methods since 2019, where both have three seeds in common; with the settings that the
    pair's config gives the method, as the command line takes them.
    """
    chosen = config.load_config(SHAPES_CONFIG).methods
    tables = [json.loads((SHAPES / "table.json").read_text(encoding="utf-8")), rows_of(SHAPES / "modern")]
    found: dict[str, dict[str, Any]] = {}
    for rows in tables:
        for name, runs in rows.items():
            told = difference(runs, rows["none"])
            if name != "none" and told["seeds"] >= 3:
                found[name] = told | {"settings": settings_of(name, chosen)}
    return found


def photographs() -> dict[str, dict[str, Any]]:
    """The same of the photographs' students from ImageNet, where six seeds are in common: Faster R-CNNs, else FCOSs."""
    rows = rows_of(PHOTOS)
    found: dict[str, dict[str, Any]] = {}
    for prefix, settings in (("fcos-", ""), ("", "balance=0.5")):
        for name in methods.available():
            told = difference(rows.get(f"{prefix}{name}", []), rows[f"{prefix}plain"])
            if told["seeds"] >= 6:
                found[name] = told | {"settings": settings}
    return found


def difference(runs: list[dict], plain: list[dict]) -> dict[str, Any]:
    """Mean, least and most of the points above *plain*, seed by seed."""
    scores, base = scores_by_seed(runs), scores_by_seed(plain)
    points = [100 * (scores[seed] - base[seed]) for seed in sorted(scores.keys() & base.keys())]
    if not points:
        return {"seeds": 0}
    return {"mean": sum(points) / len(points), "least": min(points), "most": max(points), "seeds": len(points)}


def settings_of(name: str, chosen: dict[str, dict[str, Any]]) -> str:
    """What *chosen* holds for a method, as it is typed behind ``methods.NAME.``; of a sum with its parts' names."""
    parts = name.split("+")
    return " ".join(
        f"{f'{part}.' if len(parts) > 1 else ''}{key}={as_typed(value)}"
        for part in parts
        for key, value in chosen.get(part, {}).items()
    )


def as_typed(value: object) -> str:
    """A setting's *value* as the command line takes it."""
    return json.dumps(value).replace('"', "").replace(" ", "")


def rows_of(folder: Path) -> dict[str, list[dict]]:
    """The runs of *folder*, METHOD-sSEED.json each, by method."""
    rows: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*-s*[0-9].json")):
        rows.setdefault(path.stem.rpartition("-s")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    return rows


def scores_by_seed(runs: list[dict]) -> dict[int, float]:
    return {run["seed"]: run["map_voc07"] for run in runs}


def settings_page() -> str:
    parts = [
        "# Settings",
        "Every setting of a config file, which the command line takes as `section.key=value`. Written from the code by "
        "`python docs/write_reference.py`.",
        "## The config itself",
        prose(config.Config),
        table(config.Config, skip=("data", "student", "teacher", "train", "methods")),
    ]
    for name, cls in SECTIONS.items():
        parts += [f"## {name}", prose(cls), table(cls)]
    parts += [
        "## methods",
        "A section a method, `methods.NAME.key`. All have:",
        prose(methods.MethodConfig),
        table(methods.MethodConfig),
    ]
    common = {field.name for field in fields(methods.MethodConfig)}
    for cls in every_method():
        own = cls.Config
        changed = tuple(name for name in common if default(own, name) == default(methods.MethodConfig, name))
        if own is not methods.MethodConfig:
            parts += [f"### {cls.name}", prose(own), table(own, skip=changed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def methods_page() -> str:
    parts = [
        "# Methods",
        "What `detkt methods` prints; written from the code by `python docs/write_reference.py`. Any can be "
        "summed, as `ktan+kd`. Own nets are counted for two pyramids of four levels with 256 channels; none is part of "
        f"the trained student. {MEASUREMENTS} Settings: [methods](settings.md#methods). "
        "Which to take: [a guide](../guides/which_method.md).",
    ]
    for cls in every_method():
        told, *others = describe(cls).splitlines()
        parts += [f"## {cls.name}", told.partition(": ")[2], "\n".join(f"- {line.strip()}" for line in others)]
    return "\n\n".join(part for part in parts if part) + "\n"


def notebook_page() -> str:
    """The notebook as a page to read: what executes and converts notebooks within the site brings 30 packages."""
    title, *cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    file = f"This page is the notebook [{NOTEBOOK.name}]({NOTEBOOK.name}), to download and run; the tests do."
    parts = ["".join(title["source"]), file]
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"


def every_method() -> list[type[methods.Method]]:
    return [methods.method_class(name) for name in methods.available()]


def told(cls: type) -> tuple[str, dict[str, str]]:
    """A settings class's docstring: what it says of all, and of each key (``key``: text)."""
    text = inspect.cleandoc(cls.__doc__ or "")
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)
    first, *parts = re.split(r"(?:^|(?<=[.;] )|(?<=\n))((?:``\w+``(?:, )?)+):\s", text)
    meanings = {}
    for names, meaning in zip(parts[::2], parts[1::2], strict=True):
        for name in re.findall(r"``(\w+)``", names):
            meanings[name] = " ".join(meaning.split()).rstrip(";").replace("``", "`")
    inherited = told(cls.__base__)[1] if is_dataclass(cls.__base__) else {}
    return first.strip().replace("``", "`"), inherited | meanings


def prose(cls: type) -> str:
    return told(cls)[0]


def default(cls: type, name: str) -> object:
    field = next(field for field in fields(cls) if field.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def table(cls: type, skip: tuple[str, ...] = ()) -> str:
    meanings = told(cls)[1]
    rows = [
        f"| `{field.name}` | {str(field.type).replace(' | ', ' or ')} | `{default(cls, field.name)!r}` | "
        f"{meanings.get(field.name, '')} |"
        for field in fields(cls)
        if field.name not in skip
    ]
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) if rows else ""


if __name__ == "__main__":
    main()
