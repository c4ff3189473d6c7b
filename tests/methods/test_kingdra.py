"""Kingdra by hand, by loop, on shapes that do not fit, and what its votes promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dcl.cluster.agreement import shared_numbering
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.kingdra import (
    Config,
    Kingdra,
    consistency_loss,
    fit,
    information_loss,
    label_loss,
)
from dcl.recipes import kingdra as recipes
from dcl.recipes import recipe
from dcl.train import extract, predict, seeded

UNDRAWN = {"noise": 0.0}  # of a step: see tests/test_together.py
TINY = Config(
    n_clusters=3,
    models=2,
    dims=(6,),
    noise=0.0,
    reconstruction=(2.0, 0.5, 0.3),
    information=0.7,
    balance=3.0,
    consistency=0.6,
    sure=0.0,
    high=1,
    begin=1,
    interval=2,
    train=TrainConfig(3, 4),
)
SHAPES = [(5, 2, 3), (7, 1, 2), (3, 4, 8), (1, 2, 4)]  # odd batches; K larger than B; one image


def drawn(b, m, k, scale=2.0):
    with seeded(b + m + k):
        return scale * torch.randn(b, m, k, dtype=torch.float64)


def softmax(row):
    e = [torch.exp(v) for v in row]
    return [v / sum(e) for v in e]


def entropy(p):
    return -sum(v * torch.log(v) for v in p)


# -- the losses --------------------------------------------------------------------------------


def information_by_loop(z, m, balance):
    p = [softmax(row[m]) for row in z]
    mean = [sum(column) / len(p) for column in zip(*p, strict=True)]
    return sum(entropy(row) for row in p) / len(p) - balance * entropy(mean)


def consistency_by_loop(z, noisy, m):
    total = 0.0
    for a, b in zip(z.detach(), noisy, strict=True):
        p, q = softmax(a[m]), softmax(b[m])
        total = total + sum(u * torch.log(u / v) for u, v in zip(p, q, strict=True)) / len(z)
    return total


def labels_by_loop(z, m, labels, weights):
    total = 0.0
    for row, y, w in zip(z, labels.tolist(), weights.tolist(), strict=True):
        total = total - w * torch.log(softmax(row[m])[y]) / len(z)
    return total


def same(ours, loop, *at):
    """Values, and gradients with weights that differ from network to network."""
    torch.testing.assert_close(ours, loop)
    w = torch.arange(1.0, len(ours) + 1, dtype=ours.dtype)
    found = torch.autograd.grad((w * ours).sum(), at, allow_unused=True)
    wanted = torch.autograd.grad((w * loop).sum(), at, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("b, m, k", SHAPES)
def test_losses_are_those_of_the_loops(b, m, k):
    z, noisy = drawn(b, m, k).requires_grad_(), drawn(b, m, k).flip(0).requires_grad_()

    def p():
        return z.log_softmax(2)

    def q():
        return noisy.log_softmax(2)

    loop = torch.stack([information_by_loop(z, n, 3.0) for n in range(m)])
    same(information_loss(p(), 3.0), loop, z)
    loop = torch.stack([consistency_by_loop(z, noisy, n) for n in range(m)])
    same(consistency_loss(p(), q()), loop, z, noisy)
    labels, weights = torch.arange(b) % k, torch.tensor([0.0, 1.5, 0.4]).double().repeat(3)[:b]
    loop = torch.stack([labels_by_loop(noisy, n, labels, weights) for n in range(m)])
    same(label_loss(q(), labels, weights), loop, noisy)


def test_gradient_in_float64():
    z = drawn(4, 2, 3).requires_grad_()
    y, w = torch.tensor([0, 2, 1, 1]), torch.tensor([1.0, 0, 2, 1]).double()

    target = z.detach().roll(1, 0).log_softmax(2)

    def losses(x):
        p = x.log_softmax(2)
        return information_loss(p, 4.0), consistency_loss(target, p), label_loss(p, y, w)

    assert torch.autograd.gradcheck(losses, z)


def test_information_between_uniform_and_certain_answers():
    k = 10
    flat = torch.full((20, 1, k), -math.log(k))
    certain = torch.where(torch.eye(k).bool(), 0.0, -1e4).repeat(2, 1)[:, None]
    one = torch.where(torch.arange(k) == 3, 0.0, -1e4).expand(20, 1, k)
    assert information_loss(flat, 4.0).item() == pytest.approx(-3 * math.log(k), rel=1e-5)
    assert information_loss(certain, 4.0).item() == pytest.approx(-4 * math.log(k), rel=1e-5)
    assert information_loss(one, 4.0).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("far", [20.0, 200.0, 1e5, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(far):
    z = drawn(8, 2, 5, far).float().requires_grad_()
    p = z.log_softmax(2)
    q = p.roll(1, 0)
    loss = information_loss(p, 4.0) + label_loss(p, torch.arange(8) % 5, torch.ones(8))
    loss = loss + consistency_loss(q.clamp(min=-1e30), p)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.isfinite().all() and gradient.isfinite().all()


# -- the objective -----------------------------------------------------------------------------


def vectors(n=24, d=4):
    with seeded(5):
        middle = 6 * torch.eye(4)[:3, :d]
        return middle[torch.arange(n) % 3] + 0.3 * torch.randn(n, d)


def make(config=TINY, x=None):
    x = vectors() if x is None else x
    with seeded(0):
        return Kingdra(x, config)


def test_forward_is_the_weighted_sum_over_networks():
    objective = make()
    net, x, i = objective.encoder, vectors(), torch.tensor([4, 0, 7, 2, 8])
    objective.labels[i] = torch.tensor([1, 2, 0, 0, 1])
    objective.weights[i] = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    found = objective(x[i], i)
    clean = net.encode(x[i])
    p, c = clean[-1].log_softmax(2), TINY
    terms = {
        "ladder": net.error(clean, clean, c.reconstruction),
        "information": 2 * information_loss(p, c.balance),
        "consistency": consistency_loss(p, p),
        "labels": label_loss(p, objective.labels[i], objective.weights[i]),
    }
    weights = (1.0, c.information, c.consistency, 1.0)
    total = sum(w * t.sum() for w, t in zip(weights, terms.values(), strict=True))
    torch.testing.assert_close(found["loss"], total)
    for name, term in terms.items():
        torch.testing.assert_close(found[name], term.mean())
    found["loss"].backward()
    assert all(g.grad is not None for g in objective.parameters() if g.requires_grad)


def test_labels_are_for_the_noisy_answers_and_consistency_pulls_them_only():
    objective = make(replace(TINY, noise=1.0, information=0.0, reconstruction=(0.0,) * 3))
    net, x, i = objective.encoder, vectors(), torch.arange(6)
    objective.weights.fill_(1.0)
    seen = {}
    encode = net.encode

    def watch(x, noisy=False):
        seen[noisy] = encode(x, noisy)
        seen[noisy][-1].retain_grad()
        return seen[noisy]

    net.encode = watch
    found = objective(x[i], i)
    found["loss"].backward()
    assert not seen[False][-1].grad.any()
    assert not torch.equal(seen[False][-1], seen[True][-1])
    q = seen[True][-1].log_softmax(2)
    torch.testing.assert_close(
        found["labels"], label_loss(q, objective.labels[i], objective.weights[i]).mean()
    )
    p = seen[False][-1].log_softmax(2)
    torch.testing.assert_close(found["consistency"], consistency_loss(p, q).mean())
    assert seen[True][-1].grad.any()


class Answers(Kingdra):
    """Networks that answer what a table says of the image, which is its number."""

    def members(self, x):
        return self.table[x[:, 0].long()]


def told(labelings, config, sure=None):
    """An objective whose networks give these labels (M,N), the first in `sure` with certainty."""
    m, n = labelings.shape
    objective = Answers(torch.arange(n).float()[:, None], replace(config, models=m, high=m - 1))
    p = torch.nn.functional.one_hot(labelings.T, config.n_clusters).float()
    certain = torch.ones(n, m)
    if sure is not None:
        certain[~sure, 0] = 0.6
    flat = torch.full_like(p, 1 / config.n_clusters)
    objective.table = torch.lerp(flat, p, certain[:, :, None])
    return objective


LAST = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
MOVED = torch.tensor([2, 2, 2, 1, 0, 0, 0, 1, 1, 1, 1, 1])  # and image 3 elsewhere


def test_a_vote_labels_the_groups_as_the_last_network_numbers_them():
    objective = told(torch.stack([MOVED, LAST]), TINY)
    objective.before_epoch(1)
    inside = objective.weights > 0
    assert inside.tolist() == [True] * 3 + [False] + [True] * 8
    assert torch.equal(objective.labels[inside], LAST[inside])
    wanted = [12 / (3 * {0: 3, 1: 3, 2: 5}[int(y)]) for y in LAST[inside]]
    assert objective.weights[inside].tolist() == pytest.approx(wanted)
    assert objective.weights.mean() == pytest.approx(1)
    assert objective.numbering.tolist() == [[1, 2, 0], [0, 1, 2]]


def test_votes_come_when_they_are_due():
    objective = told(torch.stack([MOVED, LAST]), TINY)  # begin 1, interval 2
    seen = []
    for epoch in range(6):
        objective.weights.zero_()
        objective.before_epoch(epoch)
        seen.append(bool(objective.weights.any()))
    assert seen == [False, True, False, True, False, True]


def test_groups_begin_with_sure_images_and_fewer_than_k_leave_the_labels_of_before():
    first = torch.stack([MOVED, LAST])
    config = replace(TINY, sure=0.8, low=0)  # 0: the image that they disagree on leaves, too
    objective = told(first, config)
    objective.before_epoch(1)
    before = objective.labels.clone(), objective.weights.clone()
    later = told(first, config, sure=LAST < 2)  # none of the third group is
    later.labels.copy_(before[0])
    later.weights.copy_(before[1])
    later.numbering.zero_()
    later.before_epoch(1)
    assert torch.equal(later.labels, before[0]) and torch.equal(later.weights, before[1])
    assert later.numbering.tolist() == [[1, 2, 0], [0, 1, 2]]  # is measured all the same
    never = told(first, config, sure=LAST < 2)
    never.before_epoch(1)
    assert not never.weights.any()


def test_the_mean_is_taken_in_shared_numbers():
    objective = told(torch.stack([MOVED, LAST]), TINY)
    x = torch.arange(12).float()[:, None]
    objective.numbering.copy_(shared_numbering(torch.stack([MOVED, LAST]), 3))
    p = objective.predict_proba(x)
    assert torch.equal(p[LAST == 0][:3].argmax(1), torch.tensor([0, 0, 0]))
    assert p[0].tolist() == [1, 0, 0] and p[3].tolist() == [0.5, 0, 0.5]
    z = objective.embed(x)
    assert z.shape == (12, 6)
    votes = (MOVED[:, None] == MOVED).float() + (LAST[:, None] == LAST).float()
    torch.testing.assert_close(z @ z.T, votes)
    assert objective.table.mean(1)[0].tolist() == [0.5, 0, 0.5]  # as they are: torn


def test_an_encoder_gives_the_inputs_and_stays_as_it_is():
    class Half(nn.Module):
        out_dim = 2

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x[:, :2] * self.scale

    found = fit(vectors(), TINY, encoder=Half())
    assert torch.equal(found.encoder.inputs[0].scale, torch.ones(2))
    some = found.encoder.inputs(vectors())
    assert some.shape == (24, 2) and some.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert found.encoder.up[0].shape == (2, 2, 6)


def test_images_are_seen_as_they_are_vectors_with_a_mean_square_of_one():
    images = load("digits").subset(50).images
    x = images.float() / 255
    assert torch.equal(make(x=images).encoder.inputs(x), x.flatten(1))
    assert make(x=7 * vectors()).encoder.inputs(vectors()).square().mean().item() < 0.1
    seen = make(x=7 * vectors()).encoder.inputs(7 * vectors())
    assert seen.square().mean().item() == pytest.approx(1, rel=1e-4)
    seen = make(replace(TINY, scale=5.0), images).encoder.inputs(x)
    torch.testing.assert_close(seen, 5 * x.flatten(1))


def test_fit_ends_with_the_numbering_of_the_last_network():
    images = load("digits").subset(200).images
    found = fit(images, replace(recipe("kingdra", "smoke"), train=TrainConfig(1, 64, "adam", 5e-3)))
    labelings = extract(found.members, images).argmax(2).T
    assert torch.equal(found.numbering, shared_numbering(labelings, 10))
    assert not torch.equal(found.numbering[0], found.numbering[2])  # there was no vote
    both = torch.stack([found.numbering[m][labelings[m]] for m in range(3)])
    one = torch.nn.functional.one_hot(both, 10).sum(0)
    clear = one.amax(1) == 3
    assert torch.equal(predict(found, images)[clear], both[0][clear])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"high": 2}, "high must be from low to models - 1; got 2"),
        ({"high": 0}, "high must be from low to models - 1; got 0"),
        ({"reconstruction": (1.0, 1.0)}, r"reconstruction must be 3 weights; got \(1.0, 1.0\)"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"begin": 0}, "begin must be at least 1"),
        ({"interval": 0}, "interval must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_recipes_can_be_unanimous():
    for config in vars(recipes).values():
        if isinstance(config, Config):
            assert config.high == config.models - 1
