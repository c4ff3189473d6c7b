"""RUC by hand, by loop, on shapes that do not fit, and what its parts promise."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.balance import surest
from dcl.cluster.mixmatch import mix
from dcl.cluster.neighbors import majority, mine
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import scan, simclr
from dcl.methods.ruc import RUC, Config, fit, ruc_loss
from dcl.nets.labelled import Labelled
from dcl.recipes import ruc as recipes
from dcl.train import extract, predict, seeded
from dcl.views import View
from smoke import same, still

UNDRAWN = {"mix": 0.0, "base": replace(still(recipes.smoke.base), n_neighbors=1)}
TINY = Config(
    n_clusters=3, n_neighbors=4, mix=0.0, weak=View(), strong=View(), train=TrainConfig(4, 4)
)


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


def make(config=TINY, n=9):
    with seeded(0):
        objective = RUC(images(n), config, Flat())
        clean = torch.arange(n) % 3 < 2
        objective.known.start(torch.randint(config.n_clusters, (n,)), clean)
        objective.known.confidence.uniform_()
    return objective


# -- the loss ----------------------------------------------------------------------------------


def softmax(row):
    return row.exp() / row.exp().sum()


def by_loop(mixed, target, strong, labels, epsilon, clean, weight):
    """Step 4, row by row; targets of logits, labels and not the smoothed targets."""
    n, k = strong.shape
    x, u, smooth = [], [], []
    for row in range(2 * n):
        p, t = softmax(mixed[row]), target[row]
        if clean[row % n]:
            x.append(-sum(t[c] * torch.log(p[c]) for c in range(k)))
        else:
            u.append(sum((p[c] - t[c]) ** 2 for c in range(k)) / k)
    for row in range(n):
        q = softmax(strong[row])
        if clean[row]:
            others = [torch.log(q[c]) for c in range(k) if c != labels[row]]
            own = (1 - epsilon) * torch.log(q[labels[row]])
            smooth.append(-own - epsilon / (k - 1) * sum(others))
    parts = [sum(part) / len(part) if part else 0 for part in (x, u, smooth)]
    return parts[0] + weight * parts[1] + parts[2]


def goal(labels, k, epsilon):
    rows = torch.full((len(labels), k), epsilon / (k - 1), dtype=torch.float64)
    rows[torch.arange(len(labels)), labels] = 1 - epsilon
    return rows


@pytest.mark.parametrize("kind", ["some", "all", "none"])
@pytest.mark.parametrize("rows, k", [(5, 3), (7, 2), (3, 8), (1, 4)])  # odd; K larger than B
def test_loss_and_gradient_are_those_of_the_loop(rows, k, kind):
    with seeded(rows + k):
        mixed = torch.randn(2 * rows, k, dtype=torch.float64, requires_grad=True)
        strong = torch.randn(rows, k, dtype=torch.float64, requires_grad=True)
        target = torch.randn(2 * rows, k, dtype=torch.float64).softmax(1)
        labels = torch.randint(k, (rows,))
    clean = {"some": torch.arange(rows) % 2 == 0, "all": torch.ones(rows).bool()}.get(
        kind, torch.zeros(rows).bool()
    )
    found = ruc_loss(mixed, target, strong, goal(labels, k, 0.4), clean, 7.0)["loss"]
    wanted = by_loop(mixed, target, strong, labels, 0.4, clean, 7.0)
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found, (mixed, strong))
    theirs = torch.autograd.grad(wanted, (mixed, strong), materialize_grads=True)
    torch.testing.assert_close(ours, theirs)
    assert all(g.isfinite().all() for g in ours)


@pytest.mark.parametrize("far", [20.0, 2000.0, 1e30])
def test_any_finite_logits_give_a_finite_loss_and_gradient(far):
    with seeded(0):
        mixed = (far * torch.randn(12, 4)).requires_grad_()
    target, g = torch.eye(4).repeat(3, 1), goal(torch.arange(6) % 4, 4, 0.5).float()
    found = ruc_loss(mixed, target, mixed[:6], g, torch.arange(6) < 3, 25.0)
    found["loss"].backward()
    assert found["loss"].isfinite() and mixed.grad.isfinite().all()


# -- who is clean ------------------------------------------------------------------------------


def test_the_surest_of_each_cluster():
    confidence = torch.tensor([0.9, 0.5, 0.9, 0.8, 0.7, 0.9, 0.1])
    labels = torch.tensor([0, 0, 0, 3, 3, 3, 5])  # 1, 2 and 4 are empty; .9 is a tie
    assert surest(confidence, labels, 0.4).tolist() == [1, 0, 0, 0, 0, 1, 1]
    assert surest(confidence, labels, 0.7).tolist() == [1, 0, 1, 1, 0, 1, 1]
    assert surest(confidence, labels, 1.0).all()
    assert surest(torch.ones(5), torch.zeros(5).long(), 0.6).tolist() == [1, 1, 1, 0, 0]


def test_the_majority_of_the_neighbours_and_the_image_itself():
    near = torch.tensor([[1, 2], [2, 3], [3, 4], [4, 0], [0, 1]])
    labels = torch.tensor([0, 2, 2, 1, 1])
    assert majority(near, labels, 4).tolist() == [2, 2, 1, 1, 0]  # the last is a tie of three
    assert majority(near[:, :0], labels, 3).tolist() == labels.tolist()


def test_sampling_by_loop():
    x = images(12)
    with seeded(1):
        labels, sure = torch.randint(3, (12,)), torch.rand(12)
    base = Labelled(Flat(), labels, sure)
    assert base.clean(x, "confidence", 0.3, 0.5, 4).tolist() == (sure >= 0.3).tolist()
    near, z = [], extract(Flat(), x)
    for a in range(12):
        order = F.cosine_similarity(z[a], z, dim=1).argsort(descending=True).tolist()
        votes = [int(labels[j]) for j in [a, *[j for j in order if j != a][:3]]]
        most = max(sorted(set(votes)), key=votes.count)
        near.append(most == labels[a])
    assert base.clean(x, "metric", 2.0, 0.5, 4).tolist() == near  # no threshold is asked
    both = [bool(s >= 0.3) and n for s, n in zip(sure, near, strict=True)]
    assert base.clean(x, "hybrid", 0.3, 0.5, 4).tolist() == both
    space = Labelled(Flat(), labels, sure, space=nn.Flatten())
    vote = majority(mine(extract(nn.Flatten(), x), 3), labels, 3)
    assert torch.equal(space.clean(x, "metric", 0, 0, 4), vote == labels)


def test_a_base_that_is_not_over_confident_gives_its_surest_and_says_so():
    labels = torch.arange(12) % 3
    base = Labelled(Flat(), labels, torch.linspace(0.3, 0.7, 12))
    with pytest.warns(UserWarning, match="only 0 of 12 images have a confidence of 0.99 or more"):
        clean = base.clean(images(12), "confidence", 0.99, 0.5, 4)
    assert clean.tolist() == [False] * 6 + [True] * 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Labelled(Flat(), labels).clean(images(12), "confidence", 0.99, 0.5, 4)


@pytest.mark.parametrize(
    ("labels", "confidence", "message"),
    [
        (torch.arange(4).float(), None, r"labels must be int64 \(N,\), 0 or more; got .*float32"),
        (torch.tensor([0, -1]), None, "labels must be .* the least -1"),
        (torch.arange(4)[:, None], None, r"labels must be int64 \(N,\).*\(4, 1\)"),
        (torch.arange(4), torch.rand(3), r"confidence must be \(4,\), numbers in 0..1; got \(3,\)"),
        (torch.arange(2), torch.tensor([0.5, 1.5]), "confidence must be .* 0.5 to 1.5"),
        (torch.arange(2), torch.tensor([0.5, math.nan]), "confidence must be"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, confidence, message):
    with pytest.raises(ValueError, match=message):
        Labelled(Flat(), labels, confidence)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(8).long(), r"labels must be \(9,\), one per image; got \(8,\)"),
        (torch.full((9,), 3), "labels must be numbers of 3 clusters, 0 to 2; got 3"),
    ],
)
def test_labels_of_another_set_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fit(images(9), TINY, encoder=Labelled(Flat(), labels), monitor=1 / 1)


# -- the objective -----------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [True, False])
@pytest.mark.parametrize("step", [0, 3, 9])  # of networks A, B, A; in epochs 0, 0, 2
def test_forward_is_the_algorithm(step, peer):
    objective = make(replace(TINY, peer=peer, guess_weight=3.0, smoothing=0.4))
    objective.step, objective.epoch = step, step // (4 if peer else 2)
    a = step // 2 % 2 if peer else 0  # two whole batches of four
    b, i = (1 - a if peer else 0), torch.tensor([4, 0, 7, 2, 5])
    x = images(9)[i].float() / 255
    answers = [objective.logits(n, x).softmax(1).detach() for n in range(1 + peer)]
    t, seen = [], objective.known.confidence[b]
    for row, j in enumerate(i.tolist()):
        w = (seen[j] - seen.min()) / (seen.max() - seen.min())
        label = F.one_hot(objective.known.labels[j], 3)
        guess = (answers[a][row] + answers[b][row]) / 2
        p = (1 - w) * label + w * answers[b][row] if objective.known.clean[j] else guess
        t.append(p**2 / (p**2).sum())
    y, time = objective.logits(a, x), objective.epoch + step % 2 / 2
    t, clean = torch.stack(t).repeat(2, 1), objective.known.clean[i].clone()
    u = 3.0 * min(max(time / 4, 0.1), 1)
    labels = objective.known.labels[i].clone()
    wanted = by_loop(y.repeat(2, 1), t, y, labels, 0.4, clean, u)
    found = objective(x, i)
    torch.testing.assert_close(found["loss"], wanted)
    found["loss"].backward()
    trained = [objective.encoder, *objective.others][a], objective.heads[a]
    assert all(p.grad.any() for part in trained for p in part.parameters())
    own = {id(p) for part in trained for p in part.parameters()}
    assert all(p.grad is None for p in objective.parameters() if id(p) not in own)
    objective.after_step()
    torch.testing.assert_close(objective.known.confidence[a, i], answers[a].max(1).values)


def test_the_views_that_each_pass_sees():
    config = replace(TINY, mix=4.0, weak=View(pad=1), strong=View(translate=0.4))
    objective, seen = make(config), []
    hook = objective.encoder.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    x, i = images(9)[:5].float() / 255, torch.arange(5)
    with seeded(2):
        objective(x, i)
    with seeded(2):
        w1, w2 = config.weak(x), config.weak(x)
        mix(torch.cat([w1, w2]), torch.zeros(10, 3), config.mix)
        strong = config.strong(x)
    hook.remove()
    plain, trained = seen
    torch.testing.assert_close(plain, torch.cat([x, w1, w2]))
    torch.testing.assert_close(trained[10:], strong)
    assert not torch.equal(w1, w2)
    weak, moved = torch.cat([w1, w2]), 0
    for z, own in zip(trained[:10], weak, strict=True):  # a mixture, own share a half or more
        shares = [
            ((z - w) * (own - w)).sum() / ((own - w) ** 2).sum() for w in weak if (own != w).any()
        ]
        fits = [s for s, w in zip(shares, [w for w in weak if (own != w).any()], strict=True)
                if torch.allclose(z, s * own + (1 - s) * w, atol=1e-5)]  # fmt: skip
        assert torch.allclose(z, own, atol=1e-5) or any(0.5 <= s <= 1 for s in fits)
        moved += not torch.allclose(z, own, atol=1e-5)
    assert moved > 3


def test_an_epoch_is_whole_batches_for_one_network_and_then_for_the_other():
    objective = make(replace(TINY, train=TrainConfig(4, 4)), n=11)
    order = objective.order(11)
    assert objective.length(11) == len(order) == 16
    for part in order.split(8):
        assert len(part.unique()) == 8 and part.max() < 11
    assert not torch.equal(order[:8], order[8:])
    one = make(replace(TINY, peer=False), n=11)
    assert one.length(11) == len(one.order(11)) == 8 and len(one.heads) == 1 and not one.others


def test_confident_answers_promote_from_the_next_batch_on():
    objective = make(replace(TINY, promote=0.5))
    with torch.no_grad():
        for head in objective.heads:
            nn.init.zeros_(head[-1].weight)
            head[-1].bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    before = objective.known.labels.clone(), objective.known.clean.clone()
    objective(images(9)[:4].float() / 255, torch.arange(4))
    assert torch.equal(objective.known.clean, before[1])
    objective.after_step()
    assert objective.known.clean.tolist() == [
        True,
        True,
        True,
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert objective.known.labels[2] == 1 and torch.equal(objective.known.labels[:2], before[0][:2])


def test_both_networks_answer():
    objective = make().eval()
    x = images(9).float() / 255
    product = objective.logits(0, x).softmax(1) * objective.logits(1, x).softmax(1)
    torch.testing.assert_close(objective.predict_proba(x), product / product.sum(1, keepdim=True))
    assert not torch.equal(objective.logits(0, x), objective.logits(1, x))  # new heads, each


def test_losses_are_float32_under_autocast():
    objective, x = make(), images(9).float() / 255
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, torch.arange(9)), objective.predict_proba(x)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32


def test_heads_that_know_nothing_cost_what_the_objective_says():
    objective = make()
    for head in objective.heads:
        nn.init.zeros_(head[-1].weight), nn.init.zeros_(head[-1].bias)
    found = objective(images(9).float() / 255, torch.arange(9))
    for name, chance in objective.chances().items():
        assert found[name].item() == pytest.approx(chance)


# -- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


def test_without_labels_it_starts_from_scan_of_the_same_seed(digits):
    once = replace(recipes.smoke.train, epochs=1)
    config = replace(recipes.smoke, seed=3, sampling="metric", train=once)
    pretext = simclr.fit(digits.images, replace(config.pretext, seed=3))
    base = scan.fit(digits.images, replace(config.base, seed=3), encoder=pretext)
    sure, label = extract(base.predict_proba, digits.images).max(1)
    given = Labelled(base.encoder, label, sure, pretext)
    found = [fit(digits.images, config, encoder=e) for e in (None, pretext, given)]
    assert all(same(f.state_dict(), found[0].state_dict()) for f in found[1:])
    clean = given.clean(digits.images, "metric", 0.99, 0.5, 20)
    rows = []
    fit(digits.images, replace(config, promote=2.0), encoder=given,
        monitor=lambda _s, _e, o, _l: rows.append(o.known.clean.clone()))  # fmt: skip
    assert torch.equal(rows[-1], clean)


def test_neighbours_are_searched_in_the_pretext(digits, monkeypatch):
    spaces, config = [], replace(recipes.smoke, train=replace(recipes.smoke.train, epochs=1))
    pretext = simclr.model(digits.images, config.pretext)
    clean = Labelled.clean
    monkeypatch.setattr(Labelled, "clean", lambda b, *a: spaces.append(b.space) or clean(b, *a))
    fit(digits.images, config, encoder=pretext)
    assert same(spaces[0].state_dict(), pretext.state_dict())


def test_labels_of_any_number_are_kept_where_there_is_nothing_to_learn(digits):
    """Clusters keep their numbers: labels 7 and 2 come back as 7 and 2."""
    bright = digits.images.float().mean((1, 2, 3))
    labels = torch.where(bright > bright.median(), 7, 2)
    config = replace(
        recipes.smoke,
        weak=View(),
        strong=View(),
        sampling="confidence",
        train=TrainConfig(10, 40, "adam", 1e-2),
    )
    with seeded(0):
        net = simclr.model(digits.images, config.pretext).encoder
    found = predict(fit(digits.images, config, encoder=Labelled(net, labels)), digits.images)
    assert (found == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, "share must be at least 0 and below 1; got 1.5"),
        ({"n_neighbors": 1}, "n_neighbors must be at least 2; got 1"),
        ({"mix": -1.0}, "mix must be at least 0; got -1.0"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1; got 1.0"),
        ({"sampling": "both"}, "sampling must be one of confidence, metric, hybrid; got 'both'"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_released_settings():
    p = recipes.paper
    assert (p.sampling, p.threshold, p.promote, p.n_neighbors) == ("hybrid", 0.99, 0.99, 100)
    assert (p.mix, p.guess_weight, p.smoothing, p.peer) == (4, 25, 0.5, True)
    t = p.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr) == (200, 250, "sgd", 0.01)
    assert (t.momentum, t.nesterov, t.weight_decay, t.schedule) == (0.9, True, 5e-4, "cosine")
    assert p.weak == View(scale=(0.2, 1), flip=0.5)
