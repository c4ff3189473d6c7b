"""SPICE by hand, by loop, and what its stages hand on."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.pseudolabels import prototype_labels
from dcl.cluster.pseudolabels import reliable as found_reliable
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import simclr
from dcl.methods import spice as method
from dcl.methods.spice import Config, Prototypes, fit, self_loss
from dcl.nets.convnets import identity
from dcl.objective import Embedding
from dcl.recipes import spice as recipes
from dcl.train import extract, predict, seeded, train
from dcl.views import CROP_FLIP, View

UNDRAWN = {"threshold": 0.1}  # in tests/test_together.py FixMatch is to learn from all images
OFF = replace(recipes.smoke.fixmatch, epochs=0)


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


# -- the loss ----------------------------------------------------------------------------------


def by_loop(p, labels):
    """A sum over images, and over the labels that each has, of softmax of probabilities."""
    losses = []
    for h in range(p.shape[1]):
        total, count = torch.zeros((), dtype=p.dtype), 0
        for row, own in zip(p[:, h], labels[:, h].tolist(), strict=True):
            for c, one in enumerate(own):
                if one:
                    total = total - torch.log(row[c].exp() / sum(v.exp() for v in row))
                    count += 1
        losses.append(total / max(count, 1))
    return torch.stack(losses)


@pytest.mark.parametrize("rows, h, k", [(7, 2, 3), (3, 1, 8), (1, 2, 4)])  # odd; K larger than B
def test_loss_and_gradient_are_those_of_the_loop(rows, h, k):
    with seeded(rows):
        logits = (3 * torch.randn(rows, h, k, dtype=torch.float64)).requires_grad_()
        labels = (torch.rand(rows, h, k) < 0.4).double()
    labels[0] = 0  # no label; others have several
    labels[:, 0, 0] = 0  # nobody is in cluster 0
    found = self_loss(logits.softmax(2), labels)
    wanted = by_loop(logits.softmax(2), labels)
    torch.testing.assert_close(found, wanted)
    (ours,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
    if wanted.any():
        torch.testing.assert_close(ours, torch.autograd.grad(wanted.sum(), logits)[0])
    assert torch.autograd.gradcheck(lambda z: self_loss(z.softmax(2), labels), logits)


def test_a_batch_without_labels_costs_nothing():
    logits = torch.zeros(4, 2, 3, requires_grad=True)
    loss = self_loss(logits.softmax(2), torch.zeros(4, 2, 3))
    loss.sum().backward()
    assert not loss.any() and not logits.grad.any()


def test_a_loss_of_one_and_a_half_is_success():
    right = torch.eye(10)[:, None]
    assert self_loss(right, right).item() == pytest.approx(math.log(1 + 9 / math.e))  # 1.461
    wrong = torch.eye(10).roll(1, 0)[:, None]
    assert self_loss(wrong, right).item() == pytest.approx(math.log(math.e + 9))  # 2.461
    none = torch.full((10, 1, 10), 0.1)
    assert self_loss(none, right).item() == pytest.approx(math.log(10))  # 2.303


# -- SPICE-Self --------------------------------------------------------------------------------


class Flat(nn.Module):
    """Mean brightness of quarters, four features, standardised."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale, self.norm = nn.Parameter(torch.ones(4)), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale)


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


TINY = Config(n_clusters=3, heads=2, pool=7, passes=3, view=View(translate=0.4), weak=View())


def make(config=TINY, n=11, cached=False):
    with seeded(0):
        net, x = Flat().eval(), images(n).float() / 255
        raw = net(x).detach()
        z = F.normalize(raw, dim=1)
        seen = (identity(net.out_dim), raw) if cached else (net, images(n))
        return Prototypes(*seen, z, config)


def test_a_pool_is_labelled_by_every_head_for_itself():
    objective = make().train()
    with seeded(1):
        objective.before_epoch(0)
    pool = objective.pool
    assert len(pool) == len(pool.unique()) == 7
    p = objective.proba(images(11)[pool].float() / 255)
    for h in range(2):
        wanted = prototype_labels(objective.z[pool], p[:, h], 0.5)
        assert torch.equal(objective.targets[pool, h].bool(), wanted)
    rest = [i for i in range(11) if i not in pool.tolist()]
    assert not objective.targets[rest].any()
    before = pool
    objective.before_epoch(1)
    assert not torch.equal(before, objective.pool)  # another one


