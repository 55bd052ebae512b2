"""KTAN and DLN: losses by hand, Algorithm 1's geometry and head, and gradients only where they belong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkt import Distiller, methods
from detkt.base.errors import InputError
from detkt.knowledge import FeatureSpec, Knowledge, Rows, Scores, Spec
from detkt.methods.adapters import Regressor, regressor_geometry
from detkt.methods.adversary import RowDiscriminator, gradient_penalty, right_shares, zero_penalty
from detkt.methods.base import STUDENT, Needs
from detkt.methods.ktan import Discriminator, discriminator_loss, feature_mse, generator_loss

EXACT = {"normalize": False, "instance_noise": 0.0, "spectral_norm": False, "label_smoothing": 0.0}


class ToyHeads:
    """Heads whose task loss is the mean of the map, and who remember who was asked."""

    def __init__(self) -> None:
        self.roles: list[str] = []

    def task_losses(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        self.roles.append(role)
        self.features = features
        return {"loss": sum(feature.mean() for feature in features.values())}

    def rows(self, features: dict[str, Tensor], role: str) -> Rows:
        """Two rows a picture: means of the map's halves; the scores are four of the vectors' values."""
        self.roles.append(role)
        feature = features["output"]
        vectors = torch.stack([half.mean(dim=(2, 3)) for half in feature.chunk(2, dim=3)], dim=1).flatten(0, 1)
        return Rows(vectors[:, :4], torch.arange(len(vectors)) % 4, vectors)

    def objectness(self, features: dict[str, Tensor], role: str) -> dict[str, Tensor]:
        """Of three anchors: the map's first channels and the last of the cell to the left, and a bias."""
        self.roles.append(role)
        return {name: feature[:, :3] + feature[:, -1:].roll(1, 3) + 1 for name, feature in features.items()}


class ChannelMean(nn.Module):
    """A discriminator whose logits are known: the mean over channels, or over the whole picture."""

    def __init__(self, patch: bool) -> None:
        super().__init__()
        self.patch = patch
        self.inputs: list[Tensor] = []
        self.masks: list[Tensor | None] = []

    def forward(self, feature: Tensor, mask: Tensor | None = None) -> Tensor:
        self.inputs.append(feature)
        self.masks.append(mask)
        return feature.mean(dim=1, keepdim=True) if self.patch else feature.mean(dim=(2, 3)).mean(dim=1, keepdim=True)


def spec(channels: int = 8, height: int = 4, width: int = 6, classes: tuple[str, ...] = ()) -> Spec:
    return Spec({"output": FeatureSpec(channels, height, width, True)}, 4, classes)


def make(student: Spec, teacher: Spec, name: str = "ktan", **settings):
    torch.manual_seed(0)
    return methods.build(methods.parse(name, {name: settings}), student, teacher)


def stage_of(method, name: str):
    return next(stage for stage in method.stages() if stage.name == name)


def knowledge(*shape: int, seed: int, valid=None) -> Knowledge:
    feature = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return Knowledge({"output": feature}, losses={"task": torch.tensor(2.0)}, valid=valid)


def values(update) -> dict[str, float]:
    return {name: loss.item() for name, loss in (update.losses | update.metrics).items()}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# Losses


def test_discriminator_loss_by_hand():
    teacher = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    student = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    real = -(log_sigmoid(0) + log_sigmoid(2)) / 2
    false = -(log_sigmoid(-1) + log_sigmoid(1)) / 2
    assert discriminator_loss(teacher, student).item() == pytest.approx(real + false, abs=1e-6)
    smooth = -(0.9 * log_sigmoid(0) + 0.1 * log_sigmoid(0) + 0.9 * log_sigmoid(2) + 0.1 * log_sigmoid(-2)) / 2
    assert discriminator_loss(teacher, student, None, 0.1).item() == pytest.approx(smooth + false, abs=1e-6)


def test_discriminator_loss_counts_the_cells_of_the_mask():
    teacher = torch.tensor([[[[0.5, 9], [-1, 9], [9, 9]]]], dtype=torch.float64)
    student = torch.tensor([[[[-2.0, -9], [3, -9], [-9, -9]]]], dtype=torch.float64)
    mask = torch.tensor([[[[1.0, 0], [1, 0], [0, 0]]]], dtype=torch.float64)
    expected = -(log_sigmoid(0.5) + log_sigmoid(-1)) / 2 - (log_sigmoid(2) + log_sigmoid(-3)) / 2
    assert discriminator_loss(teacher, student, mask).item() == pytest.approx(expected, abs=1e-6)
    real = -(0.8 * log_sigmoid(0.5) + 0.2 * log_sigmoid(-0.5) + 0.8 * log_sigmoid(-1) + 0.2 * log_sigmoid(1)) / 2
    expected = real - (log_sigmoid(2) + log_sigmoid(-3)) / 2
    assert discriminator_loss(teacher, student, mask, 0.2).item() == pytest.approx(expected, abs=1e-6)


def test_generator_loss_by_hand():
    logit = torch.tensor([[[[0.0, 1, -2]]]], dtype=torch.float64)
    expected = -(log_sigmoid(0) + log_sigmoid(1) + log_sigmoid(-2)) / 3
    assert generator_loss(logit).item() == pytest.approx(expected, abs=1e-6)
    mask = torch.tensor([[[[0.0, 1, 1]]]], dtype=torch.float64)
    expected = -(log_sigmoid(1) + log_sigmoid(-2)) / 2
    assert generator_loss(logit, mask).item() == pytest.approx(expected, abs=1e-6)


