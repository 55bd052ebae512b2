"""Factor transfer and its ablations: losses by NumPy, nets by their parameters, and who learns in which stage."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from map_helpers import added, make, numpy_pool, one_update, random_map, rectangle_mask, spec, task_losses

from detkt import Distiller, methods
from detkt.base.errors import InputError
from detkt.knowledge import Knowledge
from detkt.methods.base import Needs
from detkt.methods.factor_transfer import factor_loss, reconstruction_loss
from detkt.methods.paraphraser import Encoder, Paraphraser, paraphraser_widths

VALID = [(1.0, 0.5), (0.75, 1.0)]


def numpy_factor_loss(ours: np.ndarray, theirs: np.ndarray, p: int, reference: int = 2048) -> float:
    """From the definition, picture by picture; each picture is an array of any shape."""
    distances = []
    for student, teacher in zip(ours, theirs, strict=True):
        a, b = student.ravel(), teacher.ravel()
        difference = a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())
        mean = (np.abs(difference) ** p).mean() ** (1 / p)
        distances.append(mean * np.sqrt(a.size / reference) if reference else mean)
    return float(np.mean(distances))


def networks(student, teacher, valid=None, losses=None) -> tuple[Knowledge, Knowledge]:
    return Knowledge({"output": student}, losses=losses or {}, valid=valid), Knowledge({"output": teacher}, valid=valid)


def stage_of(method, name: str):
    return next(stage for stage in method.stages() if stage.name == name)


def distill(method, student: Knowledge, teacher: Knowledge):
    (update,) = method.step(stage_of(method, "distill"), student, teacher, heads=None)
    assert update.player == "student"
    return update


# The loss


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reference", [2048, 100, 0])
def test_loss_equals_its_definition(p, reference):
    student, teacher = random_map(2, 3, 4, 7, seed=1), random_map(2, 3, 4, 7, seed=2)
    expected = numpy_factor_loss(student.numpy(), teacher.numpy(), p, reference)
    assert factor_loss(student, teacher, p, reference_elements=reference).item() == pytest.approx(expected, abs=1e-9)


def test_loss_by_hand():
    """Factors (3, 4) / 5 and (4, 3) / 5 differ by 0.2 in both elements; (1, 0) and (0, 1) by 1."""
    student = torch.tensor([[3.0, 4.0], [1, 0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    teacher = torch.tensor([[8.0, 6.0], [0, 5]], dtype=torch.float64).reshape(2, 1, 1, 2)
    assert factor_loss(student, teacher, reference_elements=0).item() == pytest.approx((0.2 + 1) / 2, abs=1e-12)
    assert factor_loss(student, teacher, reference_elements=2).item() == pytest.approx(0.6, abs=1e-12)
    assert factor_loss(student, teacher, p=2, reference_elements=2).item() == pytest.approx(0.6, abs=1e-12)


def test_loss_is_the_official_mean_on_the_papers_map():
    student, teacher = random_map(2, 32, 8, 8, seed=1), random_map(2, 32, 8, 8, seed=2)
    unit = [torch.nn.functional.normalize(x.flatten(1)) for x in (student, teacher)]
    torch.testing.assert_close(factor_loss(student, teacher), torch.nn.functional.l1_loss(*unit))


@pytest.mark.parametrize("p", [1, 2])
def test_loss_keeps_its_scale_on_larger_maps_and_brighter_ones(p):
    student, teacher = random_map(2, 3, 4, 7, seed=1), random_map(2, 3, 4, 7, seed=2)
    loss = factor_loss(student, teacher, p)
    torch.testing.assert_close(factor_loss(student.repeat(1, 1, 5, 3), teacher.repeat(1, 1, 5, 3), p), loss)
    torch.testing.assert_close(factor_loss(student.repeat(1, 4, 1, 1), teacher.repeat(1, 4, 1, 1), p), loss)
    torch.testing.assert_close(factor_loss(7 * student, teacher / 9, p), loss)
    assert factor_loss(student, 3 * student, p).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_loss_of_masked_factors_is_that_of_the_pictures_alone(p):
    student, teacher = random_map(2, 3, 4, 7, seed=1), random_map(2, 3, 4, 7, seed=2)
    mask = rectangle_mask(4, 7, [(4, 5), (2, 7)])
    pictures = [[x[0, :, :4, :5].numpy(), x[1, :, :2, :7].numpy()] for x in (student, teacher)]
    expected = numpy_factor_loss(*pictures, p)
    assert factor_loss(student, teacher, p, mask).item() == pytest.approx(expected, abs=1e-9)


def test_unequal_sizes_are_averaged_to_the_smaller():
    student, teacher = random_map(2, 3, 8, 5, seed=1), random_map(2, 3, 4, 9, seed=2)
    masks = rectangle_mask(8, 5, [(8, 3), (5, 5)]), rectangle_mask(4, 9, [(4, 6), (3, 9)])
    pooled = [numpy_pool(x, (4, 5)) for x in (student, teacher)]
    assert factor_loss(student, teacher).item() == pytest.approx(numpy_factor_loss(*pooled, 1), abs=1e-9)
    ours, theirs = (numpy_pool(x, (4, 5), mask) for x, mask in zip((student, teacher), masks, strict=True))
    # Cells that cover some picture in both: 3 and 4 columns of 4 rows; 3 and 3 rows of 5 columns.
    pictures = [[x[0, :, :, :3], x[1, :, :3]] for x in (ours, theirs)]
    expected = numpy_factor_loss(*pictures, 1)
    assert factor_loss(student, teacher, 1, *masks).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_of_the_loss(p):
    student, teacher = random_map(2, 2, 3, 4, seed=1, grad=True), random_map(2, 2, 3, 4, seed=2)
    mask = rectangle_mask(3, 4, [(3, 4), (2, 2)])
    assert torch.autograd.gradcheck(lambda x: factor_loss(x, teacher, p, mask), student)


@pytest.mark.parametrize("p", [1, 2])
def test_gradient_stays_finite_where_the_factors_agree_or_vanish(p):
    student = random_map(3, 2, 3, 4, seed=1)
    student[1] = 0
    teacher = student.clone()
    teacher[2] = 0
    student.requires_grad_()
    factor_loss(student, teacher, p).backward()
    assert student.grad.isfinite().all()


def test_factors_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\) and \(1, 2, 4, 5\)"):
        factor_loss(random_map(1, 3, 4, 5), random_map(1, 2, 4, 5))


def test_reconstruction_loss_by_numpy():
    feature, reconstructed = random_map(2, 3, 4, 5, seed=1), random_map(2, 3, 4, 5, seed=2)
    squares = (feature - reconstructed).numpy() ** 2
    assert reconstruction_loss(reconstructed, feature).item() == pytest.approx(squares.mean(), abs=1e-12)
    expected = (squares[0].sum() + squares[1, :, :2, :3].sum()) / (3 * (20 + 6))
    mask = rectangle_mask(4, 5, [(4, 5), (2, 3)])
    assert reconstruction_loss(reconstructed, feature, mask).item() == pytest.approx(expected, abs=1e-12)


# The nets


@pytest.mark.parametrize(("num_layers", "millions"), [(1, 0.07), (2, 0.22), (3, 0.26)])
def test_layers_have_the_parameters_of_the_papers_table_4(num_layers, millions):
    """WRN-40-2, 128 channels, k = 0.5: the half of the paraphraser that is kept."""
    encoder = Encoder(paraphraser_widths(128, 64, num_layers))
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_paraphraser_is_the_papers():
    layers = [m for m in Paraphraser([8, 8, 4, 4]).modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == 3 * ["Conv2d"] + 3 * ["ConvTranspose2d"]
    widths = [(layer.in_channels, layer.out_channels) for layer in layers]
    assert widths == [(8, 8), (8, 4), (4, 4), (4, 4), (4, 8), (8, 8)]
    assert {(layer.kernel_size, layer.stride, layer.padding) for layer in layers} == {((3, 3), (1, 1), (1, 1))}
    activations = [m for m in Paraphraser([8, 8, 4, 4], True).modules() if isinstance(m, torch.nn.LeakyReLU)]
    assert [m.negative_slope for m in activations] == 6 * [0.1]
    norms = [m for m in Paraphraser([8, 8, 4, 4], True).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [8, 4, 4, 4, 8, 8]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 16), (9, 14), (13, 11)])
def test_paraphraser_gives_factor_and_reconstruction(stride, size):
    factor, reconstructed = Paraphraser([6, 6, 4, 3], stride=stride)(torch.randn(2, 6, *size))
    assert factor.shape == (2, 3, size[0] // stride**3, size[1] // stride**3)
    assert reconstructed.shape == (2, 6, *size)


@pytest.mark.parametrize("rate", [0.5, 0.75, 2, 4])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_translator_reaches_the_teacher_factors(rate, num_layers, batch_norm):
    method = make(
        "ft",
        spec(output=(3, 4, 6)),
        spec(output=(8, 4, 6)),
        rate=rate,
        num_layers=num_layers,
        batch_norm=batch_norm,
    )
    factor, _ = method.paraphrasers["output"](random_map(2, 8, 4, 6))
    assert factor.shape == method.translators["output"](random_map(2, 3, 4, 6)).shape == (2, 8 * rate, 4, 6)
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (3 * num_layers if batch_norm else 0)


# The stages


@pytest.mark.parametrize("name", ["ft", "cae", "rae"])
def test_paraphraser_learns_to_reconstruct_without_a_student(name):
    """A map of large values in 8 channels, mixed of two patterns, at the paper's rate."""
    torch.manual_seed(0)
    mixing, patterns = (
        torch.rand(8, 2),
        torch.rand(2, 2, 8, 10).repeat_interleave(2, 2).repeat_interleave(2, 3),
    )
    feature = 40 * torch.einsum("cp,nphw->nchw", mixing, patterns)
    teacher = Knowledge({"output": feature})
    shape = {"output": (8, 16, 20)}
    method = make(name, spec(**shape), spec(**shape)).float()
    stage = method.stages()[0]
    assert (stage.name, stage.needs, stage.players) == ("paraphraser", Needs.TEACHER_FEATURES, ("paraphraser",))
    assert stage.steps == method.config.paraphraser_steps == 300
    player = method.players()["paraphraser"]
    assert (player.optimizer, player.lr, player.momentum) == ("sgd", 0.1, 0.9)
    parameters = [p for module in player.modules for p in module.parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in method.paraphrasers.parameters()}
    optimizer = torch.optim.SGD(parameters, player.lr, player.momentum, weight_decay=player.weight_decay)
    losses = []
    for _ in range(80):
        (update,) = method.step(stage, None, teacher, heads=None)
        assert update.player == "paraphraser"
        optimizer.zero_grad()
        update.total.backward(inputs=parameters)
        torch.nn.utils.clip_grad_norm_(parameters, player.clip_norm)
        optimizer.step()
        losses.append(update.losses["paraphraser_reconstruction"].item())
    # The best constant would leave the variance.
    scaled = feature / feature.square().mean().sqrt()
    assert np.mean(losses[-10:]) < 0.5 * scaled.var().item()