def test_an_epoch_is_some_passes_over_the_pool():
    objective = make()
    objective.before_epoch(0)
    order = objective.order(11)
    assert len(order) == objective.length(11) == 21
    for one in order.split(7):
        assert sorted(one.tolist()) == sorted(objective.pool.tolist())
    assert not torch.equal(order[:7], order[7:14])
    large = make(replace(TINY, pool=5000))
    large.before_epoch(0)
    assert large.length(11) == 33 and len(large.pool) == 11  # at most all


def test_forward_is_the_mean_over_heads_of_views():
    objective = make().train()
    objective.before_epoch(0)
    i = objective.pool[:5]
    x = images(11)[i].float() / 255
    with seeded(2):
        found = objective(x, i)
    with seeded(2):
        p = objective.proba(TINY.view(x))
    labels = objective.targets[i]
    torch.testing.assert_close(found["loss"], by_loop(p, labels).mean())
    assert found["labels"].item() == pytest.approx(labels.sum().item() / 10)
    found["loss"].backward()
    assert all(q.grad.any() for q in objective.heads.parameters() if q.ndim == 2)
    assert objective.encoder.scale.grad is None


@pytest.mark.parametrize("cached", [True, False])
def test_the_network_stands_still(cached):
    objective = make(replace(TINY, view=View()), cached=cached)
    before = {k: v.clone() for k, v in objective.encoder.state_dict().items()}
    head = objective.heads[0][0].weight.clone()
    train(objective, objective.seen, TrainConfig(2, 5, "adam", 0.01))
    after = objective.encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)  # BatchNorm's statistics, too
    assert not torch.equal(head, objective.heads[0][0].weight)


