"""TURTLE by hand, by loop, by PyTorch's own Adam, and what its steps hand on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.turtle import Config, Turtle, fit, fit_linear, turtle_loss
from dcl.nets.convnets import identity
from dcl.train import predict, seeded

SHAPES = [(5, 1, 4), (1, 2, 3), (3, 3, 8), (7, 2, 2)]  # rows, spaces, K: one row; K above B
TINY = Config(
    n_clusters=3, inner_steps=4, inner_lr=0.05, steps=5, train=TrainConfig(3, 8, "adam", 0.05)
)


def drawn(*shape, scale=2.0):
    with seeded(sum(shape)):
        return scale * torch.randn(*shape, dtype=torch.float64)


def blobs(n=48, d=6):
    with seeded(5):
        middle = 6 * torch.eye(d)[:3]
        return middle[torch.arange(n) % 3] + 0.3 * torch.randn(n, d)


# -- the loss ----------------------------------------------------------------------------------


def by_loop(p, log_q, weight):
    """Of (B,S,K): row by row, space by space, cluster by cluster."""
    b, s, k = p.shape
    total = 0.0
    for j in range(s):
        for row in range(b):
            tau = [sum(p[row, other, c] for other in range(s)) / s for c in range(k)]
            total = total - sum(tau[c] * log_q[row, j, c].detach() for c in range(k)) / b
        mean = [sum(p[row, j, c] for row in range(b)) / b for c in range(k)]
        total = total + weight * sum(m * torch.log(m) for m in mean)
    return total


@pytest.mark.parametrize("b, s, k", SHAPES)
def test_loss_and_gradient_are_those_of_the_loop(b, s, k):
    y, x = drawn(b, s, k).requires_grad_(), drawn(b, s, k).flip(0).requires_grad_()
    ours = turtle_loss(y.softmax(2), x.log_softmax(2), 3.0)
    loop = by_loop(y.softmax(2), x.log_softmax(2), 3.0)
    torch.testing.assert_close(ours["loss"], loop)
    found = torch.autograd.grad(ours["loss"], (y, x), allow_unused=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(loop, y)[0])
    assert found[1] is None  # a classifier is a constant
    wanted = s * (ours["cross_entropy"] - 3 * ours["entropy"])
    torch.testing.assert_close(ours["loss"], wanted)


def test_small_values():
    p = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]], dtype=torch.float64)
    q = torch.tensor([[[0.6, 0.4]], [[0.4, 0.6]]], dtype=torch.float64)
    found = turtle_loss(p, q.log())
    assert found["cross_entropy"].item() == pytest.approx(0.591919, abs=1e-6)
    assert found["entropy"].item() == pytest.approx(math.log(2))
    assert found["loss"].item() == pytest.approx(-6.339553, abs=1e-6)


@pytest.mark.parametrize("far", [20.0, 1e4, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(far):
    x = drawn(8, 2, 5, scale=far).float().requires_grad_()
    loss = turtle_loss(x.softmax(2), drawn(8, 2, 5).float().log_softmax(2))["loss"]
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and gradient.isfinite().all()
    one = torch.zeros(4, 1, 3).index_fill_(2, torch.tensor(1), 1e4).requires_grad_()
    loss = turtle_loss(one.softmax(2), one.detach().log_softmax(2))["loss"]  # empty clusters
    assert loss.isfinite() and torch.autograd.grad(loss, one)[0].isfinite().all()


# -- the classifiers ---------------------------------------------------------------------------


def by_torch(z, labels, weight, steps, lr):
    w = weight.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(z @ w.T, labels).backward()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("b, d, k", [(7, 4, 3), (2, 9, 5), (1, 2, 2)])
def test_a_classifier_is_fitted_as_by_adam(b, d, k):
    z, labels = F.pad(drawn(b, d), (0, 1), value=1.0), drawn(b, k).softmax(1)
    state = torch.zeros(3, k, d + 1, dtype=torch.float64)
    state[0] = drawn(k, d + 1, scale=0.5)
    before = state.clone()
    first = fit_linear(z, labels, state, 1, 0.01, 0)
    assert torch.equal(state, before) and not first.requires_grad
    torch.testing.assert_close((first - state)[0].abs(), torch.full((k, d + 1), 0.01).double())
    found = fit_linear(z, labels, state, 6, 0.01, 0)
    torch.testing.assert_close(found[0], by_torch(z, labels, state[0], 6, 0.01))
    on = fit_linear(z, labels, fit_linear(z, labels, state, 4, 0.01, 0), 2, 0.01, 4)
    torch.testing.assert_close(on, found)


# -- an outer step -----------------------------------------------------------------------------


def make(config=TINY, x=None, widths=()):
    x = blobs() if x is None else x
    encoder = identity(x.shape[1])
    encoder.widths = widths
    with seeded(0):
        turtle = Turtle(encoder, config)
        turtle.measure(x)
        turtle.before_epoch(0)
    return turtle


@pytest.mark.parametrize("widths", [(6,), (2, 4), (1, 3, 2)])
def test_a_step_labels_by_all_spaces_and_fits_in_each(widths):
    turtle, x = make(widths=widths), blobs()[:7]
    turtle.step = 7  # the third of the second epoch
    found = turtle(x, torch.arange(7))
    z = (x - turtle.mean) / turtle.scale
    p, logits = [], []
    for task, one in zip(turtle.tasks, z.split(widths, 1), strict=True):
        v, g = task.parametrizations.weight.original1, task.parametrizations.weight.original0
        p.append((one @ (g * v / v.norm(dim=1, keepdim=True)).T + task.bias).softmax(1))
    tau = sum(p) / len(p)
    starts = turtle.starts[2].split([w + 1 for w in widths], 1)
    for one, start in zip(z.split(widths, 1), starts, strict=True):
        one = torch.cat([one, torch.ones(7, 1)], 1)
        logits.append(one @ by_torch(one, tau.detach(), start, 4, 0.05).T)
    wanted = turtle_loss(torch.stack(p, 1), torch.stack(logits, 1).log_softmax(2))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(turtle.predict_proba(x), tau)
    found["loss"].backward()
    assert all(q.grad.any() for q in turtle.tasks.parameters())


def test_cold_classifiers_are_new_in_every_step_warm_ones_go_on():
    x, i = blobs()[:8], torch.arange(8)
    cold, warm = make(), make(replace(TINY, warm_start=True))
    cold(x, i)
    warm(x, i)
    assert torch.equal(cold.fitted, warm.fitted)  # the first are drawn
    first = cold.fitted.clone()
    cold.step = warm.step = 1
    cold(x, i)
    warm(x, i)
    z = F.pad((x - warm.mean) / warm.scale, (0, 1), value=1.0)
    tau = warm.predict_proba(x).detach()
    torch.testing.assert_close(warm.fitted, fit_linear(z, tau, first, 4, 0.05, 4))
    new = torch.zeros_like(first)
    new[0] = cold.starts[1]
    torch.testing.assert_close(cold.fitted, fit_linear(z, tau, new, 4, 0.05, 0))


def test_starts_are_those_of_pytorch_and_differ():
    turtle = make(replace(TINY, n_clusters=10, steps=50), torch.randn(20, 104), widths=(4, 100))
    assert turtle.starts.unique().numel() > 0.99 * turtle.starts.numel()
    small, large = turtle.starts.split([5, 101], 2)
    assert 0.49 < small.amax() <= 0.5 and 0.099 < large.amax() <= 0.1
    assert small.amin() < -0.49 and abs(small.mean()) < 0.03
    before = turtle.starts.clone()
    turtle.before_epoch(1)
    assert not (turtle.starts == before).any()


def test_an_epoch_has_as_many_batches_as_it_says_whatever_the_set():
    turtle = make()
    for n in (8, 9, 100):
        rows = turtle.order(n)
        assert len(rows) == turtle.length(n) == 5 * 8
        batches = rows.view(5, 8)
        assert all(len(batch.unique()) == 8 for batch in batches)
        assert rows.max() < n
    assert len(rows.unique()) > 20  # each from all images


# -- features ----------------------------------------------------------------------------------


def test_features_are_centred_and_a_space_has_one_scale():
    x = torch.cat([100 + blobs() * torch.tensor([1, 2, 3, 4, 5, 6]), 1e-3 * blobs(d=4)], 1)
    turtle = make(x=x, widths=(6, 4))
    first, second = turtle.parts(x)
    for z in (first, second):
        assert z.mean(0).abs().max() < 1e-4
        assert z.square().mean().item() == pytest.approx(1, rel=1e-3)
    ratio = first.std(0) / x[:, :6].std(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(6), rtol=1e-3, atol=0)  # not whitened
    assert make(x=torch.ones(9, 6)).predict_proba(torch.ones(2, 6)).isfinite().all()


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_unit_of_the_features_does_not_matter(factor):
    x, config = blobs(), replace(TINY, train=TrainConfig(20, 16, "adam", 0.05))
    assert torch.equal(predict(fit(x, config), x), predict(fit(factor * x, config), factor * x))


def test_spaces_are_those_of_the_settings_or_of_the_encoder_or_one():
    assert make().spaces == (6,)
    assert make(widths=(2, 4)).spaces == (2, 4)
    assert make(replace(TINY, spaces=(5, 1)), widths=(2, 4)).spaces == (5, 1)
    for wrong in ((2, 3), (7, -1)):
        with pytest.raises(ValueError, match="spaces must be parts of the 6 features; got"):
            make(replace(TINY, spaces=wrong))


class Means(nn.Module):
    """Two spaces of an image: the means of its rows and of its columns."""

    out_dim, widths = 32, (16, 16)

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x):
        return self.norm(torch.cat([x.mean((1, 2)), x.mean((1, 3))], 1))


def test_an_encoder_is_used_as_it_is_and_belongs_to_what_is_found():
    images, encoder = load("digits").subset(60).images, Means().eval()
    found = fit(images, replace(TINY, train=TrainConfig(2, 20, "adam", 0.05)), encoder=encoder)
    assert found.spaces == (16, 16) and not found.training
    assert not any(p.requires_grad for p in found.encoder.parameters())
    for name, value in encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value)
    x = images.float() / 255
    z = encoder(x).detach()
    torch.testing.assert_close(found.mean, z.mean(0))
    alone = fit(z, replace(found.config, spaces=(16, 16)))  # vectors: the same
    assert torch.equal(predict(alone, z), predict(found, images))


def test_a_warm_start_goes_on_after_an_interruption(tmp_path):
    x, config = blobs(), replace(TINY, warm_start=True)

    def stop(stage, epoch, objective, losses):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(x, config, monitor=stop, run_dir=tmp_path)
    resumed, whole = fit(x, config, run_dir=tmp_path).state_dict(), fit(x, config).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "name, value", [("inner_steps", 0), ("inner_lr", -1.0), ("entropy_weight", -1.0), ("steps", 0)]
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        replace(TINY, **{name: value})
