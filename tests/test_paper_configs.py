"""The configs say what the papers' tables and texts say, number by number."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from detkt import methods
from detkt.config import Config, load_config
from detkt.engine.recipes import RECIPES
from detkt.methods.knowledge_representing import KR

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

FT_PAIRS = [
    # data, student, teacher, k, and the errors that the paper prints: plain student, FT
    ("cifar10", "cifar_resnet20", "cifar_resnet56", 0.5, 7.78, 6.85),
    ("cifar10", "cifar_resnet20", "cifar_wrn40_1", 2, 7.78, 6.85),
    ("cifar10", "cifar_vgg13", "cifar_wrn46_4", 0.5, 5.99, 4.84),
    ("cifar10", "cifar_wrn16_1", "cifar_wrn16_2", 0.5, 8.62, 7.64),
    ("cifar10", "cifar_wrn16_1", "cifar_wrn40_1", 0.5, 8.77, 8.12),
    ("cifar10", "cifar_wrn16_2", "cifar_wrn40_2", 0.5, 6.31, 5.51),
    ("cifar10", "cifar_wrn40_1", "cifar_wrn40_2", 0.5, 7.02, 5.71),
    ("cifar100", "cifar_wrn40_1", "cifar_wrn40_2", 0.5, 28.81, 26.91),
    ("cifar100", "cifar_resnet56", "cifar_resnet110", 0.5, 28.04, 25.62),
    ("cifar100", "cifar_resnet20", "cifar_resnet110", 4, 31.24, 29.08),
    ("imagenet", "resnet18", "resnet34", 0.5, 29.91, 28.57),
]


def configs() -> dict[tuple[str, str, str], Config]:
    loaded = [load_config(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    return {(c.data.format, c.student.architecture, c.teacher.architecture): c for c in loaded}


def test_every_config_with_a_papers_numbers_has_a_table():
    told = {path.stem for path in CONFIGS.glob("*.yaml") if load_config(path).paper}
    assert told == {recipe.config for recipe in RECIPES.values()}


def settings(config: Config, method: str) -> methods.MethodConfig:
    return methods.method_config(method, config.methods[method])


@pytest.mark.parametrize(("data", "student", "teacher", "rate", "plain", "ft"), FT_PAIRS)
def test_factor_transfers_pairs(data, student, teacher, rate, plain, ft):
    config = configs()[data, student, teacher]
    factors, attention = settings(config, "ft"), settings(config, "at")
    assert factors.rate == rate
    assert factors.beta == (1000 if data == "imagenet" else 500)
    assert factors.batch_norm == (data == "cifar10")
    assert factors.reference_elements == 0
    assert (100 - config.paper["none"], 100 - config.paper["ft"]) == (pytest.approx(plain), pytest.approx(ft))
    # "In the whole experiments, AT used multiple group losses", with the AT paper's 10^3.
    assert (attention.form, attention.weight) == ("official", 1000)
    assert len(attention.layers) == (4 if data == "imagenet" else 3)
    assert config.train.clip_norm == 0


def test_detectors_are_compared_with_the_papers_settings():
    for name in ("voc2007_resnet152_resnet50", "voc2007_resnet101_vgg16"):
        path = CONFIGS / f"{name}.yaml"
        config = load_config(path)
        for method in ("ktan", "dln"):
            assert settings(config, method).beta == 0.5
            assert settings(load_config(path, [f"methods.{method}.preset=default"]), method).beta == 20
        assert "methods.ktan.preset=default --output runs/voc2007-" in path.read_text()


def test_factor_transfer_on_detectors():
    path = CONFIGS / "voc2007_resnet101_vgg16.yaml"
    config = load_config(path)
    factors = settings(config, "ft")
    assert (factors.beta, factors.rate, factors.reference_elements) == (1000, 0.5, 0)
    assert factors.paraphraser_steps == math.ceil(5011 / config.train.batch_size)  # the pictures of 2007 trainval
    assert config.train.weight_decay == 0.0005
    assert "--role teacher --method none train.weight_decay=0.0001 train.clip_norm=0" in path.read_text()


def test_knowledge_representing_aggregates_m_layers_everywhere():
    found = {}
    for (data, *_), config in configs().items():
        if "kr" in config.methods and config.paper:
            kr = settings(config, "kr")
            assert settings(config, "kr-dense").weight == kr.weight
            pairs = KR.layer_pairs(kr)
            counts = [sum(pair.student == student for pair in pairs) for student in {pair.student for pair in pairs}]
            found[data] = (kr.m, *counts)
    assert found == {"cifar10": 4 * (3,), "cifar100": 4 * (3,), "tcifar100": 4 * (3,), "imagenet": 4 * (4,)}


def test_knowledge_representing_decays_polynomially_on_imagenet():
    train = load_config(CONFIGS / "imagenet_resnet101_inception.yaml").train
    assert (train.milestones, train.poly_power) == ([], 1.0)


def test_the_convergence_figure_ends_before_the_first_drop():
    config = load_config(CONFIGS / "mnist_resnet26_resnet8.yaml")
    updates = config.train.epochs * (60000 // config.train.batch_size)
    assert 20000 <= updates < 30000
    assert config.train.milestones == []
