"""TEMI by hand, by loop, by PyTorch's own layers, and what its steps hand on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import temi as method
from dcl.methods.temi import Config, CosineHeads, Temi, beta_pmi, fit, pair_weight, temi_loss
from dcl.optim import make_optimizer
from dcl.recipes import temi as recipes
from dcl.train import extract, predict, seeded

UNDRAWN = {"n_neighbors": 1}  # of a step: see tests/test_together.py
SHAPES = [(5, 3, 4), (1, 2, 3), (3, 1, 8), (7, 4, 2)]  # pairs, heads, K: odd; one pair; K above B
TINY = Config(n_clusters=3, n_neighbors=2, heads=4, hidden=6, dim=5, ema_decay=0.75,
              marginal_decay=0.6, train=TrainConfig(2, 8, "adam", 1e-2))  # fmt: skip


def drawn(*shape, scale=2.0):
    with seeded(sum(shape)):
        return scale * torch.randn(*shape, dtype=torch.float64)


# -- the loss ----------------------------------------------------------------------------------


def by_loop(student, teacher, marginal, beta):
    """Of logits (2,B,H,K): pair by pair, head by head, from probabilities."""
    s, t = student.softmax(3), teacher.detach().softmax(3)
    _, pairs, heads, k = s.shape
    total = [0.0] * heads
    for b in range(pairs):
        weight = sum(float(t[0, b, h] @ t[1, b, h]) for h in range(heads)) / heads
        for h in range(heads):
            for own, other in ((1, 0), (0, 1)):
                inner = sum(
                    (s[own, b, h, c] * float(t[other, b, h, c])) ** beta / marginal[h, c]
                    for c in range(k)
                )
                total[h] = total[h] - weight * torch.log(inner) / (2 * pairs)
    return torch.stack(total)


@pytest.mark.parametrize("beta", [0.6, 1.0])
@pytest.mark.parametrize("b, h, k", SHAPES)
def test_loss_and_gradient_are_those_of_the_loop(b, h, k, beta):
    student, teacher = (drawn(2, b, h, k).flip(d).requires_grad_() for d in (0, 1))
    marginal = drawn(h, k).softmax(1)
    ours = temi_loss(student.log_softmax(3), teacher.log_softmax(3), marginal, beta)
    loop = by_loop(student, teacher, marginal, beta)
    torch.testing.assert_close(ours, loop)
    w = torch.arange(1.0, h + 1).double()
    found = torch.autograd.grad((w * ours).sum(), (student, teacher), allow_unused=True)
    torch.testing.assert_close(found[0], torch.autograd.grad((w * loop).sum(), student)[0])
    assert found[1] is None  # neither the answers nor the weights of the teacher learn


def test_gradient_in_float64():
    student, teacher = drawn(2, 4, 2, 3).requires_grad_(), drawn(2, 4, 2, 3).log_softmax(3)
    marginal = drawn(2, 3).softmax(1)
    assert torch.autograd.gradcheck(
        lambda z: temi_loss(z.log_softmax(3), teacher, marginal), student
    )


@pytest.mark.parametrize(
    "p, q, marginal, beta, minus_score, weight",
    [
        ((1, 0), (1, 0), (0.5, 0.5), 1.0, -math.log(2), 1.0),
        ((1, 0), (1, 0), (0.5, 0.5), 0.6, -math.log(2), 1.0),
        ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), 1.0, 0.0, 0.5),
        ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), 0.6, -0.554518, 0.5),
        ((0.9, 0.1), (0.8, 0.2), (0.6, 0.4), 0.6, -0.474742, 0.74),
    ],
)
def test_small_numbers(p, q, marginal, beta, minus_score, weight):
    p, q, marginal = (torch.tensor(x).double() for x in (p, q, marginal))
    score = beta_pmi(p.log(), q.log(), marginal.log(), beta)
    assert pair_weight(p.log()[None, None], q.log()[None, None]).item() == pytest.approx(weight)
    # both images have the student's answer p and the teacher's q, so the weight is another
    pairs = (x.log().expand(2, 3, 1, 2) for x in (p, q))
    ours = temi_loss(*pairs, marginal[None], beta).item()
    assert ours == pytest.approx(-float(q @ q) * score.item(), abs=1e-12)
    assert -score.item() == pytest.approx(minus_score, abs=2e-6)


def test_certain_answers_pay_above_a_half_and_rare_clusters_pay_more():
    k, even = 10, torch.full((10,), -math.log(10))
    certain = torch.where(torch.arange(k) == 3, 0.0, -1e4)
    for beta in (0.5, 0.6, 1.0):
        flat = beta_pmi(even, even, even, beta).item()
        assert flat == pytest.approx((2 - 2 * beta) * math.log(k), abs=1e-5)
        assert beta_pmi(certain, certain, even, beta).item() == pytest.approx(math.log(k))
    rare = even.clone()
    rare[3] -= 2.0
    assert beta_pmi(certain, certain, rare, 0.6).item() == pytest.approx(math.log(k) + 2)


@pytest.mark.parametrize("far", [20.0, 1e3, 1e5, 1e30])
def test_answers_that_disagree_completely_still_give_a_finite_loss_and_gradient(far):
    z = drawn(2, 6, 2, 4, scale=far).float().requires_grad_()
    log_p = z.log_softmax(3)
    loss = temi_loss(log_p, log_p.roll(1, 3), torch.full((2, 4), 1e-12))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.isfinite().all() and gradient.isfinite().all()


# -- the heads ---------------------------------------------------------------------------------


def own_layers(heads, h):
    """Head h of PyTorch's own layers."""
    d, a = heads.first[h].shape
    b, k = heads.last[h].shape
    first, second, last = nn.Linear(d, a), nn.Linear(a, b), weight_norm(nn.Linear(b, k, bias=False))
    with torch.no_grad():
        first.weight.copy_(heads.first[h].T), first.bias.copy_(heads.shift[0][h, 0])
        second.weight.copy_(heads.second[h].T), second.bias.copy_(heads.shift[1][h, 0])
        last.parametrizations.weight.original0.copy_(heads.scale[h, 0, :, None])
        last.parametrizations.weight.original1.copy_(heads.last[h].T)
    return lambda z: last(F.normalize(second(F.gelu(first(z))), dim=1)) / 0.1


