"""NNM by hand, by loop, on shapes that do not fit, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.neighbors import mine
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import nnm as method
from dcl.methods import scan, simclr
from dcl.methods.nnm import NNM, Config, fit, nnm_loss
from dcl.recipes import nnm as recipes
from dcl.train import extract, predict, seeded
from dcl.views import SCAN_STRONG, View

UNDRAWN = {"n_neighbors": 1}  # of a step: see tests/test_together.py
TINY = Config(n_clusters=3, heads=2, n_neighbors=2, view=View(), train=TrainConfig(2, 4))
WEIGHED = replace(TINY, entropy_weight=3.0, contrast_weight=0.7, global_weight=0.4)


class Flat(nn.Module):
    """Mean brightness of quarters, four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def closest(z, own):
    """The number of the other row nearest to the row `own`."""
    return min((j for j in range(len(z)) if j != own), key=lambda j: (z[own] - z[j]).norm())


def make(config=TINY, n=9):
    with seeded(0):
        objective = NNM(images(n), config, Flat())
        objective.neighbors.copy_(torch.randint(n, (n, config.n_neighbors)))
    return objective


# -- the loss ----------------------------------------------------------------------------------


def match_by_loop(x, y, weight):
    """M(X, Y): sums over images and clusters, of probabilities."""
    total = 0.0
    for a, b in zip(x, y, strict=True):
        total = total - torch.log(sum(p * q for p, q in zip(a, b, strict=True))) / len(x)
    k = x.shape[1]
    for c in range(k):
        e = [torch.exp(cosine(x[:, c], y[:, d])) for d in range(k)]
        total = total - weight * torch.log(e[c] / sum(e)) / k
    return total


def cosine(a, b):
    if not a.any() or not b.any():
        return torch.zeros((), dtype=a.dtype)
    return sum(a * b) / (sum(a * a).sqrt() * sum(b * b).sqrt())


def by_loop(logits, near, bank, c):
    p, n, a = ([row.exp() / row.exp().sum() for row in part] for part in logits)
    x, y = [*p], [*n]
    if c.local:
        x, y = x + a, y + [p[j] for j in near.tolist()]
    total = match_by_loop(torch.stack(x), torch.stack(y), c.contrast_weight)
    for k in range(logits.shape[2]):
        mass = sum(row[k] for row in x) / len(x)
        total = total + (c.entropy_weight * mass * torch.log(mass) if mass > 0 else 0)
    if bank is not None:
        rows = [row.exp() for row in bank]
        s, g = torch.stack(x + y), torch.stack(rows * ((len(x) + len(y)) // len(rows)))
        total = total + c.global_weight * match_by_loop(s, g, c.contrast_weight)
    return total


def drawn(rows, k):
    with seeded(rows + k):
        logits = 2 * torch.randn(3, rows, k, dtype=torch.float64)
        near = torch.tensor([(j + 1 + j % 2) % rows for j in range(rows)])
        return logits, near, torch.randn(rows, k, dtype=torch.float64).log_softmax(1)


def compare(logits, near, bank, config, exact=True):
    logits = logits.clone().requires_grad_()
    found = nnm_loss(logits.log_softmax(2), near, bank, config)["loss"]
    wanted = by_loop(logits, near, bank, config)
    torch.testing.assert_close(found, wanted)
    (ours,) = torch.autograd.grad(found, logits)
    assert ours.isfinite().all()
    if exact:  # the loop's gradient has 0/0 in it where a mass is zero
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, logits)[0])


@pytest.mark.parametrize("change", [{}, {"local": False}], ids=["local", "no local"])
@pytest.mark.parametrize("config", [TINY, WEIGHED], ids=["released", "weights"])
@pytest.mark.parametrize("with_bank", [True, False], ids=["bank", "no bank"])
@pytest.mark.parametrize("rows, k", [(5, 3), (7, 2), (3, 8), (1, 4)])  # odd; K larger than B
def test_loss_and_gradient_are_those_of_the_loop(rows, k, with_bank, config, change):
    logits, near, bank = drawn(rows, k)
    compare(logits, near, bank if with_bank else None, replace(config, **change))


def test_an_empty_cluster_and_a_constant_answer_are_those_of_the_loop():
    logits, near, bank = drawn(5, 3)
    compare(torch.zeros_like(logits), near, bank, WEIGHED)
    logits[..., 1] = -1000.0  # no image is in cluster 1
    compare(logits, near, bank, WEIGHED, exact=False)


