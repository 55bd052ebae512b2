"""``detkt methods``: every method told, from what its class says and builds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from detkt import methods
from detkt.base.errors import InputError
from detkt.cli.methods import describe, main, year_of
from detkt.methods import outside

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(capsys):
    main([])
    paragraphs = re.split(r"\n(?=\S)", capsys.readouterr().out.rstrip())
    return {re.match(r"[\w-]+", text)[0]: text for text in paragraphs}


def test_every_method_has_a_sentence_a_paper_and_what_it_needs(told):
    assert list(told) == methods.available()
    for name, text in told.items():
        first, *citation, needs = text.splitlines()
        while any(part in needs for part in ("times its floor", "over plain training", "no single method")):
            *citation, needs = citation
        if name == "none":
            assert (first, citation) == ("none: Only the network's own task losses.", [])
            assert needs == "    for detectors and classifiers; needs no teacher; own nets: none"
            continue
        assert re.fullmatch(rf"{name} \((19|20)\d\d\): [A-Z].{{20,}}[a-z)]\.", first), first
        assert "See the module" not in first
        assert citation == [f"    {methods.method_class(name).citation}"]
        assert re.fullmatch(
            r"    for (detectors|detectors and classifiers|classifiers, two detectors .+|RetinaNets and FCOSs); "
            r"needs ([a-z]+, )*(features|scores|heads); own nets: .+",
            needs,
        )


def test_needs_and_nets_by_hand(told):
    """A 1 x 1 convolution between maps of 256 channels has 256 * 256 + 256 weights, on each of four levels."""
    assert f"needs features; own nets: regressors {4 * 256 * 257:,}\n" in told["fitnet"]
    assert "one stage with the same anchors; needs scores; own nets: none\n" in told["kd"]
    assert "for RetinaNets and FCOSs; needs heads; own nets: none\n" in told["crosskd"]
    assert "for detectors; needs anchors, boxes, features; own nets: adapters " in told["fgfi"]
    assert "(2015)" in told["kd"].splitlines()[0]
    assert re.search(r"regressors [\d,]+, discriminators [\d,]+$", told["ktan"], re.MULTILINE)
    assert re.search(r"own nets: regressors [\d,]+$", told["dln"], re.MULTILINE), "the adversary is KTAN's alone"


def test_costs_are_the_benchmarks(told):
    """Of what has been measured a report's median and quartiles, the shapes pair's first; of nothing else a number."""
    folder = ROOT / "docs/results/benchmark"
    names = ("shapes.json", "shapes-modern.json", "retinanet.json")
    reports = [json.loads((folder / name).read_text())["methods"] for name in names]
    for name, text in told.items():
        report = next((report for report in reports if name in report), None)
        if report is not None:
            low, median, high = (f"{report[name]['ratio'][key]:.2f}" for key in ("low", "median", "high"))
            assert f"\n    a step takes {median} ({low} to {high}) times its floor" in text
        else:
            assert "a step takes" not in text
    assert {name for name in ("ktan", "pkd", "crosskd") if "a step takes" in told[name]} == {"ktan", "pkd", "crosskd"}


def test_gains_are_those_of_the_results(told):
    """Mean, least and most of the differences to the plain student of the same seed, of three seeds at least."""
    runs = json.loads((ROOT / "docs/results/shapes/table.json").read_text())
    for name in ("ktan", "kr", "fsp"):
        pairs = [100 * (a["map_voc07"] - b["map_voc07"]) for a, b in zip(runs[name], runs["none"], strict=True)]
        mean, least, most = (f"{value:+.1f}" for value in (sum(pairs) / 3, min(pairs), max(pairs)))
        gained = f"{mean} mAP VOC07 over plain training on drawn shapes (3 seeds: {least} to {most})"
        settings = {"ktan": "", "kr": " with layers=[output=layer3.0.bn1+layer3] weight=40"}
        settings["fsp"] = " with layers=[layer2,output] weight=100"
        assert told[name].splitlines()[-2] == f"    {gained}{settings[name]}"
    best = "    (no single method gained more there than cwd, +6.9)"  # beside KTAN, and wherever one is chosen
    assert told["ktan"].splitlines()[-1] == best
    assert best not in told["cwd"] and best not in told["crosskd"]
    untold = {name for name, text in told.items() if "over plain training on drawn shapes" not in text}
    assert {"none", "crosskd"} <= untold
    assert untold.isdisjoint(runs.keys() - {"none"})


@pytest.mark.parametrize(
    ("name", "prefix", "seeds", "settings"), [("fgfi", "", 12, " with balance=0.5"), ("crosskd", "fcos-", 6, "")]
)
def test_gains_on_photographs_are_those_of_the_results(told, name, prefix, seeds, settings):
    folder = ROOT / "docs/results/photos"
    read = lambda row, seed: json.loads((folder / f"{prefix}{row}-s{seed}.json").read_text())["map_voc07"]  # noqa: E731
    pairs = [100 * (read(name, seed) - read("plain", seed)) for seed in range(seeds)]
    mean, least, most = (f"{value:+.1f}" for value in (sum(pairs) / seeds, min(pairs), max(pairs)))
    expected = f"{mean} mAP VOC07 over plain training on photographs, from ImageNet ({seeds} seeds: {least} to {most})"
    assert f"    {expected}{settings}" in told[name].splitlines()
    assert "photographs" not in told["cwd"]


@pytest.mark.parametrize(
    ("citation", "year"),
    [
        ("A and B, ICLR 2017 (arXiv:1612.03928)", "2017"),
        ("C, arXiv:2011.13256", ""),
        ("D, arXiv:2011.13256 (2020), ICCV 2021", "2021"),
        ("", ""),
    ],
)
def test_the_year_is_not_the_number_on_arxiv(citation, year):
    assert year_of(citation) == year


def test_a_method_of_a_file_is_told_too(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from detkt.methods.none import NoDistillation\n"
        "class Own(NoDistillation):\n"
        "    '''Does nothing at all. Really.'''\n    name = 'own'\n    citation = 'Me, 1999'\n"
    )
    main([f"{tmp_path}/own.py:Own+kd"])
    first, second = re.split(r"\n(?=\S)", capsys.readouterr().out.rstrip())
    assert first.splitlines() == [
        "own (1999): Does nothing at all.",
        "    Me, 1999",
        "    for detectors and classifiers; needs no teacher; own nets: none",
    ]
    assert second == describe(methods.method_class("kd"))


def test_a_package_that_cannot_be_used_hides_no_other(capsys, monkeypatch):
    def refuse(name):
        raise InputError(f"{name} fails")

    monkeypatch.setattr(outside, "offered", lambda: ["broken"])
    monkeypatch.setattr(outside, "class_offered", refuse)
    main([])
    assert re.search(r"\nbroken: cannot be used: broken fails\ncae \(2018\)", capsys.readouterr().out)
