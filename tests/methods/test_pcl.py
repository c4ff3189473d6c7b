"""PCL by hand, by loop, and what its E-step, M-step and warm-up promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.methods.pcl import PCL, Config, concentration, fit, proto_nce
from dcl.recipes import pcl as recipes
from dcl.train import seeded, train
from dcl.views import View

SGD = TrainConfig(epochs=3, batch_size=4, lr=0.1, momentum=0.0)
TINY = Config(
    n_clusters=2,
    n_prototypes=(2, 5),
    hidden=6,
    dim=4,
    view=View(),  # not random
    temperature=0.5,
    queue_length=9,
    momentum=0.75,
    warmup=1,
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
        return PCL(images(n), replace(TINY, **changes), Flat())


# -- concentration -----------------------------------------------------------------------------


def test_concentration_by_hand():
    # of 11 clusters the tenths are clusters, too: the lowest and the highest go to the next
    sizes = [2] * 9 + [1, 90]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    mean = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.0, 0.9]
    wide = torch.tensor([-0.05, 0.05] * 9 + [0.0] + [0.02, -0.02] * 45)  # mean distances stay
    distances = torch.tensor(mean)[labels] + wide
    raw = [m / math.log(12) for m in mean[:9]] + [0.9 / math.log(12), 0.9 / math.log(100)]
    by_hand = torch.tensor([min(max(p, raw[1]), raw[8]) for p in raw])
    phi = concentration(distances, labels, 11, 0.2)
    torch.testing.assert_close(phi, 0.2 * by_hand / by_hand.mean())
    assert phi[9] == phi.max() and phi[10] < phi[8]  # one image: the largest; many: tight
    assert phi.mean() == pytest.approx(0.2) and phi[0] == phi[1]


def loop_concentration(distances, labels, k, temperature):
    """The formula, cluster by cluster, with numpy-like percentiles by hand."""
    raw = [0.0] * k
    for c in range(k):
        own = [float(d) for d, y in zip(distances, labels) if y == c]
        if len(own) > 1:
            raw[c] = sum(own) / len(own) / math.log(len(own) + 10)
    sizes = [int((labels == c).sum()) for c in range(k)]
    raw = [p if n > 1 else max(raw) for p, n in zip(raw, sizes)]

    def percentile(share):
        at = share * (k - 1)
        down, up = sorted(raw)[math.floor(at)], sorted(raw)[math.ceil(at)]
        return down + (up - down) * (at - math.floor(at))

    low, high = percentile(0.1), percentile(0.9)
    clipped = [max(min(max(p, low), high), 1e-3) for p in raw]
    return torch.tensor([temperature * p * k / sum(clipped) for p in clipped], dtype=torch.float64)


@pytest.mark.parametrize("n, k", [(23, 4), (7, 7), (5, 6), (40, 3)])
def test_concentration_is_the_formula(n, k):
    with seeded(n):
        distances = torch.rand(n, dtype=torch.float64)
        labels = torch.randint(k, (n,))
        labels[labels == 1] = 0  # cluster 1 is empty
    wanted = loop_concentration(distances, labels, k, 0.3)
    torch.testing.assert_close(concentration(distances, labels, k, 0.3), wanted)


def test_concentration_of_rows_without_spread_is_the_temperature():
    none, alone = torch.zeros(6), torch.arange(6)
    for labels in (alone, torch.zeros(6, dtype=torch.int64)):
        torch.testing.assert_close(concentration(none, labels, 6, 0.2), torch.full((6,), 0.2))


def test_copies_of_one_image_do_not_make_a_temperature_of_zero():
    labels, distances = torch.arange(20).repeat(2), torch.tensor([0.0] * 15 + [0.3] * 5).repeat(2)
    phi = concentration(distances, labels, 20, 0.2)
    assert float(phi[19] / phi[0]) == pytest.approx(0.3 / math.log(12) / 1e-3)


# -- the losses --------------------------------------------------------------------------------


def test_proto_nce_by_hand():
    z = torch.tensor([[1.0, 0.0]])
    prototypes, phi = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0.5, 1, 2])
    # logits 2, 0, -.5
    by_hand = math.log(math.exp(2) + 1 + math.exp(-0.5)) - 2
    assert proto_nce(z, prototypes, phi, torch.tensor([0])).item() == pytest.approx(by_hand)
    other = proto_nce(z, prototypes, phi, torch.tensor([2])).item()
    assert other == pytest.approx(by_hand + 2.5)


def loop_proto_nce(z, prototypes, phi, target):
    total = 0
    for f, s in zip(z, target):
        scores = [(f * c).sum() / p for c, p in zip(prototypes, phi)]
        total = total - (scores[s].exp() / sum(score.exp() for score in scores)).log()
    return total / len(z)


@pytest.mark.parametrize("b, k, constant", [(5, 3, False), (3, 8, False), (4, 2, True)])
def test_proto_nce_is_the_formula_in_value_and_gradient(b, k, constant):
    with seeded(b):
        z = F.normalize(torch.randn(b, 6, dtype=torch.float64), dim=1)
        z = z[:1].repeat(b, 1) if constant else z
        prototypes = F.normalize(torch.randn(k, 6, dtype=torch.float64), dim=1)
        phi, target = torch.rand(k, dtype=torch.float64) + 0.1, torch.randint(k - 1, (b,))
    z.requires_grad_()
    loss, slow = (f(z, prototypes, phi, target) for f in (proto_nce, loop_proto_nce))
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(*(torch.autograd.grad(one, z)[0] for one in (loss, slow)))
    assert torch.autograd.gradcheck(lambda f: proto_nce(f, prototypes, phi, target), z)


# -- E-step ------------------------------------------------------------------------------------


def e_step(**changes):
    objective = make(**changes)
    objective.epoch = 1
    with torch.no_grad():  # a key network that is not the query, with statistics of its own
        for p in objective.key.parameters():
            p.add_(0.3 * torch.arange(p.numel()).view_as(p).sin())
        objective.key[0].norm.running_mean.add_(0.2)
    objective.train()
    with seeded(1):
        objective.before_epoch(1)
    return objective


def test_the_e_step_is_the_formula_on_the_keys_in_eval_mode():
    objective, x = e_step(), images().float() / 255
    assert objective.key.training and objective.training  # as they were
    objective.eval()
    v = objective.embed_key(x)
    assert not torch.allclose(v, objective.embed(x), atol=0.05)
    for m, rows in enumerate((slice(0, 2), slice(2, 7))):
        k, labels = rows.stop - rows.start, objective.assigned[m]
        assert labels.unique().tolist() == list(range(k))
        means = torch.stack([v[labels == c].mean(0) for c in range(k)])
        torch.testing.assert_close(objective.prototypes[rows], F.normalize(means, dim=1))
        assert torch.equal(torch.cdist(v, means).argmin(1), labels)
        distances = (v - means[labels]).norm(dim=1)
        wanted = concentration(distances, labels, k, 0.5)
        torch.testing.assert_close(objective.phi[rows], wanted, rtol=1e-4, atol=1e-5)
        assert objective.phi[rows].mean().item() == pytest.approx(0.5)
    assert not objective.prototypes.requires_grad and objective.phi.std() > 0.01


def test_phi_may_be_fixed():
    objective = e_step(phi="fixed")
    assert torch.equal(objective.phi, torch.full((7,), 0.5)) and objective.prototypes.any()


@pytest.mark.parametrize("changes", [{"warmup": 2}, {"n_prototypes": ()}])
def test_without_prototypes_it_is_moco(changes):
    objective, x = e_step(**changes), images().float() / 255
    assert not objective.prototypes.any() and not objective.assigned.any()
    losses = objective(x[:4], torch.arange(4))
    assert losses.keys() == {"loss", "instance"} and losses["loss"] == losses["instance"]
    assert objective.chances() == {"instance": pytest.approx(math.log(9))}


# -- M-step ------------------------------------------------------------------------------------


def test_forward_is_the_loss_of_the_paper():
    objective, x, i = e_step(), images().float() / 255, torch.tensor([7, 2, 9, 4])
    f, keys = objective.embed(x[i]), objective.embed_key(x[i])
    losses = objective(x[i], i)
    own = (f * keys).sum(1) / 0.5
    every = torch.cat([own[:, None], f @ objective.queue.rows[0].T / 0.5], 1)
    instance = (every.logsumexp(1) - own).mean()
    torch.testing.assert_close(losses["instance"], instance)
    a = loop_proto_nce(f, objective.prototypes[:2], objective.phi[:2], objective.assigned[0, i])
    b = loop_proto_nce(f, objective.prototypes[2:], objective.phi[2:], objective.assigned[1, i])
    torch.testing.assert_close(losses["prototype"], (a + b) / 2)
    torch.testing.assert_close(losses["loss"], instance + (a + b) / 2)
    known = objective.chances()
    assert known["prototype"] == pytest.approx((math.log(2) + math.log(5)) / 2)
    losses["loss"].backward()
    for name, p in objective.named_parameters():
        assert (p.grad is None) == name.startswith("key."), name


def test_query_and_key_see_different_views():
    objective = make(view=View(rotate=90))
    x, seen = images().float() / 255, []
    objective.encoder.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    objective.key[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    objective(x[:4], torch.arange(4))
    assert len(seen) == 2 and not torch.equal(*seen) and not torch.equal(seen[0], x[:4])


def test_the_warm_up_ends_and_every_epoch_clusters_anew():
    objective, rows, prototypes = make(), [], []

    def look(stage, epoch, o, losses):
        rows.append(losses)
        prototypes.append(o.prototypes.clone())

    with seeded(2):
        train(objective, images(), SGD, monitor=look)
    assert ["prototype" in losses for losses in rows] == [False, True, True]
    assert not prototypes[0].any() and not torch.equal(prototypes[1], prototypes[2])


def test_clusters_are_those_of_the_query_network():
    with seeded(4):
        model = fit(images(), TINY, encoder=Flat())
    x = images().float() / 255
    nearest = (model.embed(x) @ model.clusters.centroids.T).argmax(1)
    assert torch.equal(model.predict(x), nearest)
    torch.testing.assert_close(model.clusters.centroids.norm(dim=1), torch.ones(2))


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
        ({"n_prototypes": (5, 1)}, r"n_prototypes must be numbers >= 2; got \(5, 1\)"),
        ({"phi": "free"}, "phi must be one of estimated, fixed; got 'free'"),
        ({"queue_length": 3}, "queue_length must be at least 4, a batch; got 3"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_more_prototypes_than_images_are_refused_and_lowered():
    with pytest.raises(ValueError, match=r"at most \(2, 12\) for 12 images; got \(2, 13\)"):
        fit(images(), replace(TINY, n_prototypes=(2, 13)), encoder=Flat())
    assert replace(TINY, n_prototypes=(10, 20)).most(12) == {"n_prototypes": (10, 12)}


def test_the_papers_settings():
    paper = recipes.paper
    assert paper.n_prototypes == (25_000, 50_000, 100_000) and paper.phi == "estimated"
    assert (paper.dim, paper.hidden, paper.head_norm) == (128, 2048, False)
    assert (paper.temperature, paper.queue_length, paper.momentum) == (0.2, 16_384, 0.999)
    v, t = paper.view, paper.train
    assert (v.size, v.scale, v.jitter, v.jitter_prob) == (224, (0.2, 1), (0.4, 0.4, 0.4, 0.1), 0.8)
    assert (v.gray, v.blur, v.flip) == (0.2, 0.5, 0.5)
    assert (paper.warmup, t.epochs, t.batch_size, t.optimizer) == (20, 200, 256, "sgd")
    assert (t.lr, t.momentum, t.weight_decay, t.schedule) == (0.03, 0.9, 1e-4, "cosine")