def test_sparsity_is_the_mean_magnitude_of_the_factors():
    method = make("rae", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), sparsity=0.25, normalize=False)
    assert method.config.rate == 2
    feature = random_map(2, 5, 4, 6, seed=2)
    (update,) = method.step(method.stages()[0], None, Knowledge({"output": feature}, valid=VALID), heads=None)
    mask = Knowledge(valid=VALID).mask(feature)
    factor = method.paraphrasers["output"].encoder(feature * mask).detach().numpy()
    kept = np.abs(factor) * mask.numpy()
    expected = 0.25 * kept.sum() / (mask.numpy().sum() * 10)
    assert update.losses["paraphraser_sparsity"].item() == pytest.approx(expected, abs=1e-9)


def test_distill_adds_beta_times_the_loss_of_the_factors():
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2), task_losses()
    method = make("ft", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), beta=7.0, p=2, normalize=False)
    update = distill(method, *networks(student, teacher, losses=losses))
    factors = method.translators["output"](student), method.paraphrasers["output"].encoder(teacher)
    expected = 7 * numpy_factor_loss(*(factor.detach().numpy() for factor in factors), 2)
    assert added(update, losses, "ft").item() == pytest.approx(expected, abs=1e-9)


def test_only_student_and_translator_learn_while_distilling():
    student, teacher = (random_map(2, c, 4, 6, seed=c, grad=True) for c in (3, 5))
    method = make("ft", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), batch_norm=True)
    with_student = [p for module in method.players()["student"].modules for p in module.parameters()]
    assert {id(p) for p in with_student} == {id(p) for p in method.translators.parameters()}
    method.train()
    before = {name: value.clone() for name, value in method.paraphrasers.state_dict().items()}
    distill(method, *networks(student, teacher)).total.backward()
    assert all(p.grad is not None for p in [student, *method.translators.parameters()])
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(p.grad is None for p in method.paraphrasers.parameters())
    for name, value in method.paraphrasers.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)  # batch norm statistics among them