def test_embeddings_teach_as_the_images_would():
    stages = []
    for cached in (True, False):
        objective = make(replace(TINY, view=Unchanged()), cached=cached)
        with seeded(3):
            train(objective, objective.seen, TrainConfig(2, 5, "sgd", 0.1, momentum=0.0))
        stages.append(objective.heads)
    for a, b in zip(stages[0].parameters(), stages[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


class Unchanged(View):
    """`View()` that draws nothing, of images as of embeddings."""

    def __call__(self, x):
        return x


def test_labels_come_from_weak_views():
    class Dark(View):
        def __call__(self, x):
            return 0 * x

    objective = make(replace(TINY, weak=Dark()))
    objective.before_epoch(0)
    dark = objective.proba(torch.zeros(7, 1, 8, 8))
    wanted = prototype_labels(objective.z[objective.pool], dark[:, 1], 0.5)
    assert torch.equal(objective.targets[objective.pool, 1].bool(), wanted)


def test_heads_that_know_nothing_cost_what_the_objective_says():
    objective = make()
    for head in objective.heads:
        nn.init.zeros_(head[-1].weight), nn.init.zeros_(head[-1].bias)
    objective.before_epoch(0)
    found = objective(images(11).float() / 255, torch.arange(11))
    assert objective.chances() == {"loss": pytest.approx(found["loss"].item())}


# -- the whole ---------------------------------------------------------------------------------


def stages(digits, config):
    """The fitted network, and the objective of each stage."""
    seen = {}
    spice = fit(digits.images, config, monitor=lambda s, e, o, losses: seen.update({s: o}))
    return spice, seen


def test_the_head_with_the_lowest_loss_answers(digits):
    spice, seen = stages(digits, replace(recipes.smoke, heads=6, fixmatch=OFF))
    first = seen["spice"]
    p = extract(first.proba, first.seen)
    labels = [prototype_labels(first.z, q, 0.5).float() for q in p.unbind(1)]
    losses = [by_loop(q[:, None], own[:, None]) for q, own in zip(p.unbind(1), labels, strict=True)]
    best = int(torch.cat(losses).argmin())
    assert best != 0 and torch.equal(predict(spice, digits.images), p[:, best].argmax(1))


def test_the_network_is_taught_reliable_images_as_many_of_each_cluster(digits):
    long = replace(recipes.smoke.spice, epochs=6)  # clusters of unlike size
    c = replace(recipes.smoke, spice=long, fixmatch=OFF)  # which would train the head further
    spice, seen = stages(digits, c)
    first = seen["spice"]
    p = extract(first.proba, first.seen)
    best = int(self_loss(p, first.labels(p, first.z)).argmin())
    whole = found_reliable(first.z, p[:, best], c.n_neighbors, c.agree, c.sure)
    kept = spice.labels >= 0
    assert kept.any() and torch.equal(spice.labels[kept], whole[kept])
    sizes = spice.labels[kept].bincount()
    assert sizes[sizes > 0].unique().numel() == 1
    assert sizes.max() == min(n for n in whole[whole >= 0].bincount().tolist() if n)


def test_embeddings_are_of_length_one_and_of_the_pretext_or_its_encoder(digits):
    for projected, width in ((True, 64), (False, 32)):
        spice, seen = stages(digits, replace(recipes.smoke, projected=projected, fixmatch=OFF))
        z = seen["spice"].z
        assert z.shape == (160, width) == (160, spice.encoder.out_dim)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(160))
        assert isinstance(spice.encoder, Embedding) == projected


def test_the_network_of_step_4_is_new_or_not(digits, monkeypatch):
    began = {}
    monkeypatch.setattr(method.FixMatch, "before_epoch", look_at(began))
    for fresh in (True, False):
        config = replace(recipes.smoke, fresh=fresh)
        pretext = simclr.fit(digits.images, config.pretext)
        fit(digits.images, config, encoder=pretext)
        old = flat(pretext)
        assert torch.equal(began["weights"], old) != fresh
        assert torch.equal(began["weights"], began["average"])


def look_at(began):
    before = method.FixMatch.before_epoch

    def look(self, epoch):
        before(self, epoch)
        for name, net in (("weights", self.encoder), ("average", self.average[0])):
            began[name] = flat(net)

    return look


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_without_a_reliable_image_step_2_answers(digits):
    none = replace(recipes.smoke, sure=1 - 1e-9, fresh=True)
    spice, seen = stages(digits, none)
    assert "fixmatch" not in seen and not (spice.labels >= 0).any()
    other, _ = stages(digits, replace(none, fixmatch=OFF))
    assert torch.equal(predict(spice, digits.images), predict(other, digits.images))


def test_the_average_is_the_network_in_the_end(digits):
    spice, _ = stages(digits, recipes.smoke)
    live, average = spice.live().state_dict(), spice.average.state_dict()
    assert all(torch.equal(live[k], average[k]) for k in live)
    assert not spice.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"share": 0.0}, "share must be above 0"),
        ({"passes": 0}, "passes must be at least 1"),
        ({"sure": 1.0}, "sure must be at least 0 and below 1; got 1.0"),
        ({"threshold": 1.0}, "threshold must be at least 0 and below 1"),
        ({"labelled": 0}, "labelled must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_too_many_neighbours_are_refused_before_training(digits):
    with pytest.raises(ValueError, match="n_neighbors must be at most 160 for 160 images; got 161"):
        fit(digits.images, replace(recipes.smoke, n_neighbors=161), monitor=1 / 1)


def test_the_released_settings():
    c = recipes.paper
    assert (c.heads, c.pool, c.share, c.passes, c.n_neighbors) == (10, 5000, 0.5, 8, 100)
    assert (c.agree, c.sure, c.threshold, c.labelled, c.ema_decay) == (0.99, 0.99, 0.95, 64, 0.999)
    assert c.weak == CROP_FLIP and c.fresh and not c.projected
    assert (c.strong.randaugment, c.view.randaugment) == (3, 4)
    t = c.fixmatch
    assert (t.batch_size, t.optimizer, t.lr, t.nesterov) == (7 * 64, "sgd", 0.03, True)
    assert 60_000 // 448 * t.epochs == pytest.approx(2**20, rel=1e-2)
    assert t.final_lr == pytest.approx(0.03 * math.cos(7 / 16 * math.pi), rel=0.03)
