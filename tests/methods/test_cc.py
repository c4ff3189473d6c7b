"""CC by hand, by loop, on shapes that do not fit, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.methods.cc import CC, Config, cluster_loss, fit, losses
from dcl.recipes import cc as recipes
from dcl.train import seeded
from dcl.views import View

TINY = Config(n_clusters=3, dim=5, view=View(), train=TrainConfig(1, 4, "adam", 1e-3))


class Flat(nn.Module):
    """Mean brightness of quarters, four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


def make(config=TINY):
    with seeded(0):
        return CC(images(4), config, Flat())


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


@pytest.fixture
def x():
    return images(6).float() / 255


# -- the loss ----------------------------------------------------------------------------------


def contrast(vectors, temperature):
    """Of 2n vectors, n from each view: the mean over all of -log p(partner), by a loop."""
    n, total = len(vectors) // 2, 0
    for a, mine in enumerate(vectors):
        scale = [
            torch.exp(mine @ v / (mine.norm() * v.norm()).clamp(min=1e-24) / temperature)
            for v in vectors
        ]
        partner = a + n if a < n else a - n
        total = total - torch.log(scale[partner] / sum(s for b, s in enumerate(scale) if b != a))
    return total / (2 * n)


def by_loop(z, logits, c):
    """Eq. 1 to 7, written as sums over images and clusters; the mean over cluster heads."""
    clusters = [by_head(head, c) for head in logits.unbind(1)]
    mean = sum(clusters) / len(clusters)
    return c.instance_weight * contrast(list(z), c.temperature) + c.cluster_weight * mean


def by_head(logits, c):
    rows = len(logits) // 2
    p = [row.exp() / row.exp().sum() for row in logits]
    columns = [
        torch.stack([p[i][k] for i in range(first, first + rows)])
        for first in (0, rows)
        for k in range(c.n_clusters)
    ]
    lacking = 0
    for first in (0, rows):
        for k in range(c.n_clusters):
            mass = sum(p[i][k] for i in range(first, first + rows)) / rows
            lacking = lacking + (mass * torch.log(mass) if mass > 0 else 0)
        lacking = lacking + math.log(c.n_clusters)
    return contrast(columns, c.cluster_temperature) + c.entropy_weight * lacking


def drawn(rows, k, heads=2, dim=5):
    with seeded(rows + k):
        z = torch.randn(2 * rows, dim, dtype=torch.float64)
        return z, 2 * torch.randn(2 * rows, heads, k, dtype=torch.float64)


WEIGHED = replace(
    TINY,
    temperature=0.3,
    cluster_temperature=0.7,
    instance_weight=0.6,
    cluster_weight=1.7,
    entropy_weight=0.4,
)


@pytest.mark.parametrize("config", [TINY, WEIGHED], ids=["paper", "weights"])
@pytest.mark.parametrize("rows, k", [(5, 3), (7, 2), (3, 8), (1, 4)])  # odd; K larger than B
def test_loss_and_gradient_are_those_of_the_loop(rows, k, config):
    config, (z, logits) = replace(config, n_clusters=k), drawn(rows, k)
    compare(z, logits, config)


def test_constant_embeddings_and_an_empty_cluster_are_those_of_the_loop():
    z, logits = drawn(5, 3)
    compare(torch.ones_like(z), logits, TINY)
    logits[:, :, 1] = -1000.0  # no image of either view is in cluster 1: its mass is zero
    compare(z, logits, TINY, exact=False)
    logits[:5, :, 1] = 1.0  # in one view only
    compare(z, logits, TINY, exact=False)


def compare(z, logits, config, exact=True):
    z, logits = z.requires_grad_(), logits.requires_grad_()
    found, wanted = losses(z, logits, config)["loss"], by_loop(z, logits, config)
    torch.testing.assert_close(found, wanted)
    ours = torch.autograd.grad(found, (z, logits))
    assert all(g.isfinite().all() for g in ours)
    if exact:  # the loop's gradient has 0/0 in it where a mass is zero
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, (z, logits)))
    z.requires_grad_(False), logits.requires_grad_(False)


def test_gradient_in_float64():
    z, logits = drawn(4, 3)
    z, logits = z.requires_grad_(), logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses(a, b, WEIGHED)["loss"], (z, logits))


@pytest.mark.parametrize("k, least", [(10, 2.031), (15, 2.425), (20, 2.707), (200, 4.993)])
def test_the_cluster_loss_runs_from_even_and_certain_to_uniform(k, least):
    certain = torch.where(torch.eye(k).bool(), 0.0, -100.0).repeat(3, 1)
    assert cluster_loss(certain, certain).item() == pytest.approx(least, abs=5e-4)
    uniform = torch.full((7, k), -math.log(k))
    assert cluster_loss(uniform, uniform).item() == pytest.approx(math.log(2 * k - 1))