def test_batch_norm_of_the_paraphraser_learns_in_its_own_stage():
    method = make("ft", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), batch_norm=True)
    method.eval()
    before = method.paraphrasers["output"].encoder.layers[1].running_mean.clone()
    list(method.step(method.stages()[0], None, Knowledge({"output": random_map(2, 5, 4, 6)}), heads=None))
    assert (method.paraphrasers["output"].encoder.layers[1].running_mean != before).any()


def test_several_layers_have_nets_of_their_own_and_count_by_their_mean():
    layers = ["layer2=layer1", "layer3"]
    ours = {"layer2": random_map(2, 3, 8, 6, seed=1), "layer3": random_map(2, 4, 4, 3, seed=2)}
    theirs = {"layer1": random_map(2, 6, 8, 6, seed=3), "layer3": random_map(2, 2, 4, 3, seed=4)}
    specs = spec(layer2=(3, 8, 6), layer3=(4, 4, 3)), spec(layer1=(6, 8, 6), layer3=(2, 4, 3))
    method = make("ft", *specs, layers=layers, normalize=False)
    update = distill(method, Knowledge(ours), Knowledge(theirs))
    terms = [
        factor_loss(method.translators[name](ours[name]), method.paraphrasers[name].encoder(theirs[teacher]).detach())
        for name, teacher in (("layer2", "layer1"), ("layer3", "layer3"))
    ]
    torch.testing.assert_close(update.losses["ft"], 500 * torch.stack(terms).mean())