def test_gradient_in_float64():
    logits, near, bank = drawn(4, 3)

    def loss(z):
        return nnm_loss(z.log_softmax(2), near, bank, WEIGHED)["loss"]

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("far", [20.0, 200.0, 2000.0, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(far):
    with seeded(0):
        logits = (far * torch.randn(3, 12, 4)).requires_grad_()
    bank = logits[0].detach().log_softmax(1).roll(1, 0)
    loss = nnm_loss(logits.log_softmax(2), torch.arange(12).roll(1), bank, TINY)["loss"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all()


def test_the_best_total_is_that_of_certain_and_even_answers():
    certain = torch.where(torch.eye(10).bool(), 0.0, -1e3).repeat(3, 1)
    near = (torch.arange(30) + 10) % 30
    least = math.log(math.e + 9) - 1
    found = nnm_loss(certain.expand(3, -1, -1), near, None, Config())
    assert found["loss"].item() == pytest.approx(least - 5 * math.log(10), abs=1e-4)  # -10.05
    found = nnm_loss(certain.expand(3, -1, -1), near, certain, Config())
    assert found["loss"].item() == pytest.approx(2 * least - 5 * math.log(10), abs=1e-4)  # -8.59
    assert found["bank"].item() == pytest.approx(least, abs=1e-4)


def test_the_bank_pulls_and_is_not_pulled():
    bank = torch.tensor([[3.0, 0.0], [0.0, 3.0]]).log_softmax(1).requires_grad_()
    logits = torch.zeros(3, 2, 2, requires_grad=True)
    only = replace(TINY, n_clusters=2, entropy_weight=0.0, local=False)
    nnm_loss(logits.log_softmax(2), torch.tensor([1, 0]), bank, only)["loss"].backward()
    assert logits.grad[0, 0, 0] < 0 < logits.grad[0, 0, 1]  # towards the bank's answer
    assert logits.grad[0, 1, 1] < 0 < logits.grad[0, 1, 0]
    assert not logits.grad[2].any()  # no second view without the local match


# -- the objective -----------------------------------------------------------------------------


def in_order(objective, x, i):
    """The seen views of a step: images, neighbours, second views."""
    seen = []
    hook = objective.encoder.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with seeded(4):
        found = objective(x, i)
    hook.remove()
    (views,) = seen  # one pass, so that BatchNorm sees all
    return found, views


def test_forward_is_the_algorithm():
    objective = make(replace(WEIGHED, view=View(translate=0.4)))
    i = torch.tensor([4, 0, 7, 2, 8])
    x = images(9)[i].float() / 255
    found, views = in_order(objective, x, i)
    assert len(views) == 15 and not torch.equal(views[:5], views[10:])
    z = objective.encoder(views)
    near = torch.tensor([closest(z[:5], b) for b in range(5)])
    each = [by_loop(head(z).view(3, 5, 3), near, None, WEIGHED) for head in objective.heads]
    torch.testing.assert_close(found["loss"], sum(each))
    assert {*found} == {"loss", "rows", "columns", "entropy"}

    objective.bank = torch.randn(9, 2, 3).log_softmax(2)
    with_bank, views = in_order(objective, x, i)
    z = objective.encoder(views)
    each = [
        by_loop(head(z).view(3, 5, 3), near, objective.bank[i, h], WEIGHED)
        for h, head in enumerate(objective.heads)
    ]
    torch.testing.assert_close(with_bank["loss"], sum(each))
    with_bank["loss"].backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in objective.parameters())


def test_the_neighbour_of_an_image_is_one_of_its_own_mined_ones():
    objective = make(n=9)
    objective.neighbors.copy_(torch.stack([(torch.arange(9) + k) % 9 for k in (3, 5)], 1))
    i = torch.tensor([1, 6, 2])
    x = images(9).float() / 255
    for _ in range(5):
        _, views = in_order(objective, x[i], i)
        for b, own in enumerate(i.tolist()):
            mined = [x[j] for j in objective.neighbors[own].tolist()]
            assert any(torch.equal(views[3 + b], y) for y in mined)
            assert torch.equal(views[b], x[own]) and torch.equal(views[6 + b], x[own])


def test_the_bank_has_the_answer_of_the_nearest_other_image_of_the_set():
    objective = make(replace(TINY, normalize=True, bank_from=1)).train()
    objective.heads[0][0].running_mean += 0.3  # of eval mode
    objective.before_epoch(0)
    assert objective.bank is None
    objective.before_epoch(1)
    x = images(9).float() / 255
    objective.eval()
    z, answers = objective.encoder(x).detach(), objective.log_proba(x).detach()
    assert objective.bank.shape == (9, 2, 3) and not objective.bank.requires_grad
    for a in range(9):
        torch.testing.assert_close(objective.bank[a], answers[closest(z, a)])
    none = make(replace(TINY, global_weight=0.0))
    none.before_epoch(3)
    assert none.bank is None


def test_losses_are_float32_under_autocast():
    objective, x, i = make(), images(6).float() / 255, torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, i), objective.predict_proba(x)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.ones(6))