def test_other_losses_by_hand():
    teacher = torch.tensor([[[[0.5, 9.0]]], [[[-2.0, 1.5]]]], dtype=torch.float64)
    student = torch.tensor([[[[-3.0, 9.0]]], [[[0.5, 0.0]]]], dtype=torch.float64)
    mask = torch.tensor([[[[1.0, 0]]], [[[1, 1]]]], dtype=torch.float64)
    found = {
        name: (
            discriminator_loss(teacher, student, mask, loss=name).item(),
            generator_loss(student, mask, teacher, name).item(),
        )
        for name in ("hinge", "relativistic", "wgan-gp")
    }
    hinge = (0.5 + 3.0 + 0.0) / 3 + (0.0 + 1.5 + 1.0) / 3
    pairs = [(0.5, -3.0), (-2.0, 0.5), (1.5, 0.0)]
    judged = -sum(log_sigmoid(t - s) for t, s in pairs) / 3
    learned = -sum(log_sigmoid(s - t) for t, s in pairs) / 3
    mean_teacher, mean_student = (0.5 - 2.0 + 1.5) / 3, (-3.0 + 0.5 + 0.0) / 3
    assert found["hinge"] == pytest.approx((hinge, -mean_student))
    assert found["relativistic"] == pytest.approx((judged, learned))
    assert found["wgan-gp"] == pytest.approx((mean_student - mean_teacher, -mean_student))


def test_right_shares_by_hand():
    teacher, student = torch.tensor([[[[0.5, 2.0, 9.0]]]]), torch.tensor([[[[1.0, -1.0, -9.0]]]])
    mask = torch.tensor([[[[1.0, 1, 0]]]])
    for name, undecided, expected in (("gan", 0.7, (0.5, 0.5)), ("hinge", 0.0, (1.0, 0.5))):
        assert right_shares(teacher, student, mask, undecided, name) == expected
    assert right_shares(teacher, student, mask, 0.0, "relativistic") == (0.5, 0.5)
    # Means 1.25 and 0: the middle is 0.625.
    assert right_shares(teacher, student, mask, 0.0, "wgan-gp") == (0.5, 0.5)


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_penalty_of_a_linear_critic_by_hand(patch, masked):
    """A critic that weighs channels has one gradient everywhere: weight / cells in each cell that counts."""
    judge = Discriminator(3, 1, 0, patch, spectral=False, narrow=False)
    judge.layers = nn.Sequential()
    judge.score = nn.Conv2d(3, 1, 1) if patch else nn.Linear(3, 1)
    teacher, student = torch.randn(2, 3, 2, 5), torch.randn(2, 3, 2, 5, requires_grad=True)
    mask = None
    cells = torch.tensor([10.0, 10.0])
    if masked:
        mask = torch.ones(2, 1, 2, 5)
        mask[1, :, :, 2:] = 0
        cells[1] = 4
    norm = judge.score.weight.detach().norm() / cells.sqrt()
    assert zero_penalty(judge, student, mask).item() == pytest.approx(norm.square().mean().item(), rel=1e-5)
    penalty = gradient_penalty(judge, teacher, student, mask)
    assert penalty.item() == pytest.approx((norm - 1).square().mean().item(), rel=1e-5)
    penalty.backward()
    assert student.grad is None
    weight = judge.score.weight.detach().clone().requires_grad_()
    (weight.norm() / cells.sqrt() - 1).square().mean().backward()
    assert torch.allclose(judge.score.weight.grad, weight.grad, atol=1e-6)


@pytest.mark.parametrize("loss", ["hinge", "relativistic", "wgan-gp"])
def test_every_loss_teaches_the_student(pair, batch, loss):
    """Each player gets gradients of its own alone, and the adversary's share holds."""
    student, teacher = pair
    settings = {"regressor_steps": 1, "warmup_steps": 0, "adversary_balance": 0.3, "loss": loss}
    with Distiller(student, teacher, "ktan", settings) as distiller:
        distiller.prepare([batch])
        distiller(*batch)
        assert distiller.metrics["ktan_generator_share"].item() == pytest.approx(0.3, rel=1e-3)
        assert math.isfinite(distiller.metrics["generator_loss"].item())
        changed = state(distiller.method.discriminators)
        distiller(*batch)
        for _ in range(3):
            distiller(*batch)
        assert not unchanged(distiller.method.discriminators, changed)


@pytest.mark.parametrize("loss", ["gan", "hinge", "relativistic", "wgan-gp"])
@pytest.mark.parametrize("adversary", ["objectness", "roi", "score"])
def test_an_adversary_behind_a_head_teaches_the_backbone_alone(pair, batch, adversary, loss):
    """The head that it is read through gets nothing from it and is as before."""
    settings = {"regressor_steps": 1, "warmup_steps": 0, "loss": loss, "adversary": adversary}
    distiller = distiller_of(*pair, **settings)
    student, method = distiller.student, distiller.method
    distiller.prepare([batch])
    requires = {name: p.requires_grad for name, p in distiller.named_parameters()}
    judged, update = distiller.updates(distiller.stages[-1], *batch)
    assert {name: p.requires_grad for name, p in distiller.named_parameters()} == requires
    nets = (student, method.regressors)
    fill_gradients(*nets)
    judged.total.backward(retain_graph=True)
    assert gradients_are_filled(*nets)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.discriminators.parameters())
    heads = [*student.rpn.parameters(), *student.roi_heads.parameters(), *distiller.teacher.parameters()]
    learning = [p for p in student.backbone.parameters() if p.requires_grad]
    term = update.losses["ktan_generator"]
    reached = torch.autograd.grad(term, [*learning, *(p for p in heads if p.requires_grad)], allow_unused=True)
    assert sum(gradient.abs().sum().item() for gradient in reached[: len(learning)]) > 0
    assert set(reached[len(learning) :]) == {None}