def test_normalize_makes_the_teachers_scale_irrelevant():
    student, teacher = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2)
    method = make("ft", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)))
    mask = Knowledge(valid=VALID).mask(teacher)
    losses = [distill(method, *networks(student, scale * teacher, VALID)).losses["ft"] for scale in (1.0, 50.0)]
    torch.testing.assert_close(*losses)
    unit = teacher * mask
    unit = unit / (unit.square().sum() / (mask.sum() * 5)).sqrt()
    method.config.normalize = False
    torch.testing.assert_close(distill(method, *networks(student, unit, VALID)).losses["ft"], losses[0])


@pytest.mark.parametrize("name", ["ft", "cae", "rae", "fact"])
@pytest.mark.parametrize("teacher_size", [(16, 20), (9, 13), (24, 30)])
def test_padding_carries_neither_loss_nor_gradient(name, teacher_size):
    student, teacher = random_map(2, 3, 16, 20, seed=1, grad=True), random_map(2, 4, *teacher_size, seed=2)
    method = make(name, spec(output=(3, 16, 20)), spec(output=(4, *teacher_size)))

    def losses(ours, theirs):
        pair = networks(ours, theirs, VALID)
        fresh = copy.deepcopy(method)  # batch norm remembers
        return [list(fresh.step(stage, *pair, None))[0].total for stage in fresh.stages()]

    found = losses(student, teacher)
    found[-1].backward()
    padding = (Knowledge(valid=VALID).mask(student) == 0).expand_as(student)
    assert padding.any()
    assert (student.grad[padding] == 0).all()
    assert (student.grad[~padding] != 0).any()
    teacher_padding = Knowledge(valid=VALID).mask(teacher) == 0
    again = losses(student.detach().masked_fill(padding, 9), teacher.masked_fill(teacher_padding, -9))
    torch.testing.assert_close(torch.stack(again), torch.stack(found), rtol=1e-5, atol=1e-6)


