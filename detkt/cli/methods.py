"""List the distillation methods: what each does, its paper, what it needs and the nets it brings along."""

from __future__ import annotations

import functools
import operator
import re

import torch

from detkt import methods
from detkt.base.commands import command
from detkt.base.errors import InputError
from detkt.cli.shared import Parser
from detkt.knowledge import FeatureSpec, Spec, Tower
from detkt.methods.base import Method, Needs

EXAMPLES = """examples:
  %(prog)s
  %(prog)s ktan path/to/file.py:CLASS

Any two can be summed, as ktan+kd. The weights of a method's own nets are counted for two pyramids of four levels with
256 channels; none of these nets is part of the trained student."""

LEVELS, CHANNELS = 4, 256


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
    serves = "detectors" if {"boxes", "anchors"} & set(needs) else "detectors and classifiers"
    lines.append(f"for {serves}; needs {', '.join(needs) or 'no teacher'}; own nets: {nets_of(method) or 'none'}")
    return "\n    ".join(line for line in lines if line)


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
    """What the method reads of the two networks beside the student's losses: features, logits, ..."""
    needs = functools.reduce(operator.or_, (stage.needs for stage in method.stages()))
    return sorted({(need.name or "").rpartition("_")[2].lower() for need in needs if need != Needs.STUDENT})


def nets_of(method: Method) -> str:
    """The method's own nets, as its attributes are called, with the number of their weights."""
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in method.named_children()}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
