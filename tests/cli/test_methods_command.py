"""``detkt methods``: every method told, from what its class says and builds."""

from __future__ import annotations

import re

import pytest

from detkt import methods
from detkt.base.errors import InputError
from detkt.cli.methods import describe, main, year_of
from detkt.methods import outside


@pytest.fixture
def told(capsys):
    main([])
    paragraphs = re.split(r"\n(?=\S)", capsys.readouterr().out.rstrip())
    return {re.match(r"[\w-]+", text)[0]: text for text in paragraphs}


def test_every_method_has_a_sentence_a_paper_and_what_it_needs(told):
    assert list(told) == methods.available()
    for name, text in told.items():
        first, *citation, needs = text.splitlines()
        if name == "none":
            assert (first, citation, needs) == (
                "none: Only the network's own task losses.", [], "    needs no teacher; own nets: none"
            )  # fmt: skip
            continue
        assert re.fullmatch(rf"{name} \((19|20)\d\d\): [A-Z].{{20,}}[a-z)]\.", first), first
        assert "See the module" not in first
        assert citation == [f"    {methods.method_class(name).citation}"]
        assert re.fullmatch(r"    needs (features|logits)(, [a-z]+)*; own nets: .+", needs), needs


def test_needs_and_nets_by_hand(told):
    """A 1 x 1 convolution between maps of 256 channels has 256 * 256 + 256 weights, on each of four levels."""
    assert told["fitnet"].endswith(f"needs features; own nets: regressors {4 * 256 * 257:,}")
    assert told["kd"].endswith("needs logits; own nets: none")
    assert "(2015)" in told["kd"].splitlines()[0]
    assert re.search(r"regressors [\d,]+, discriminators [\d,]+$", told["ktan"])
    assert re.search(r"own nets: regressors [\d,]+$", told["dln"]), "the adversary is KTAN's alone"


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
    assert first == "own (1999): Does nothing at all.\n    Me, 1999\n    needs no teacher; own nets: none"
    assert second == describe(methods.method_class("kd"))


def test_a_package_that_cannot_be_used_hides_no_other(capsys, monkeypatch):
    def refuse(name):
        raise InputError(f"{name} fails")

    monkeypatch.setattr(outside, "offered", lambda: ["broken"])
    monkeypatch.setattr(outside, "class_offered", refuse)
    main([])
    assert re.search(r"\nbroken: cannot be used: broken fails\ncae \(2018\)", capsys.readouterr().out)