# The ablations


def test_autoencoder_halves_and_doubles():
    method = make("cae", spec(output=(3, 16, 24)), spec(output=(4, 16, 24)))
    assert method.paraphrasers["output"].encoder(random_map(2, 4, 16, 24)).shape == (2, 32, 2, 3)
    convolutions = [m for m in method.translators.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride) for c in convolutions] == [
        (3, 6, (2, 2)),
        (6, 12, (2, 2)),
        (12, 32, (2, 2)),
    ]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in method.paraphrasers.modules()) == 6
    with pytest.raises(InputError, match=r"halves maps 3 times, but the teacher's is 7x24; .*methods\.cae\.num_layers"):
        make("cae", spec(output=(3, 16, 24)), spec(output=(4, 7, 24)))


def test_full_activations_are_matched_through_one_convolution():
    student, teacher, losses = random_map(2, 3, 4, 6, seed=1), random_map(2, 5, 4, 6, seed=2), task_losses()
    method = make("fact", spec(output=(3, 4, 6)), spec(output=(5, 4, 6)), beta=3.0)
    update = one_update(method, *networks(student, teacher, losses=losses))
    weight, bias = (p.detach().numpy() for p in method.translators[0].parameters())
    ours = np.einsum("dc,nchw->ndhw", weight[:, :, 0, 0], student.numpy()) + bias[None, :, None, None]
    expected = 3 * numpy_factor_loss(ours, teacher.numpy(), 2)
    assert added(update, losses, "fact").item() == pytest.approx(expected, abs=1e-9)
    assert set(method.players()) == {"student"}


def test_presets_are_the_papers():
    for preset, beta, batch_norm in (
        ("default", 500, False),
        ("paper", 1000, False),
        ("paper-cifar", 500, False),
        ("paper-cifar10", 500, True),
    ):
        config = methods.method_config("ft", {"preset": preset})
        assert (config.beta, config.batch_norm, config.rate, config.p) == (beta, batch_norm, 0.5, 1)
        assert config.reference_elements == (2048 if preset == "default" else 0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ft", {"p": 3}, r"methods\.ft\.p is 3: it must be 1 or 2"),
        ("ft", {"rate": 0.0}, r"methods\.ft\.rate is 0.0: it must be greater than 0"),
        ("ft", {"num_layers": 4}, r"methods\.ft\.num_layers is 4"),
        ("rae", {"paraphraser_steps": 0}, r"methods\.rae\.paraphraser_steps is 0"),
        ("ft", {"reference_elements": -1}, r"methods\.ft\.reference_elements is -1"),
        ("cae", {"growth": 0.0}, r"methods\.cae\.growth is 0.0"),
        ("fact", {"p": 0}, r"methods\.fact\.p is 0"),
        ("ft", {"layers": ["layer9"]}, r"methods\.ft\.layers: the student has no map 'layer9'"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(InputError, match=message) as error:
        make(name, spec(output=(3, 16, 16)), spec(output=(3, 16, 16)), **settings)
    assert "\n" not in str(error.value)


def test_trains_a_detector_and_sums_with_kd(detector, batch):
    student, teacher = detector(), detector("fasterrcnn_resnet10x0.25_c4", seed=1)
    distiller = Distiller(student, teacher, "ft+kd", {"ft": {"paraphraser_steps": 2}})
    assert [stage.name for stage in distiller.stages] == ["ft.paraphraser", "ft.distill+kd.distill"]
    distiller.prepare([batch])
    losses = distiller(*batch)
    assert {"ft", "kd", "loss_box_reg"} <= set(losses)
    sum(losses.values()).backward()
    trained = distiller.trainable_parameters()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    translators = distiller.method.methods["ft"].translators
    assert {id(p) for p in translators.parameters()} <= {id(p) for p in trained}
    with pytest.raises(InputError, match="both train a net called 'paraphraser'"):
        Distiller(detector(), teacher, "ft+rae")