@pytest.mark.parametrize("standardize", [False, True])
def test_heads_side_by_side_are_those_of_pytorch_one_by_one(standardize):
    z = drawn(9, 7).float() + 3
    with seeded(1):
        heads = CosineHeads(z, replace(TINY, standardize=standardize))
        for p in heads.parameters():
            p.data += 0.3 * torch.randn_like(p)
    seen = (z - z.mean(0)) / z.std(0) if standardize else z
    wanted = torch.stack([own_layers(heads, h)(seen) for h in range(4)], 1)
    assert wanted.shape == (9, 4, 3)
    torch.testing.assert_close(heads(z), wanted)


def test_heads_begin_as_released():
    with seeded(0):
        heads = CosineHeads(torch.zeros(2, 64), replace(TINY, hidden=512, dim=256, n_clusters=10))
    for weight in (heads.first, heads.second):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not torch.equal(weight[0], weight[1])
    assert not any(b.any() for b in heads.shift) and (heads.scale == 1).all()
    # PyTorch's linear layer of 256 draws from -1/16..1/16; the length is the step size's unit
    assert heads.last.abs().max() <= 1 / 16 and heads.last.std().item() == pytest.approx(
        1 / 16 / math.sqrt(3), rel=0.02
    )
    z = torch.randn(50, 64)
    assert heads(z).abs().max() <= 10 + 1e-4  # cosines over the temperature


# -- a step ------------------------------------------------------------------------------------


def make(config=TINY, n=24, d=4):
    z, neighbors = drawn(n, d).float(), torch.arange(2 * n).view(n, 2) % n
    with seeded(0):
        temi = Temi(z, neighbors, config)
        for p in temi.teacher.parameters():  # another network than the student
            p.data += 0.1 * torch.randn_like(p)
    return temi, z


