"""BYOL by hand, by loop, and what its two networks promise."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.methods.byol import BYOL, Config, byol_loss, fit, target_momentum
from dcl.recipes import byol as recipes
from dcl.train import seeded, train
from dcl.views import View

SGD = TrainConfig(epochs=2, batch_size=4, lr=0.05, momentum=0.0)
TINY = Config(
    n_clusters=2,
    hidden=6,
    dim=4,
    view=View(),  # not random
    momentum=0.75,
    predictor_rate=3.0,
    train=SGD,
)


class Flat(nn.Module):
    """Mean brightness of quarters, normalised over the batch in training: four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.adaptive_avg_pool2d(x, 2).flatten(1))


def images(n=12):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(n=12, **changes):
    with seeded(0):
        return BYOL(images(n), replace(TINY, **changes), Flat())


def apart(objective):
    """With a target that is not the online network."""
    with torch.no_grad():
        for p in objective.target.parameters():
            p.add_(0.3 * torch.arange(p.numel()).view_as(p).sin())
    return objective


def random(*shape, seed=0):
    with seeded(seed):
        return torch.randn(*shape, dtype=torch.float64)


# -- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees, value", [(0, 0.0), (60, 1.0), (90, 2.0), (180, 4.0)])
def test_loss_by_hand(degrees, value):
    angle = math.radians(degrees)
    p, z = torch.tensor([[3.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
    assert byol_loss(p, z).item() == pytest.approx(value, abs=1e-6)
    assert byol_loss(z, 0.01 * p).item() == pytest.approx(value, abs=1e-6)


def test_loss_is_a_mean_over_rows():
    p, z = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert byol_loss(p, z).item() == pytest.approx(2.0)


def loop_loss(p, z):
    """The squared distance of the rows, each scaled to length 1."""
    total = 0
    for a, b in zip(p, z):
        a, b = (v / sum(x * x for x in v) ** 0.5 for v in (a, b))
        total = total + sum((s - t) ** 2 for s, t in zip(a, b))
    return total / len(p)


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (3, 7)])
def test_loss_is_the_formula_in_value_and_gradient(shape):
    p, z = random(*shape).requires_grad_(), random(*shape, seed=1)
    loss, slow = byol_loss(p, z), loop_loss(p, z)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(*(torch.autograd.grad(one, p)[0] for one in (loss, slow)))
    assert torch.autograd.gradcheck(lambda q: byol_loss(q, z), p)


# -- the target --------------------------------------------------------------------------------


def test_momentum_rises_by_half_a_cosine():
    """The spec's numbers: .998 at half of the schedule."""
    steps = (0, 250, 500, 1000)
    found = [target_momentum(t, 1000, 0.996) for t in steps]
    quarter = 1 - 0.004 * (1 + math.sqrt(0.5)) / 2
    assert found == pytest.approx([0.996, quarter, 0.998, 1.0], abs=1e-12)


@pytest.mark.parametrize("rises", [True, False])
def test_the_target_follows_and_keeps_its_own_statistics(rises):
    objective = make(rises=rises)
    assert objective.steps == 6  # two epochs of three batches
    objective.step = 3
    before = copy.deepcopy(objective.target.state_dict())
    with torch.no_grad():
        for p in objective.online().parameters():
            p.add_(1.0)
    objective.encoder.norm.running_mean.fill_(7.0)
    objective.after_step()
    share = 0.125 if rises else 0.25
    learned = {name for name, _ in objective.target.named_parameters()}
    for name, value in objective.target.state_dict().items():
        moved = before[name] + share if name in learned else before[name]
        torch.testing.assert_close(value, moved, msg=name)


def test_at_the_start_both_are_one_network():
    objective = make()
    for a, b in zip(objective.target.parameters(), objective.online().parameters(), strict=True):
        assert torch.equal(a, b) and a is not b
        assert not a.requires_grad and b.requires_grad


def test_only_the_online_network_is_trained_and_the_predictor_faster():
    objective = make()
    online, predictor = objective.parameter_groups()
    assert predictor["lr_scale"] == 3.0 and "lr_scale" not in online
    assert {*predictor["params"]} == {*objective.predictor.parameters()}
    assert {*online["params"]} == {*objective.encoder.parameters(), *objective.head.parameters()}


def test_the_predictor_starts_small_and_without_bias():
    with seeded(1):
        predictor = BYOL(images(), replace(TINY, hidden=300, dim=200), Flat()).predictor
    layers = [layer for layer in predictor if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in layers] == [(300, 200), (200, 300)]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()


def test_the_networks_are_the_papers():
    objective = make()
    for net, dims in ((objective.head, (4, 6, 4)), (objective.predictor, (4, 6, 4))):
        first, norm, active, last = net
        assert isinstance(norm, nn.BatchNorm1d) and isinstance(active, nn.ReLU)
        assert (first.in_features, norm.num_features, last.out_features) == dims


def test_projections_may_be_standardised():
    """The mean over the batch is 0, the variance 1, for the online network and the target."""
    objective, x = apart(make(standardize=True)), images().float() / 255
    for net in (objective.online(), objective.target):
        z = net(x)
        torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.var(0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)
    plain = make().online()(x)
    assert plain.mean(0).abs().max() > 0.01


# -- the objective -----------------------------------------------------------------------------


def test_forward_is_the_mean_of_two_directions():
    """With views that differ, by a turn, each prediction meets the target of the other view."""
    objective = apart(make(view=View(rotate=90)))
    x, seen = images().float() / 255, {"online": [], "target": []}
    objective.encoder.register_forward_hook(lambda _m, args, _o: seen["online"].append(args[0]))
    objective.target[0].register_forward_hook(lambda _m, args, _o: seen["target"].append(args[0]))
    losses = objective(x[:4], torch.arange(4))
    (a, b), (a2, b2) = seen["online"], seen["target"]
    assert torch.equal(a, a2) and torch.equal(b, b2)
    assert not torch.equal(a, b) and not torch.equal(a, x[:4])
    fresh = apart(make(view=View(rotate=90)))
    p, q = (fresh.predictor(fresh.online()(view)) for view in (a, b))
    s, t = (fresh.target(view) for view in (a, b))
    torch.testing.assert_close(losses["loss"], (loop_loss(p, t) + loop_loss(q, s)) / 2)
    assert losses.keys() == {"loss"} and 0 <= losses["loss"] <= 4
    assert fresh.chances() == {}


def test_no_gradient_reaches_the_target():
    objective = apart(make())
    objective(images()[:4].float() / 255, torch.arange(4))["loss"].backward()
    for name, p in objective.named_parameters():
        assert (p.grad is None) == name.startswith("target."), name
        if name.endswith("weight") and not name.startswith("target."):
            assert p.grad.any(), name


def test_in_training_each_network_sees_batches_of_its_own():
    objective, x = apart(make()), images()[:4].float() / 255
    objective(x, torch.arange(4))
    for norm in (objective.encoder.norm, objective.target[0].norm):
        assert norm.num_batches_tracked == 2  # a pass for each view
    online, target = objective.head[1], objective.target[1][1]
    assert not torch.allclose(online.running_mean, target.running_mean)


def test_clusters_are_those_of_the_target_in_evaluation_mode():
    with seeded(4):
        model = fit(images(), replace(TINY, momentum=0.9), encoder=Flat())
    x = images().float() / 255
    assert not model.training and not model.target.training
    z = model.embed(x)
    torch.testing.assert_close(z, F.normalize(model.target(x), dim=1))
    assert z.dtype == torch.float32 and not torch.allclose(z, F.normalize(model.online()(x), dim=1))
    assert torch.equal(model.predict(x), (z @ model.clusters.centroids.T).argmax(1))
    torch.testing.assert_close(model.clusters.centroids.norm(dim=1), torch.ones(2))
    assert model.clusters.starts == TINY.starts


def test_a_run_moves_the_target_less_and_less():
    moved, last = [], None

    def look(stage, epoch, o, losses):
        nonlocal last
        now = o.target[1][0].weight.clone()
        if last is not None:
            moved.append(float((now - last).norm()))
        last = now

    config = replace(TINY, momentum=0.5, train=replace(SGD, epochs=12))
    with seeded(2):
        train(BYOL(images(), config, Flat()), images(), config.train, monitor=look)
    assert moved[-1] < 0.2 * moved[0]


def test_with_a_learning_rate_of_zero_nothing_is_learned():
    still = make(train=replace(SGD, lr=0.0))
    before = copy.deepcopy([*still.parameters()])
    with seeded(2):
        train(still, images(), still.config.train)
    for a, b in zip(still.parameters(), before, strict=True):
        torch.testing.assert_close(a, b)


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
        ({"momentum": -0.1}, "momentum must be at least 0 and below 1; got -0.1"),
        ({"predictor_rate": 0.0}, "predictor_rate must be above 0; got 0.0"),
        ({"dim": 1}, "dim must be at least 2; got 1"),
        ({"hidden": 0}, "hidden must be at least 1; got 0"),
        ({"starts": 0}, "starts must be at least 1; got 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_the_released_settings():
    paper = recipes.paper
    assert (paper.encoder, paper.stem, paper.hidden, paper.dim) == ("resnet18", "small", 4096, 256)
    assert (paper.momentum, paper.rises, paper.predictor_rate) == (0.996, True, 10.0)
    assert paper.starts == 10
    v, t = paper.view, paper.train
    assert (v.scale, v.flip, v.jitter, v.jitter_prob) == ((0.08, 1), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8)
    assert (v.gray, v.blur, v.solarize) == (0.2, 0.0, 0.0)
    assert (t.epochs, t.batch_size, t.optimizer, t.momentum) == (1000, 512, "sgd", 0.9)
    assert (t.lr, t.weight_decay, t.schedule, t.warmup_epochs) == (0.1, 5e-4, "cosine", 50)
    ends = 0.1 * (1 + math.cos(math.pi * 950 / 1000)) / 2  # its cosine begins with the warm-up
    assert t.final_lr == pytest.approx(ends, rel=0.03)