def test_heads_that_know_nothing_cost_what_the_objective_says():
    objective = make()
    for head in objective.heads:
        nn.init.zeros_(head[-1].weight), nn.init.zeros_(head[-1].bias)
    found = objective(images(6).float() / 255, torch.arange(6))
    for name, chance in objective.chances().items():
        assert found[name].item() == pytest.approx(chance)


# -- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


def test_neighbours_are_mined_in_the_embedding_of_the_pretext(digits, monkeypatch):
    seen = []
    mined = method.mine
    monkeypatch.setattr(
        method, "mine", lambda z, *a, **o: seen.append((z, a, o)) or mined(z, *a, **o)
    )
    nnm = fit(digits.images, replace(recipes.smoke, n_neighbors=7))
    (z, k, _), *later = seen
    assert k == (7,) and z.shape == (160, 64)  # of SimCLR's head, not the 32 features
    torch.testing.assert_close(z.norm(dim=1), torch.ones(160))
    assert torch.equal(nnm.neighbors, mined(z, 7)) and later


def test_the_head_with_the_lowest_loss_answers(digits, monkeypatch):
    config, seen, measured = replace(recipes.smoke, heads=5), [], scan.head_losses
    monkeypatch.setattr(scan, "head_losses", lambda *a: seen.append(a[1]) or measured(*a))
    nnm = fit(digits.images, config)
    log_p = extract(nnm.log_proba, digits.images)
    near = mine(extract(nnm.encoder, digits.images), config.n_neighbors, metric="l2")
    assert torch.equal(seen[0], near)  # those of today, not the mined ones
    losses = [
        torch.stack([scan.scan_loss(p, p[j], 5.0) for j in near.T]).mean() for p in log_p.unbind(1)
    ]
    best = int(torch.stack(losses).argmin())
    assert best != 0 and torch.equal(predict(nnm, digits.images), log_p[:, best].argmax(1))


def test_a_given_pretext_is_copied_and_a_network_is_mined_in_its_features(digits):
    config = recipes.smoke
    pretext = simclr.fit(digits.images, replace(config.pretext, seed=config.seed))
    before = {k: v.clone() for k, v in pretext.state_dict().items()}
    a, b = fit(digits.images, config, encoder=pretext), fit(digits.images, config)
    assert all(torch.equal(v, before[k]) for k, v in pretext.state_dict().items())
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    own = fit(digits.images, config, encoder=pretext.encoder)
    z = extract(pretext.encoder, digits.images)
    assert torch.equal(own.neighbors, mine(z, config.n_neighbors))


@pytest.mark.parametrize("change", [{"global_weight": 0.0}, {"bank_from": 9}, {"local": False}])
def test_parts_can_be_left_out(digits, change):
    config, rows = replace(recipes.smoke, **change), []
    nnm = fit(digits.images, config, monitor=lambda s, e, o, losses: rows.append({*losses}))
    last = {"loss", "rows", "columns", "entropy"} | ({"bank"} if "local" in change else set())
    assert rows[-1] - {"positive"} == last and (nnm.bank is None) == ("local" not in change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"n_neighbors": 0}, "n_neighbors must be at least 1"),
        ({"contrast_weight": -1.0}, "contrast_weight must be at least 0; got -1.0"),
        ({"global_weight": -1.0}, "global_weight must be at least 0; got -1.0"),
        ({"bank_from": -1}, "bank_from must be at least 0; got -1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_too_many_neighbours_are_refused_before_training(digits):
    with pytest.raises(ValueError, match="n_neighbors must be at most 159 for 160 images; got 160"):
        fit(digits.images, replace(recipes.smoke, n_neighbors=160), monitor=1 / 1)


def test_the_released_settings():
    paper = recipes.paper
    assert (paper.n_neighbors, paper.heads, paper.normalize, paper.local) == (20, 3, False, True)
    assert (paper.entropy_weight, paper.contrast_weight, paper.global_weight) == (5, 1, 1)
    assert paper.bank_from == 1 and paper.view == SCAN_STRONG and paper.pretext == simclr.Config()
    t = paper.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr) == (100, 200, "adam", 1e-4)
    assert (t.schedule, t.weight_decay) == ("constant", 1e-4)