def test_the_instance_loss_of_aligned_and_orthogonal_embeddings():
    z = torch.eye(256).repeat(2, 1)
    found = losses(z, torch.zeros(512, 1, 3), TINY)
    assert found["instance"].item() == pytest.approx(4.249, abs=5e-4)
    assert found["entropy"].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_in_one_cluster_has_a_finite_loss_and_gradient(dtype):
    for far in (20.0, 200.0, 2000.0):  # probabilities that are small, subnormal, zero
        logits = torch.zeros(12, 1, 4, dtype=dtype)
        logits[:, :, 0] = far
        logits.requires_grad_()
        loss = losses(torch.randn(12, 5).to(dtype), logits, replace(TINY, n_clusters=4))["loss"]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()


def test_clusters_have_no_order_and_views_are_alike():
    z, logits = drawn(6, 4)
    config, order = replace(WEIGHED, n_clusters=4), torch.tensor([2, 0, 3, 1])
    loss = losses(z, logits, config)["loss"]
    same = [(z, logits[:, :, order]), (z.roll(6, 0), logits.roll(6, 0))]
    same.append((z, logits.flip(1)))
    rows = torch.randperm(6)
    same.append((torch.cat([z[rows], z[6 + rows]]), torch.cat([logits[rows], logits[6 + rows]])))
    for a, b in same:
        torch.testing.assert_close(losses(a, b, config)["loss"], loss)
    certain = torch.where(torch.eye(4).bool(), 0.0, -9.0).repeat(2, 1).log_softmax(1)
    assert cluster_loss(certain, certain[:, order]) > cluster_loss(certain, certain) + 0.5


def test_the_entropy_is_that_of_each_view_and_pulls_towards_even_use():
    half = torch.tensor([[50.0, 0.0]] * 4 + [[0.0, 50.0]] * 4)  # each view in one cluster
    half, config = half[:, None], replace(TINY, n_clusters=2)
    assert losses(torch.ones(8, 5), half, config)["entropy"].item() == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([[[1.0, 0.0]]] * 8, requires_grad=True)
    only = replace(config, instance_weight=0.0, entropy_weight=9.0)
    losses(torch.ones(8, 5), logits, only)["loss"].backward()
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1] < 0).all()


# -- the objective -----------------------------------------------------------------------------


def test_forward_is_the_algorithm(x):
    drawn, objective = [], make(replace(TINY, view=View(translate=0.4), heads=2))
    objective.encoder.register_forward_hook(lambda _m, args, _o: drawn.append(args[0]))
    found = objective(x, torch.arange(6))
    (seen,) = drawn  # one pass of both views
    assert len(seen) == 12 and not torch.equal(seen[:6], seen[6:])
    features = objective.encoder(seen)
    z = objective.instance_head(features)
    logits = torch.stack([head(features) for head in objective.cluster_heads], 1)
    wanted = losses(z, logits, objective.config)
    heads = wanted.pop("heads")
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found["loss"], by_loop(z, logits, objective.config))
    torch.testing.assert_close(heads[1], by_head(logits[:, 1], objective.config))
    torch.testing.assert_close(objective.standing, 0.05 * heads)
    objective(x, torch.arange(6))
    assert (objective.standing > 0.09 * heads).all()  # a moving average: of another view
    found["loss"].backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in objective.parameters())


