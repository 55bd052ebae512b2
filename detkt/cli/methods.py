"""List the distillation methods: what each does, its paper, what it needs, its own nets, its cost and gain."""

from __future__ import annotations

import functools
import json
import operator
import re
import textwrap
from pathlib import Path

import torch

from detkt import methods
from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.cli.shared import Parser
from detkt.knowledge import FeatureSpec, Spec, Tower
from detkt.methods.base import Method, Needs

MEASUREMENTS = (
    "What a step takes was measured on a CPU, of a pair of ResNet-10s (crosskd: of two RetinaNets); its floor is a "
    "plain step of the student and one pass of the teacher's backbone. What a method gained was measured with that "
    "pair on drawn shapes, and on photographs with EfficientNets, at the same updates and the settings told (of some "
    "it was not): your data may say otherwise, and `detkt compare` asks them."
)
EXAMPLES = f"""examples:
  %(prog)s
  %(prog)s ktan path/to/file.py:CLASS

Any can be summed, as ktan+kd. The weights of a method's own nets are counted for two pyramids of four levels with
256 channels; none of these nets is part of the trained student.
{textwrap.fill(MEASUREMENTS, 120)}"""

LEVELS, CHANNELS = 4, 256
MEASURED = Path(__file__).with_name("measured.json")
"""By method: ``step``, the ratio of a step's time to its floor, with its quartiles; ``gain`` over plain training in
points of mAP VOC07 on shapes, with the least and the most of its seeds and the settings of these runs, and the same of
``photographs``. Written by docs/write_reference.py from docs/results."""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=command("methods"), description=__doc__, epilog=EXAMPLES)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="a name or path/to/file.py:CLASS (default: all)")
    if names := parser.parse_args(argv).methods:
        print("\n".join(describe(cls) for name in names for cls in methods.classes(name)))
        return
    for name in methods.available():
        try:
            print(describe(methods.method_class(name)))
        except InputError as error:  # of another package's method, which must not hide the others
            print(f"{name}: cannot be used: {error}")


def describe(cls: type[Method]) -> str:
    """A paragraph on a method, from its docstring, its attributes and what it builds for two nominal networks."""
    sentence = " ".join((cls.__doc__ or "").split()).partition(". ")[0].rstrip(".")
    year = year_of(cls.citation)
    lines = [f"{cls.name}{f' ({year})' if year else ''}: {sentence}.", cls.citation]
    with torch.device("meta"):  # neither memory nor random numbers
        method = cls(methods.method_config(cls), pyramid(), pyramid() if cls.needs_teacher else None)
    needs = needs_of(method)
    lines.append(
        f"for {serves(needs)}; needs {', '.join(needs) or 'no teacher'}; own nets: {nets_of(method) or 'none'}"
    )
    lines += measured_of(cls.name)
    return "\n    ".join(line for line in lines if line)


def serves(needs: list[str]) -> str:
    """Between which networks a method of these *needs* can teach."""
    if "heads" in needs:
        return "RetinaNets and FCOSs"
    if "scores" in needs:
        return "classifiers, two detectors of two stages, or two of one stage with the same anchors"
    return "detectors" if {"boxes", "anchors"} & set(needs) else "detectors and classifiers"


def measured_of(name: str) -> list[str]:
    """What a step of the method takes, and what the method gained, where these have been measured."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    found = measured.get(name, {})
    of_seeds = "({seeds} seeds: {least:+.1f} to {most:+.1f})"
    texts = {
        "step": "a step takes {median:.2f} ({low:.2f} to {high:.2f}) times its floor",
        "photographs": "{mean:+.1f} mAP VOC07 over plain training on photographs, from ImageNet " + of_seeds,
        "gain": "{mean:+.1f} mAP VOC07 over plain training on drawn shapes " + of_seeds,
    }
    told = {key: text.format(**found[key]) for key, text in texts.items() if key in found}
    for key in told:
        if settings := found[key].get("settings"):
            told[key] += f" with {settings}"
    gains = {one: values["gain"]["mean"] for one, values in measured.items() if "gain" in values and "+" not in one}
    best = max(gains, key=lambda one: gains[one])
    if "gain" in told and name != best:
        told["best"] = f"(no single method gained more there than {best}, {gains[best]:+.1f})"
    return list(told.values())


def year_of(citation: str) -> str:
    """The last year in *citation*; the digits of an arXiv number are none."""
    years = re.findall(r"\b(?:19|20)\d\d\b", re.sub(r"arXiv:[\d.]+", "", citation))
    return years[-1] if years else ""


def pyramid() -> Spec:
    """A network that every method can be built for: several maps, of the same channels in teacher and student."""
    sizes = [(80 >> level, 128 >> level) for level in range(LEVELS)]
    maps = {f"output.{level}": FeatureSpec(CHANNELS, *size, False) for level, size in enumerate(sizes)}
    return Spec(maps, num_classes=21, tower=Tower(CHANNELS, tuple(sizes)))


def needs_of(method: Method) -> list[str]:
    """What the method reads of the two networks beside the student's losses: features, scores, ..."""
    needs = functools.reduce(operator.or_, (stage.needs for stage in method.stages()))
    words = {(need.name or "").rpartition("_")[2].lower() for need in needs if need != Needs.STUDENT}
    return sorted("scores" if word == "logits" else word for word in words)


def nets_of(method: Method) -> str:
    """The method's own nets, as its attributes are called, with the number of their weights."""
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in method.named_children()}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