def test_a_step_by_hand():
    temi, z = make()
    i = torch.tensor([3, 0, 7, 11, 4])
    with seeded(1):
        j = temi.neighbors[i].gather(1, torch.randint(2, (5, 1)))[:, 0]
    logits = {name: torch.stack([net(z[i]), net(z[j])]) for name, net in
              (("student", temi.student), ("teacher", temi.teacher))}  # fmt: skip
    mean = logits["teacher"].softmax(3).mean((0, 1))
    marginal = 0.6 / 3 + 0.4 * mean  # moved before it is used
    wanted = by_loop(logits["student"], logits["teacher"], marginal, 0.6)
    with seeded(1):
        found = temi(z[i], i)
    torch.testing.assert_close(temi.marginal, marginal)
    torch.testing.assert_close(temi.losses, wanted.detach())
    torch.testing.assert_close(found["loss"], wanted.mean())
    t = logits["teacher"].softmax(3)
    torch.testing.assert_close(found["weight"], (t[0] * t[1]).sum(2).mean())
    found["loss"].backward()
    assert all(p.grad is not None for p in temi.student.parameters())
    assert all(p.grad is None for p in temi.teacher.parameters())
    with seeded(1):
        temi(z[i], i)
    assert (temi.losses - wanted.detach()).abs().min() > 0  # a sum
    temi.before_epoch(1)
    assert not temi.losses.any() and not torch.equal(temi.marginal, torch.full((4, 3), 1 / 3))


def test_teachers_follow_by_a_quarter_of_the_way():
    temi, _ = make()
    before = [p.clone() for p in temi.teacher.parameters()]
    student = [p.clone() for p in temi.student.parameters()]
    temi.after_step()
    for t, s, now in zip(before, student, temi.teacher.parameters(), strict=True):
        torch.testing.assert_close(now.data, 0.75 * t + 0.25 * s)
    assert all(torch.equal(a, b) for a, b in zip(student, temi.student.parameters()))
    names = {id(p) for group in temi.parameter_groups() for p in group["params"]}
    assert names == {id(p) for p in temi.student.parameters()}
    make_optimizer(temi.parameter_groups(), TINY.train)


# -- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors():
    with seeded(0):
        return (6 * torch.randn(3, 5))[torch.arange(60) % 3] + torch.randn(60, 5)


def test_the_teacher_of_the_head_with_the_lowest_loss_of_the_last_epoch_answers(
    vectors, monkeypatch, tmp_path
):
    seen = []
    mined = method.mine
    monkeypatch.setattr(method, "mine", lambda z, k: seen.append((z, k)) or mined(z, k))
    config, kept = replace(TINY, heads=6, standardize=True, seed=1), {}

    def look(stage, epoch, temi, losses):
        kept[epoch] = temi.losses.clone(), extract(temi.teacher, vectors), losses["loss"]

    model = fit(vectors, config, monitor=look, run_dir=tmp_path)
    ((z, k),) = seen
    assert k == 2 and torch.equal(z, vectors)
    losses, logits, mean = kept[1]
    best = losses.argmin()
    assert best not in (0, 5) and best != kept[0][0].argmin()
    assert losses.mean() / 7 == pytest.approx(mean)  # of seven steps
    torch.testing.assert_close(extract(model.predict_proba, vectors), logits[:, best].softmax(1))
    assert torch.equal(extract(model.embed, vectors), vectors)
    # all epochs are done: which head it was is in the checkpoint
    again = fit(vectors, config, monitor=look, run_dir=tmp_path)
    assert torch.equal(predict(again, vectors), predict(model, vectors))
    assert again.head[0].first.shape == (1, 5, 6)


def test_features_of_an_encoder_are_vectors_computed_once(tmp_path):
    images, calls = load("digits").subset(90).images, []

    class Own(nn.Module):
        out_dim = 64

        def forward(self, x):
            calls.append(len(x))
            return F.avg_pool2d(x, 2).flatten(1)

    config = replace(TINY, n_clusters=10)
    on_images = fit(images, config, encoder=Own(), run_dir=tmp_path)
    assert sum(calls) == 90 and list(tmp_path.glob("features-*"))
    z = extract(Own(), images)
    on_vectors = fit(z, config)
    for (name, a), (_, b) in zip(
        on_images.named_parameters(), on_vectors.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(predict(on_images, images), predict(on_vectors, z))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"beta": 0.0}, "beta must be above 0; got 0.0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1; got 1.0"),
        ({"marginal_decay": 1.5}, "marginal_decay must be at least 0 and below 1"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_too_many_neighbours_are_refused_before_training(vectors):
    config = replace(recipes.smoke, n_neighbors=60)
    with pytest.raises(ValueError, match="n_neighbors must be at most 59 for 60 vectors; got 60"):
        fit(vectors, config, monitor=1 / 1)