def test_losses_are_float32_under_autocast(x):
    objective = make()
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, torch.arange(6)), objective.predict_proba(x)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.ones(6))
    features = objective.encoder(x).repeat(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        z, logits = objective.instance_head(features), objective.cluster_heads[0](features)
    exact = losses(z.float(), logits[:, None].float(), objective.config)
    torch.testing.assert_close(found, {k: v for k, v in exact.items() if k != "heads"})


@pytest.mark.parametrize(
    "name, head", [("instance", "instance_head"), ("cluster", "cluster_heads")]
)
def test_a_weight_of_zero_removes_a_head(x, name, head):
    objective = make(replace(TINY, **{f"{name}_weight": 0.0}))
    objective(x, torch.arange(6))["loss"].backward()
    for part in ("instance_head", "cluster_heads"):
        moved = any(p.grad.any() for p in getattr(objective, part).parameters())
        assert moved == (part != head)
    assert name not in objective.chances() and len(objective.chances()) == 1


@pytest.mark.parametrize("epoch, moved", [(0, False), (3, False), (4, True)])
def test_rows_train_alone_for_a_share_of_the_epochs(x, epoch, moved):
    objective = make(replace(TINY, rows_first=0.45, train=replace(TINY.train, epochs=10)))
    objective.epoch = epoch
    found = objective(x, torch.arange(6))
    found["loss"].backward()
    assert any(p.grad.any() for p in objective.cluster_heads.parameters()) == moved
    assert (found["loss"] > found["instance"]).item() == moved and objective.standing.all()
    assert objective.instance_head[0].weight.grad.any()


def test_uniform_heads_have_the_losses_of_chances(x):
    objective = make(replace(TINY, train=replace(TINY.train, batch_size=6)))
    for p in [*objective.instance_head.parameters(), *objective.cluster_heads.parameters()]:
        nn.init.zeros_(p)
    found = objective(x, torch.arange(6))
    for name, chance in objective.chances().items():
        assert found[name].item() == pytest.approx(chance)


def test_predict_is_the_cluster_head_on_the_image_as_it_is(x):
    objective = make(replace(TINY, view=View(negative=1.0))).eval()
    logits = objective.cluster_heads[0](objective.encoder(x))
    assert torch.equal(objective.predict(x), logits.argmax(1))
    torch.testing.assert_close(objective.predict_proba(x), logits.softmax(1))
    z = objective.instance_head(objective.encoder(x))
    torch.testing.assert_close(objective.embed(x), z / z.norm(dim=1, keepdim=True))


def test_of_several_heads_the_lowest_cluster_loss_answers(x):
    objective = make(replace(TINY, heads=3))
    each = [head(objective.encoder(x)) for head in objective.cluster_heads]
    for k in range(3):  # "standing" is tested above
        objective.standing.copy_(torch.arange(3).sub(k).abs())
        torch.testing.assert_close(objective.predict_proba(x), each[k].softmax(1))


def test_without_a_cluster_head_k_means_clusters_the_embedding(x):
    config = replace(TINY, cluster_weight=0.0)
    with pytest.raises(ValueError, match="clusters must be fitted first"):
        make(config).predict(x)
    cc = fit(images(9), config, encoder=Flat())
    z = cc.embed(x)
    torch.testing.assert_close(cc.predict_proba(x), (10 * z @ cc.clusters.centroids.T).softmax(1))
    torch.testing.assert_close(cc.clusters.centroids.norm(dim=1), torch.ones(3))
    assert not hasattr(fit(images(9), TINY, encoder=Flat()), "clusters")


def test_batch_norm_stands_before_and_inside_the_cluster_head_only():
    def norms(config):
        objective = make(config)
        heads = objective.instance_head, objective.cluster_heads[0]
        return [[m.affine for m in h.modules() if isinstance(m, nn.BatchNorm1d)] for h in heads]

    assert norms(TINY) == [[], []]
    assert norms(replace(TINY, batch_norm=True)) == [[], [False, True]]


def test_batch_norm_ends_with_the_statistics_of_the_images_as_they_are():
    train = replace(TINY.train, batch_size=8)
    cc = fit(images(8), replace(TINY, batch_norm=True, view=View(negative=1.0), train=train),
             encoder=Flat())  # fmt: skip
    features = cc.encoder(images(8).float() / 255)
    torch.testing.assert_close(cc.cluster_heads[0][0].running_mean, features.detach().mean(0))


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"cluster_temperature": -1.0}, "cluster_temperature must be above 0"),
        ({"rows_first": 1.0}, "rows_first must be at least 0 and below 1; got 1.0"),
        ({"rows_first": 0.5, "instance_weight": 0.0}, "instance_weight must be above 0"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"entropy_weight": -1.0}, "entropy_weight must be at least 0; got -1.0"),
        ({"instance_weight": -0.5}, "instance_weight must be at least 0; got -0.5"),
        (
            {"instance_weight": 0.0, "cluster_weight": 0.0},
            "instance_weight must be above 0 if rows_first is or cluster_weight 0",
        ),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.encoder, paper.stem, paper.dim, paper.batch_norm) == (
        "resnet34", "imagenet", 128, False,
    )  # fmt: skip
    assert (paper.heads, paper.rows_first) == (1, 0)
    assert (paper.temperature, paper.cluster_temperature) == (0.5, 1.0)
    assert paper.instance_weight == paper.cluster_weight == paper.entropy_weight == 1
    view = paper.view
    assert (view.size, view.scale, view.flip, view.gray) == (224, (0.08, 1), 0.5, 0.2)
    assert (view.jitter, view.jitter_prob) == ((0.4, 0.4, 0.4, 0.1), 0.8)
    t = paper.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr) == (1000, 256, "adam", 3e-4)
    assert (t.schedule, t.weight_decay) == ("constant", 0)