@pytest.mark.parametrize(("adversary", "sigmoid"), [("roi", False), ("score", False), ("score", True)])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_an_adversary_of_rows_sees_by_hand(adversary, sigmoid, normalize):
    """With R the identity: vectors, or scores, centred for a softmax, of both nets' maps, on R(t)'s scale."""
    settings = {**EXACT, "normalize": normalize, "adversary": adversary, "loss": "hinge", "adversary_every": 1}
    scored = Spec(spec().features, 4 + sigmoid, scores=Scores("regions", sigmoid, width=8))
    method = make(scored, scored, **settings, alpha=0.5)
    method.regressors["output"].convolution.weight.data.copy_(torch.eye(8).reshape(8, 8, 1, 1))
    judge, seen = method.discriminators["rows"], []
    judge.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    student, teacher = knowledge(2, 8, 4, 6, seed=1), knowledge(2, 8, 4, 6, seed=2)
    heads = ToyHeads()
    _, update = method.step(stage_of(method, "adversarial"), student, teacher, heads)
    assert heads.roles == ["teacher", "teacher"]
    expected = []
    for net in (teacher, student):
        rows = heads.rows(net.features, "teacher")
        scores = rows.logits if sigmoid else rows.logits - rows.logits.mean(dim=1, keepdim=True)
        expected.append((rows.vectors if adversary == "roi" else scores).detach())
    scale = expected[0].square().mean().sqrt() if normalize else 1.0
    assert torch.allclose(seen[0][0], torch.cat(expected) / scale, atol=1e-6)
    assert seen[0][1].tolist() == 2 * [0, 1, 2, 3]
    assert torch.allclose(seen[1][0], expected[1] / scale, atol=1e-6)
    logits = judge(expected[1] / scale, torch.arange(4))
    assert update.losses["ktan_generator"].item() == pytest.approx(-0.5 * logits.mean().item(), abs=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_what_an_adversary_of_objectness_sees_by_hand(normalize):
    """With R the identity: the head's scores of every cell on both maps, a D a level, of R(t)'s scale, and padding that
    is the student's on both, from which it learns nothing."""
    settings = {**EXACT, "normalize": normalize, "adversary": "objectness", "loss": "wgan-gp", "adversary_every": 1}
    names, shape, valid = ("output.0", "output.1"), (2, 8, 4, 6), [(1.0, 1.0), (0.5, 0.5)]
    levels = {"output.0": FeatureSpec(8, 4, 6, True), "output.1": FeatureSpec(8, 2, 3, True)}
    shapes = {"output.0": shape, "output.1": (2, 8, 2, 3)}
    scored = Spec(levels, 4, scores=Scores("regions", width=8, rpn_anchors=3))
    method = make(scored, scored, **settings, alpha=0.5)
    judges = {}
    for name, key in zip(names, ("output_0", "output_1"), strict=True):
        method.regressors[key].convolution.weight.data.copy_(torch.eye(8).reshape(8, 8, 1, 1))
        first = method.discriminators[key].layers[0]
        assert (first.in_channels, first.out_channels) == (3, 64)
        judges[name] = method.discriminators[key] = ChannelMean(patch=True)
    torch.manual_seed(1)
    ours, theirs = ({name: torch.rand(shapes[name]) for name in names} for _ in range(2))
    maps = {name: feature.clone().requires_grad_() for name, feature in ours.items()}
    student = Knowledge(maps, losses={"task": torch.tensor(2.0)}, valid=valid)
    heads = ToyHeads()
    judged, update = method.step(stage_of(method, "adversarial"), student, Knowledge(theirs, valid=valid), heads)
    assert heads.roles == ["teacher", "teacher"]
    means = []
    for name in names:
        rows, columns = shapes[name][2:]
        mask = torch.zeros(2, 1, rows, columns)
        mask[0], mask[1, :, : rows // 2, : columns // 2] = 1, 1
        framed = torch.where(mask.bool(), theirs[name], ours[name])
        expected = [each[:, :3] + each[:, 7:].roll(1, 3) + 1 for each in (framed, ours[name])]
        scale = ((expected[0].square() * mask).sum() / (3 * mask.sum())).sqrt() if normalize else 1.0
        judge = judges[name]
        assert torch.allclose(judge.inputs[0], torch.cat(expected) / scale, atol=1e-6)
        assert torch.equal(judge.masks[0], torch.cat([mask, mask]))
        assert torch.equal(judge.masks[-1], mask)
        means.append(((expected[1] / scale).mean(dim=1, keepdim=True) * mask).sum() / mask.sum())
    term = update.losses["ktan_generator"]
    assert term.item() == pytest.approx(-0.5 * torch.stack(means).mean().item(), abs=1e-6)
    assert judged.losses["discriminator"].isfinite()
    for name, gradient in zip(names, torch.autograd.grad(term, list(maps.values())), strict=True):
        rows, columns = shapes[name][2:]
        assert gradient[0].abs().sum() > 0
        # The last column's neighbour is the first: of a picture whose padding begins behind the half, nothing is left.
        outside = gradient[1, :, rows // 2 :], gradient[1, :, :, columns // 2 :]
        assert [each.abs().sum().item() for each in outside] == [0, 0]


def test_the_discriminator_of_rows_by_hand():
    torch.manual_seed(0)
    judge = RowDiscriminator(5, 3, 7, spectral=False)
    rows, classes = torch.randn(4, 5), torch.tensor([2, 0, 2, 1])
    first, second = judge.layers[0], judge.layers[2]
    hidden = F.leaky_relu(rows @ first.weight.T + first.bias, 0.2)
    hidden = F.leaky_relu(hidden @ second.weight.T + second.bias, 0.2)
    by_class = torch.stack([hidden[i] @ judge.projection.weight[c] for i, c in enumerate(classes)])
    expected = hidden @ judge.score.weight[0] + judge.score.bias + by_class
    assert torch.allclose(judge(rows, classes)[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
def test_the_r1_penalty_is_on_the_teachers_rows_and_in_pairs_on_the_students_too(loss):
    settings = {**EXACT, "adversary": "roi", "loss": loss, "adversary_every": 1}
    scored = Spec(spec().features, 4, scores=Scores("regions", width=8))
    found = []
    for r1 in (0.0, 3.0):
        torch.manual_seed(0)
        method = make(scored, scored, **settings, r1=r1)
        seen = []
        judge = method.discriminators["rows"]
        judge.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs))
        nets = knowledge(2, 8, 4, 6, seed=1), knowledge(2, 8, 4, 6, seed=2)
        update, _ = method.step(stage_of(method, "adversarial"), *nets, ToyHeads())
        found.append(update.losses["discriminator"])
    sizes = []
    for rows, classes in zip(seen[0][0].chunk(2), seen[0][1].chunk(2), strict=True):
        rows = rows.detach().requires_grad_()
        slopes = [torch.autograd.grad(judge(rows, classes)[i, 0], rows)[0][i] for i in range(len(rows))]
        sizes.append(torch.stack(slopes).square().sum(dim=1).mean())
    expected = 1.5 * (sizes[0] + sizes[1] if loss == "relativistic" else sizes[0])
    assert (found[1] - found[0]).item() == pytest.approx(expected.item(), rel=1e-4)
    found[1].backward()
    assert all(p.grad.isfinite().all() for p in judge.parameters())


def test_rows_that_no_head_gives_are_refused():
    dense = Spec(spec().features, 4, scores=Scores("anchors", sigmoid=True))
    message = (
        "methods.ktan.adversary is 'roi', and the teacher, whose head would be read, has no head that looks at reg"
    )
    with pytest.raises(InputError, match=message):
        make(dense, dense, adversary="roi")
    message = (
        "methods.ktan.adversary is 'objectness', and the teacher, .* has no stage that scores as many anchors in every"
    )
    with pytest.raises(InputError, match=message):
        make(dense, dense, adversary="objectness")
    assert make(dense, dense, adversary="score").discriminators["rows"].layers[0].in_features == 3
    unknown = Spec(spec().features, 4, scores=None)
    with pytest.raises(InputError, match="adversary is 'score', and the teacher, .* has no such scores; take 'patch'"):
        make(unknown, unknown, adversary="score")
    with pytest.raises(InputError, match=r"unknown methods.ktan.adversary 'rois' \(did you mean 'roi'\?\)"):
        make(spec(), spec(), adversary="rois")


def test_an_unknown_loss_is_told():
    with pytest.raises(InputError, match=r"unknown methods.ktan.loss 'hing' \(did you mean 'hinge'\?\)"):
        make(spec(), spec(), loss="hing")


def test_sure_discriminators_cost_what_they_are_wrong_by_and_stay_finite():
    sure = torch.tensor([[200.0]])
    assert discriminator_loss(sure, -sure).item() == 0
    assert discriminator_loss(-sure, sure).item() == pytest.approx(400)
    assert generator_loss(-sure).item() == pytest.approx(200)


def test_feature_mse_by_hand():
    student = torch.tensor([[[[1.0, 2, 3]], [[0, -1, 5]]]], dtype=torch.float64)  # (1, 2, 1, 3)
    teacher = torch.tensor([[[[1.0, 0, 0]], [[2, -1, 1]]]], dtype=torch.float64)
    assert feature_mse(student, teacher).item() == pytest.approx((0 + 4 + 9 + 4 + 0 + 16) / 6, abs=1e-6)
    mask = torch.tensor([[[[1.0, 1, 0]]]], dtype=torch.float64)
    assert feature_mse(student, teacher, mask).item() == pytest.approx((0 + 4 + 4 + 0) / 4, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_losses(masked):
    torch.manual_seed(1)
    first, second = (torch.randn(2, 1, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = (torch.rand(2, 1, 3, 5) > 0.4).double() if masked else None
    assert torch.autograd.gradcheck(lambda a, b: discriminator_loss(a, b, mask, 0.1), (first, second))
    assert torch.autograd.gradcheck(lambda a: generator_loss(a, mask), first)
    maps = [torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    # Single precision inside; central differences of a square are exact at any step.
    assert torch.autograd.gradcheck(lambda a, b: feature_mse(a, b, mask), maps, eps=1e-1, atol=1e-4)


# The teacher-to-student layer


def test_geometry_satisfies_algorithm_1():
    for teacher in range(1, 90):
        for student in range(1, 90):
            geometry = regressor_geometry(teacher, student)
            if (abs(teacher - student) <= 2 and min(teacher, student) > 4) or teacher % student == 0:
                assert geometry is not None, (teacher, student)
            if geometry is None:
                continue
            kernel, stride, padding = geometry
            assert (teacher + 2 * padding - kernel) / stride + 1 == student
            assert min(kernel, stride) >= 1
            assert 0 <= padding < kernel  # no row of the output sees padding alone
    assert {regressor_geometry(size, size) for size in range(1, 90)} == {(1, 1, 0)}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ((38, 50), (36, 49)),  # ResNet-C4 to AlexNet at 600x800
        ((37, 50), (36, 49)),  # VGG to AlexNet
        ((36, 49), (37, 50)),
        ((36, 49), (38, 50)),
        ((38, 50), (19, 25)),
        ((38, 50), (38, 50)),
        ((19, 25), (38, 50)),  # too far for a small kernel: resized first
    ],
)
def test_the_layer_gives_the_students_map(teacher, student):
    layer = Regressor(FeatureSpec(5, *teacher, True), FeatureSpec(3, *student, False))
    assert layer.resize_first == (teacher == (19, 25))
    size = student if layer.resize_first else None
    assert layer(torch.rand(2, 5, *teacher), size).shape == (2, 3, *student)
    if teacher == student:
        assert layer.convolution.kernel_size == (1, 1)
    # A batch of another size than the probed one: the student's size decides.
    height, width = teacher[0] + 7, teacher[1] + 4
    assert layer(torch.rand(1, 5, height, width), (student[0] + 3, student[1] + 9)).shape[-2:] == (
        student[0] + 3,
        student[1] + 9,
    )


def test_the_layer_ends_as_the_students_does():
    feature = torch.randn(2, 8, 4, 6)
    for nonnegative in (True, False):
        layer = Regressor(FeatureSpec(8, 4, 6, True), FeatureSpec(5, 4, 6, nonnegative))
        assert bool((layer(feature) >= 0).all()) == nonnegative


def test_a_real_pair_of_unequal_nets(detector):
    """VGG-16 teaches AlexNet at 600x800, whose map lacks a row and a column."""
    picture = torch.rand(1, 3, 600, 800)
    with torch.no_grad():
        teacher = detector("fasterrcnn_vgg16", head_features=8).backbone(picture)
        student = detector("fasterrcnn_alexnet", head_features=8).backbone(picture)
        assert (teacher.shape, student.shape) == ((1, 512, 37, 50), (1, 256, 36, 49))
        layer = Regressor(FeatureSpec(*teacher.shape[1:], True), FeatureSpec(*student.shape[1:], True))
        assert layer.convolution.kernel_size == (2, 2)
        assert layer(teacher).shape == student.shape


@pytest.mark.parametrize(
    ("student", "teacher", "head"),
    [
        (spec(8), spec(8), "teacher"),
        (spec(8), spec(16), STUDENT),
        (spec(8, classes=("a", "b", "c")), spec(8, classes=("a", "c", "b")), STUDENT),
        # Heads are made for a stride: the teacher's cannot read a map of the student's other size.
        (spec(8, 4, 6), spec(8, 8, 12), STUDENT),
    ],
)
def test_algorithm_1_reads_the_teachers_head_where_it_can(student, teacher, head):
    method, heads = make(student, teacher), ToyHeads()
    feature = teacher.features["output"]
    source = knowledge(2, feature.channels, feature.height, feature.width, seed=0)
    (update,) = method.step(stage_of(method, "regressor"), None, source, heads)
    assert heads.roles == [head]
    assert heads.features["output"].shape == (2, 8, 4, 6)
    assert update.player == "regressor"
    assert values(update) == {"regressor_loss": pytest.approx(heads.features["output"].mean().item())}


def test_a_pyramid_of_other_levels_is_read_by_the_students_head():
    levels = {f"output.{level}": FeatureSpec(8, 8 >> level, 8 >> level, False) for level in range(3)}
    fewer = {name: levels[name] for name in ("output.0", "output.1")}
    assert make(Spec(levels, 4), Spec(levels, 4)).head == "teacher"
    assert make(Spec(fewer, 4), Spec(levels, 4)).head == STUDENT


def test_levels_without_a_counterpart_are_the_students_own_in_stage_one():
    """Three levels learn from a teacher of one: R is made for that one, the student's head reads its own beside it."""
    levels = {f"output.{level}": FeatureSpec(8, 8 >> level, 8 >> level, False) for level in range(3)}
    method = make(Spec(levels, 4), Spec({"output.0": FeatureSpec(6, 4, 4, False)}, 4))
    assert [(pair.student, pair.teacher) for pair in method.pairs()] == [("output.1", "output.0")]
    assert method.head == STUDENT
    first, *later = method.stages()
    assert first.needs == Needs.TEACHER_FEATURES | Needs.STUDENT_FEATURES
    own = Knowledge({name: torch.randn(2, 8, s.height, s.width) for name, s in levels.items()})
    heads = ToyHeads()
    (update,) = method.step(first, own, Knowledge({"output.0": torch.randn(2, 6, 4, 4)}), heads)
    assert list(heads.features) == list(levels), "in the head's order"
    assert torch.equal(heads.features["output.0"], own.features["output.0"])
    assert not torch.equal(heads.features["output.1"], own.features["output.1"])
    update.total.backward()
    assert all(p.grad is not None for p in method.regressors.parameters())
    assert all(Needs.STUDENT in stage.needs for stage in later)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="num_convs is 3"):
        make(spec(), spec(), num_convs=3)
    inner = Spec({**spec().features, "layer2": FeatureSpec(4, 8, 12, True)}, 4)
    with pytest.raises(InputError, match="ktan.layers must be .*backbone outputs"):
        make(inner, inner, layers=["layer2"])


# Stages and losses


def test_stages_of_ktan_and_dln():
    stages = make(spec(), spec(), regressor_steps=7, warmup_steps=5).stages()
    assert [(stage.name, stage.steps, stage.players) for stage in stages] == [
        ("regressor", 7, ("regressor",)),
        ("warmup", 5, (STUDENT,)),
        ("adversarial", None, (STUDENT, "discriminator")),
    ]
    both = Needs.STUDENT | Needs.TEACHER_FEATURES
    assert [stage.needs for stage in stages] == [Needs.TEACHER_FEATURES, both, both]
    assert [s.name for s in make(spec(), spec(), warmup_steps=0).stages()] == ["regressor", "adversarial"]
    dln = make(spec(), spec(), "dln", regressor_steps=7)
    assert [(stage.name, stage.steps) for stage in dln.stages()] == [("regressor", 7), ("distill", None)]
    assert list(dln.players()) == ["regressor"]
    assert len(dln.discriminators) == 0


def test_a_discriminator_is_cheap_beside_the_student():
    widths = {channels: make(spec(channels), spec(channels)) for channels in (1, 8, 64, 1024)}
    for channels, width in {1: 1, 8: 4, 64: 32, 1024: 64}.items():
        assert widths[channels].discriminators["output"].score.in_channels == width
    assert stage_of(widths[8], "adversarial").every == 4
    assert widths[8].players()["discriminator"].lr == 4e-4  # a quarter as often, four times as far


@pytest.mark.parametrize("every", [0, -1, 101])
def test_turns_too_seldom_or_never_are_refused(every):
    message = f"methods.ktan.adversary_every is {every}: it must be a whole number from 1 to 100"
    with pytest.raises(InputError, match=message):
        make(spec(), spec(), adversary_every=every)


def test_a_setting_out_of_range_is_told_of_its_own_method():
    for name in ("ktan", "dln"):
        with pytest.raises(InputError, match=f"methods.{name}.beta is -1.0: it must be a number of at least 0"):
            methods.method_config(name, {"beta": -1})


def test_the_papers_preset():
    config = methods.method_config("ktan", {"preset": "paper"})
    assert (config.alpha, config.beta, config.normalize) == (0.6, 0.5, False)
    assert (config.adversary, config.spectral_norm, config.label_smoothing, config.instance_noise) == (
        "map",
        False,
        0,
        0,
    )
    method = make(spec(), spec(), preset="paper")
    assert stage_of(method, "adversarial").every == 1
    for player in method.players().values():
        assert (player.optimizer, player.lr, player.weight_decay) == ("sgd", 0.01, 1e-4)
        assert (player.clip_norm, player.scheduled) == (None, False)
    layers = method.discriminators["output"].layers
    assert [getattr(layer, "kernel_size", "relu") for layer in layers] == [(3, 3), "relu", (3, 3), "relu"]
    assert layers[0].in_channels == 8
    assert layers(torch.full((1, 8, 4, 4), -5.0)).min() == 0  # a leaky one lets negative values through


def test_ours_narrows_leaks_clips_and_follows_the_schedule():
    method = make(spec(), spec())
    layers = method.discriminators["output"].layers
    assert [layer.kernel_size for layer in layers[::2]] == [(1, 1), (3, 3), (3, 3)]
    assert [layer.negative_slope for layer in layers[1::2]] == 3 * [0.2]
    players = method.players()
    assert [player.clip_norm for player in players.values()] == [10, 10]
    assert (players["discriminator"].scheduled, players["regressor"].scheduled) == (True, False)
    assert make(spec(), spec(), clip_norm=3.0).players()["regressor"].clip_norm == 3


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_losses_of_a_step_by_hand(patch, normalize):
    """With R the identity and D the mean over channels, every term can be written down."""
    settings = {"alpha": 0.1, "adversary_every": 3, "beta": 0.7, "label_smoothing": 0.2}
    settings = {**EXACT, "normalize": normalize, "adversary": "patch" if patch else "map", **settings}
    method = make(spec(), spec(), **settings)
    layer = method.regressors["output"].convolution
    layer.weight.data.copy_(torch.eye(8).reshape(8, 8, 1, 1))
    method.discriminators["output"] = ChannelMean(patch)
    student, teacher = knowledge(2, 8, 4, 6, seed=1), knowledge(2, 8, 4, 6, seed=2)
    s, t = student.features["output"].detach(), teacher.features["output"].detach()
    scale = t.square().mean().sqrt() if normalize else 1.0
    s, t = s / scale, t / scale
    over = (1,) if patch else (1, 2, 3)
    logits = [feature.mean(dim=over) for feature in (t, s)]

    judged, learned = method.step(stage_of(method, "adversarial"), student, teacher, ToyHeads())
    real = F.binary_cross_entropy_with_logits(logits[0], torch.full_like(logits[0], 0.8))
    false = F.binary_cross_entropy_with_logits(logits[1], torch.zeros_like(logits[1]))
    assert judged.player == "discriminator"
    assert values(judged) == pytest.approx(
        {
            "discriminator": (real + false).item(),
            "discriminator_accuracy_teacher": 1.0,  # all means are positive
            "discriminator_accuracy_student": 0.0,
        }
    )
    mse = 0.7 * ((s - t) ** 2).sum().item() / (2 * 8 * 4 * 6)
    fooled = 0.3 * F.binary_cross_entropy_with_logits(logits[1], torch.ones_like(logits[1])).item()
    assert learned.player == STUDENT
    raw = {"feature_mse": mse / 0.7, "generator_loss": fooled / 0.3}  # 0.3: thrice alpha, a third as often
    assert values(learned) == pytest.approx({"ktan_mse": mse, "ktan_generator": fooled, **raw})
    assert learned.total.item() == pytest.approx(mse + fooled)

    for step in (1, 2, 4, 5):
        (between,) = method.step(stage_of(method, "adversarial").turn(step), student, teacher, ToyHeads())
        terms = {"ktan_mse": mse, "ktan_generator": 0.0, "feature_mse": mse / 0.7}
        assert values(between) == pytest.approx(terms)
    assert stage_of(method, "adversarial").turn(3).name == "adversarial"
    (matched,) = method.step(stage_of(method, "warmup"), student, teacher, ToyHeads())
    assert values(matched) == pytest.approx({"ktan_mse": mse, "feature_mse": mse / 0.7})


def test_dln_is_ktan_without_its_adversary():
    settings = {"beta": 0.5, "normalize": False}
    student, teacher = knowledge(2, 8, 4, 6, seed=1), knowledge(2, 16, 8, 12, seed=2)
    losses = {}
    for name, stage in (("dln", "distill"), ("ktan", "warmup")):
        method = make(spec(8), spec(16, 8, 12), name, **settings)
        (update,) = method.step(stage_of(method, stage), student, teacher, ToyHeads())
        losses[name] = update.losses[f"{name}_mse"].item()
    with torch.no_grad():
        target = method.regressors["output"](teacher.features["output"])
    assert target.shape == (2, 8, 4, 6)
    expected = 0.5 * F.mse_loss(student.features["output"], target).item()
    assert losses == pytest.approx({"dln": expected, "ktan": expected})


def test_noise_is_in_root_mean_squares_of_the_map():
    method = make(spec(), spec(), **{**EXACT, "normalize": True, "instance_noise": 0.3})
    method.discriminators["output"] = judge = ChannelMean(True)
    student, teacher = knowledge(8, 8, 4, 6, seed=1), knowledge(8, 8, 4, 6, seed=2)
    list(method.step(stage_of(method, "adversarial"), student, teacher, ToyHeads()))
    with torch.no_grad():
        scale = method.regressors["output"](teacher.features["output"]).square().mean().sqrt()
    own, generator = judge.inputs  # D's update sees both nets' maps in one pass
    students = own[8:], generator
    for seen in students:
        noise = seen - student.features["output"] / scale
        assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(*students)


# Padding


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize(
    ("normalize", "loss"), [(False, "gan"), (True, "gan"), (True, "hinge"), (True, "relativistic"), (True, "wgan-gp")]
)
def test_padding_carries_no_knowledge(patch, normalize, loss):
    """Other values in padded cells change no loss, and no gradient reaches them."""
    settings = {"adversary": "patch" if patch else "map", "normalize": normalize, "loss": loss}
    method = make(spec(), spec(), **settings)
    valid = [(1.0, 0.5), (0.6, 1.0)]
    runs = []
    for filler in (0.0, 50.0):
        student, teacher = knowledge(2, 8, 4, 6, seed=1, valid=valid), knowledge(2, 8, 4, 6, seed=2, valid=valid)
        padding = 1 - student.mask(student.features["output"])
        assert padding.sum(dim=(1, 2, 3)).tolist() == [12, 12]
        for net in (student, teacher):
            with torch.no_grad():
                net.features["output"] += filler * padding
        torch.manual_seed(0)
        method.load_state_dict(make(spec(), spec(), **settings).state_dict())  # spectral norms
        updates = list(method.step(stage_of(method, "adversarial"), student, teacher, ToyHeads()))
        runs.append({name: value for update in updates for name, value in values(update).items()})
        updates[-1].total.backward()
        gradient = student.features["output"].grad.abs()
        assert (gradient * padding).sum() == 0
        assert ((gradient.sum(dim=1, keepdim=True) > 0) == (padding == 0)).all()
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_the_pooled_discriminator_means_over_the_picture():
    torch.manual_seed(0)
    judge = Discriminator(4, 8, 1, patch=False, spectral=False)
    feature = torch.rand(2, 4, 5, 6)
    mask = torch.zeros(2, 1, 5, 6)
    mask[..., :3, :4] = 1
    hidden = judge.layers(feature * mask)[..., :3, :4].mean(dim=(2, 3))
    assert torch.allclose(judge(feature, mask), hidden @ judge.score.weight.T + judge.score.bias, atol=1e-6)
    assert torch.allclose(judge(feature, torch.ones(2, 1, 5, 6)), judge(feature), atol=1e-6)


# The game


@pytest.mark.parametrize(("patch", "spectral"), [(True, True), (False, False)])
def test_the_discriminator_learns_and_can_be_fooled(patch, spectral):
    torch.manual_seed(0)
    judge = Discriminator(8, 16, 2, patch, spectral)
    assert judge(torch.rand(2, 8, 4, 6)).shape == ((2, 1, 4, 6) if patch else (2, 1))
    teacher, student = torch.rand(4, 8, 4, 6), torch.rand(4, 8, 4, 6)
    student[:, ::2] *= 0.3  # half of the channels are weaker

    optimizer = torch.optim.Adam(judge.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = discriminator_loss(judge(teacher), judge(student))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2 * math.log(2), abs=0.3)  # it knew nothing
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert (judge(teacher) > 0).float().mean() > 0.9
        assert (judge(student) < 0).float().mean() > 0.9

    learner = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([learner], 0.05)
    losses = []
    for _ in range(60):
        loss = generator_loss(judge(learner))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        assert (judge(learner) > 0).float().mean() > 0.9


# With detectors

FILL = 7.0


def distiller_of(student: nn.Module, teacher: nn.Module, method: str = "ktan", **settings) -> Distiller:
    torch.manual_seed(9)
    return Distiller(student, teacher, method, {"regressor_steps": 3, "warmup_steps": 2, **settings})


def fill_gradients(*modules: nn.Module) -> None:
    for parameter in (p for module in modules for p in module.parameters()):
        parameter.grad = torch.full_like(parameter, FILL)


def gradients_are_filled(*modules: nn.Module) -> bool:
    return all(bool((p.grad == FILL).all()) for module in modules for p in module.parameters())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.fixture(params=["fasterrcnn_resnet10x0.125_c4", "fasterrcnn_resnet10x0.25_c4"])
def pair(request, detector):
    """A student with live batch norms, and a teacher of equal or of twice the channels."""
    return detector(norm="batch"), detector(request.param, seed=1, norm="batch")


def test_gradients_reach_only_the_player(pair, batch):
    """Even of an unrestricted backward: the student's map is detached for D, and D and R are frozen for the student."""
    distiller = distiller_of(*pair)
    method, student = distiller.method, distiller.student
    requires = {name: p.requires_grad for name, p in distiller.named_parameters()}
    updates = distiller.updates(distiller.stages[-1], *batch)

    update = next(updates)
    assert update.player == "discriminator"
    before = state(student), state(method.regressors)
    fill_gradients(student, method.regressors)
    update.total.backward()
    assert gradients_are_filled(student, method.regressors)
    assert all(p.grad is not None for p in method.discriminators.parameters())
    torch.optim.SGD(method.discriminators.parameters(), 0.1).step()
    assert unchanged(student, before[0])
    assert unchanged(method.regressors, before[1])

    update = next(updates)
    assert update.player == STUDENT
    assert {name: p.requires_grad for name, p in distiller.named_parameters()} == requires
    fill_gradients(method.discriminators, method.regressors)
    student.zero_grad()
    update.total.backward()
    assert gradients_are_filled(method.discriminators, method.regressors)
    assert all(p.grad is not None for p in student.backbone.parameters())
    assert next(updates, None) is None


def test_adversary_and_mse_reach_only_the_backbone(pair, batch):
    distiller = distiller_of(*pair)
    student = distiller.student
    *_, update = distiller.updates(distiller.stages[-1], *batch)
    task = [loss for name, loss in update.losses.items() if not name.startswith("ktan")]
    assert len(task) == 4
    heads = [*student.rpn.parameters(), *student.roi_heads.parameters()]
    for parameters, equal in ((heads, True), (list(student.backbone.parameters()), False)):
        alone = torch.autograd.grad(sum(task), parameters, retain_graph=True)
        whole = torch.autograd.grad(update.total, parameters, retain_graph=True)
        assert all(torch.equal(a, b) == equal for a, b in zip(alone, whole, strict=True))
    for term in ("ktan_mse", "ktan_generator"):
        reached = torch.autograd.grad(update.losses[term], heads, retain_graph=True, allow_unused=True)
        assert reached == (None,) * len(heads)


def test_the_regressor_stage_changes_the_regressor_alone(pair, batch):
    distiller = distiller_of(*pair)
    student, method = distiller.student, distiller.method
    student.backbone.layer1.eval()  # as users do who freeze statistics
    fill_gradients(student, method.discriminators)
    nets = (student, distiller.teacher, method.discriminators)
    before, modes = [state(net) for net in nets], [m.training for net in nets for m in net.modules()]
    regressor = state(method.regressors)
    distiller.prepare([batch])
    assert all(unchanged(net, old) for net, old in zip(nets, before, strict=True))
    assert [m.training for net in nets for m in net.modules()] == modes
    assert gradients_are_filled(student, method.discriminators)
    assert not any(torch.equal(p, regressor[name]) for name, p in method.regressors.named_parameters())


@pytest.mark.parametrize("method", ["ktan", "dln"])
def test_the_teacher_never_changes(pair, batch, method):
    distiller = distiller_of(*pair, method)
    before = state(distiller.teacher)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), 0.01)
    distiller.prepare([batch])
    regressor = state(distiller.method.regressors)
    for _ in range(4):
        losses = distiller(*batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert unchanged(distiller.teacher, before)
    assert all(p.grad is None and not p.requires_grad for p in distiller.teacher.parameters())
    assert not any(module.training for module in distiller.teacher.modules())
    assert unchanged(distiller.method.regressors, regressor)  # R is trained beforehand only


def test_the_regressor_learns_the_task_of_its_head(pair, batch):
    distiller = distiller_of(*pair, regressor_steps=30, regressor_optimizer="adam", regressor_lr=1e-2)
    torch.manual_seed(0)

    def loss() -> float:
        totals = [next(distiller.updates(distiller.stages[0], *batch)).total.item() for _ in range(3)]
        return sum(totals) / len(totals)

    before = loss()
    distiller.prepare([batch])
    assert loss() < 0.9 * before


def test_a_pyramid_is_distilled_level_by_level(detector, batch):
    name = "fasterrcnn_resnet10x0.125_fpn"
    distiller = distiller_of(detector(name), detector(name, seed=1), preset="paper", warmup_steps=0)
    distiller.prepare([batch])
    method = distiller.method
    assert len(method.regressors) == len(method.discriminators) == 5
    pyramids = []
    for net in (distiller.student, distiller.teacher):
        net.backbone.register_forward_hook(lambda module, inputs, output: pyramids.append(list(output.values())))
    *_, update = distiller.updates(distiller.stages[-1], *batch)
    knowledge = Knowledge(valid=[(1.0, 80 / 96), (53 / 64, 1.0)])
    teacher, student = pyramids  # the teacher runs first
    with torch.no_grad():
        targets = [layer(level) for layer, level in zip(method.regressors.values(), teacher, strict=True)]
        mses = [feature_mse(s, t, knowledge.mask(s)) for s, t in zip(student, targets, strict=True)]
    assert update.losses["ktan_mse"].item() == pytest.approx(0.5 * sum(mses).item() / 5, rel=1e-5)
    update.total.backward()
    assert all(p.grad is not None for p in distiller.student.backbone.parameters())


def test_nets_without_a_common_size_play(detector, batch):
    """VGG-16 to AlexNet, whose map is smaller by a row and a column: 4x6 to 3x5."""
    student, teacher = detector("fasterrcnn_alexnet", head_features=8), detector("fasterrcnn_vgg16", head_features=8)
    distiller = distiller_of(student, teacher, regressor_steps=1, warmup_steps=0)
    assert distiller.method.head == STUDENT
    assert distiller.method.regressors["output"].convolution.kernel_size == (2, 2)
    distiller.prepare([batch])
    losses = distiller(*batch)
    assert {"ktan_mse", "ktan_generator"} < set(losses)
    assert torch.isfinite(sum(losses.values()))
