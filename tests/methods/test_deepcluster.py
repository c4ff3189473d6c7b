"""DeepCluster by hand, by loop, against the released loop, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ablations
from ablations import released_order
from dcl.cluster.balance import cluster_weights, uniform_order
from dcl.cluster.kmeans import kmeans, whiten, whitening
from dcl.config import TrainConfig
from dcl.data import load
from dcl.measure.metrics import nmi
from dcl.methods.deepcluster import Config, DeepCluster, fit, pseudo_label_loss
from dcl.nets import convnets
from dcl.recipes import deepcluster as recipes
from dcl.train import extract, predict, seeded, train
from dcl.views import View

# cluster sizes for which the served shares were measured on the released code
SHARES = (0.505, 0.20, 0.10, 0.06, 0.05, 0.03, 0.02, 0.015, 0.01, 0.01)
TINY = Config(
    n_clusters=3,
    n_pseudo=8,
    encoder="small_cnn",
    width=4,
    fc=12,
    view=View(pad=2),
    train=TrainConfig(epochs=3, batch_size=20, lr=0.1, weight_decay=1e-3),
)


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(60).images


def make(images, **changes):
    config = replace(TINY, **changes)
    with seeded(1):
        net = convnets.encoder(config.encoder, images, width=config.width, sobel=config.sobel)
        return DeepCluster(images, config, net)


def uneven():
    """10,000 pseudo-labels with the cluster sizes `SHARES`."""
    sizes = (10_000 * torch.tensor(SHARES)).round().long()
    with seeded(0):
        return torch.repeat_interleave(torch.arange(10), sizes)[torch.randperm(10_000)]


def shares(labels, rows):
    return labels[rows].bincount(minlength=10) / len(rows)


# ---- the loss


def test_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    labels = torch.tensor([0, 1])
    # -ln 1/2 and -ln 1/4
    assert pseudo_label_loss(logits, labels) == pytest.approx(1.5 * math.log(2))
    weighted = pseudo_label_loss(logits, labels, torch.tensor([2.0, 0.5]))
    # (2 ln 2 + .5 * 2 ln 2) / 2, not divided by the weights' sum 2.5
    assert weighted == pytest.approx(1.5 * math.log(2))


def test_weights_by_hand():
    # six images; clusters 0 (three), 1 (two), 3 (one), 2 empty: 6 / (3 used * size)
    labels = torch.tensor([0, 0, 0, 1, 1, 3])
    torch.testing.assert_close(
        cluster_weights(labels), torch.tensor([2 / 3, 2 / 3, 2 / 3, 1.0, 1.0, 2.0])
    )
    assert cluster_weights(uneven()).mean() == pytest.approx(1.0)
    total = torch.zeros(10).index_add_(0, uneven(), cluster_weights(uneven()))
    assert total.tolist() == pytest.approx([1000] * 10, rel=1e-3)  # each cluster has equal say


def test_loss_gradient():
    with seeded(0):
        logits = torch.randn(5, 4, requires_grad=True)
        labels, weights = torch.randint(4, (5,)), torch.rand(5)
    (gradient,) = torch.autograd.grad(pseudo_label_loss(logits, labels, weights), logits)
    expected = weights[:, None] * (logits.softmax(1) - F.one_hot(labels, 4)) / 5
    torch.testing.assert_close(gradient, expected)


# ---- the sampler


def test_uniform_order_serves_each_cluster_equally():
    labels = uneven()
    with seeded(0):
        rows = uniform_order(labels)
    assert rows.shape == (10_000,)
    assert (shares(labels, rows) - 0.1).abs().max() < 0.003
    served = torch.zeros(10_000, dtype=torch.int64).index_add_(0, rows, torch.ones_like(rows))
    assert served[labels == 0].max() == 1  # a cluster larger than its share: no row twice
    assert served[labels == 9].max() > 1  # a smaller one: with replacement
    assert (rows[1:] < rows[:-1]).float().mean() > 0.4  # shuffled


def test_uniform_order_at_the_edges():
    with seeded(0):
        gap = torch.tensor([0, 0, 0, 5, 5, 5, 5, 5])  # numbers without images do not count
        many = torch.stack([gap[uniform_order(gap)].bincount(minlength=6) for _ in range(400)])
        assert (many.sum(1) == 8).all()
        assert many.float().mean(0)[[0, 5]].tolist() == pytest.approx([4, 4], abs=0.1)
        # exactly at the limit, size == N // clusters + 1: replacement, as released
        edge = torch.tensor([0, 0, 0, 1])
        rows = [uniform_order(edge) for _ in range(200)]
    assert any((r.bincount(minlength=4)[:3] > 1).any() for r in rows)


def test_sampling_and_weighting_are_equal_in_expectation():
    labels = torch.tensor([0] * 7 + [1] * 3 + [2] * 2)
    with seeded(0):
        counts = [uniform_order(labels).bincount(minlength=12).float() for _ in range(5_000)]
    # what one image is served on average is its weight
    torch.testing.assert_close(
        torch.stack(counts).mean(0), cluster_weights(labels), atol=0.05, rtol=0
    )


def test_the_released_sampler_by_hand(monkeypatch):
    labels = torch.tensor([1, 0, 1, 0, 2])  # sorted by cluster: images 1 3 | 0 2 | 4
    ids = torch.tensor([4, 0, 2, 3, 1])
    monkeypatch.setattr(ablations, "uniform_order", lambda _: ids)
    assert released_order(labels).tolist() == [4, 1, 0, 2, 3]


@pytest.mark.parametrize("balance", ["sample", "weight", "none", "released"])
def test_an_epoch_is_in_the_order_asked_for(images, balance):
    if balance == "released":
        objective = ablations.ReleasedSampler(images, TINY)
    else:
        objective = make(images, balance=balance)
    objective.pseudo.copy_(torch.arange(60) % 7 % 3)
    with seeded(5):
        rows = objective.order(60)
    with seeded(5):
        order = {"sample": uniform_order, "released": released_order}.get(balance)
        expected = order(objective.pseudo) if order else torch.randperm(60)
    assert torch.equal(rows, expected)


def test_the_released_sampler_is_all_that_its_ablation_changes(images, monkeypatch):
    released = ablations.released_sampler(images, TINY)
    monkeypatch.setattr(ablations.ReleasedSampler, "order", DeepCluster.order)
    ours, same = fit(images, TINY).state_dict(), ablations.released_sampler(images, TINY)
    assert all(torch.equal(ours[name], value) for name, value in same.state_dict().items())
    assert not torch.equal(released.fc.weight, same.fc.weight)


def test_forward_weights_the_loss_only_when_told_to(images):
    labels = torch.cat([torch.zeros(50), torch.ones(10)]).long()
    i = torch.arange(40, 60)
    x = images[i].float() / 255
    for balance in ("sample", "weight", "none"):
        objective = make(images, balance=balance, view=View()).eval()
        objective.pseudo.copy_(labels)
        nn.init.normal_(objective.top.weight)
        logits = objective.top(F.relu(objective.features(x)))
        weights = torch.where(labels[i] == 0, 0.6, 3.0) if balance == "weight" else None
        expected = pseudo_label_loss(logits, labels[i], weights)
        torch.testing.assert_close(objective(x, i)["loss"], expected)


# ---- features, pseudo-labels, top layer


def test_features_are_taken_before_the_relu_in_evaluation_mode(images):
    objective = make(images).train()
    z = extract(objective.features, images)
    assert z.shape == (60, 12)
    assert (z < 0).float().mean() > 0.1
    by_hand = objective.eval().fc(objective.encoder(images.float() / 255))
    torch.testing.assert_close(z, by_hand)
    # the top layer sees them after the ReLU
    objective.pseudo.copy_(torch.arange(60) % 8)
    seen = []
    objective.top.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    objective(images.float() / 255, torch.arange(60))
    assert seen[0].min() == 0


def test_fc7_is_the_encoders_own_last_layer_where_it_has_one(images):
    objective = make(images, fc=0)
    assert isinstance(objective.fc, nn.Identity)
    assert objective.top.in_features == objective.encoder.out_dim == 16


def test_clustering_sees_images_in_order_and_without_views(images):
    objective = make(images).train()
    with seeded(7):
        objective.before_epoch(0)
    assert objective.training
    with seeded(7):
        rows = whiten(extract(objective.features, images), 256)
        found = kmeans(rows, 8, iterations=20, init="random").labels
    assert nmi(found, objective.pseudo) == pytest.approx(1.0)


def test_a_reassignment_renews_labels_top_layer_and_log(images):
    objective = make(images, n_pseudo=30)
    with seeded(0):
        objective.before_epoch(0)
    first, top = objective.pseudo.clone(), objective.top.weight.clone()
    assert objective.log.tolist() == [int(first.max()) + 1, 12, 0]  # 12 features, not 256
    with seeded(1):
        objective.before_epoch(1)
    assert not torch.equal(objective.top.weight, top)
    assert not objective.top.bias.any()
    assert objective.top.weight.detach().std() == pytest.approx(0.01, rel=0.2)
    assert float(objective.log[2]) == pytest.approx(nmi(first, objective.pseudo))
    assert 0 < float(objective.log[2]) < 1
    losses = objective(images[:4].float() / 255, torch.arange(4))
    assert list(losses) == ["loss", "clusters", "dimensions", "nmi"]
    assert losses["nmi"] == objective.log[2]


def test_reassign_waits(images):
    objective, tops = make(images, reassign=3), []
    for epoch in range(4):
        objective.before_epoch(epoch)
        tops.append(objective.top.weight.clone())
    assert [torch.equal(a, b) for a, b in zip(tops, tops[1:])] == [True, True, False]


def test_labels_are_compact_and_the_last_outputs_are_never_targets(images):
    copies = images[:5].repeat(12, 1, 1, 1)  # five different images, 20 clusters asked for
    objective = make(copies, n_pseudo=20)
    objective.before_epoch(0)
    assert objective.pseudo.unique().tolist() == [0, 1, 2, 3, 4]
    assert objective.top.out_features == 20
    assert objective.log[0] == 5
    objective.pseudo.requires_grad_(False)
    loss = objective(copies.float() / 255, torch.arange(60))["loss"]
    loss.backward()
    assert (objective.top.bias.grad[5:] > 0).all()  # only ever pushed down


def two_optimisers(objective, images, config):
    """The released training loop: a second, fresh and momentum-free SGD for each top layer."""
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    network = [*objective.encoder.parameters(), *objective.fc.parameters()]
    first = torch.optim.SGD(network, momentum=0.9, nesterov=config.nesterov, **settings)
    for epoch in range(config.epochs):
        objective.train()
        objective.before_epoch(epoch)
        second = torch.optim.SGD(objective.top.parameters(), **settings)
        for i in objective.order(len(images)).split(config.batch_size):
            loss = objective(images[i].float().div_(255), i)["loss"]
            first.zero_grad()
            second.zero_grad()
            loss.backward()
            first.step()
            second.step()


def test_one_optimiser_with_a_group_is_the_released_pair_of_optimisers(images):
    ours, theirs = make(images), make(images)
    config = replace(TINY.train, nesterov=True)
    with seeded(3):
        train(ours, images, config)
    with seeded(3):
        two_optimisers(theirs, images, config)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    other = make(images)
    other.parameter_groups = lambda: [{"params": [*other.parameters()]}]  # momentum for all
    with seeded(3):
        train(other, images, config)
    assert not torch.equal(other.top.weight, ours.top.weight)


# ---- colour


def test_sobel_is_in_the_encoder_that_fit_makes(images):
    short = replace(TINY, train=replace(TINY.train, epochs=0))
    assert any(isinstance(m, convnets.Sobel) for m in fit(images, short).modules())
    raw = fit(images, replace(short, sobel=False))
    assert not any(isinstance(m, convnets.Sobel) for m in raw.modules())


# ---- the clustering at the end


def test_predict_is_the_nearest_centroid_of_whitened_features(images):
    config = replace(TINY, train=replace(TINY.train, epochs=1))
    objective = fit(images, config)
    z = extract(objective.features, images)
    rows = whiten(z, 6)  # twice n_clusters
    centroids = objective.clusters.centroids
    distance = torch.cdist(rows, centroids)
    assert torch.equal(predict(objective, images), distance.argmin(1))
    new = torch.flip(images, [3])  # images it has not seen
    centre, directions = whitening(z, 6)
    by_hand = (extract(objective.features, new).double() - centre) @ directions
    by_hand = F.normalize(by_hand, dim=1).float()
    expected = torch.cdist(by_hand, centroids).argmin(1)
    assert torch.equal(predict(objective, new), expected)


def test_fewer_directions_than_the_last_kmeans_wants(images):
    copies = images[:4].repeat(15, 1, 1, 1)
    objective = fit(copies, replace(TINY, n_pseudo=4, train=replace(TINY.train, epochs=1)))
    assert objective.directions.shape == (12, 6)
    assert not objective.directions[:, 3:].any()  # four points span three directions
    assert predict(objective, copies).unique().numel() == 3


# ---- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_pseudo": 1}, "n_pseudo must be at least 2; got 1"),
        ({"pca": 0}, "pca must be at least 1; got 0"),
        ({"reassign": 0}, "reassign must be at least 1; got 0"),
        ({"balance": "yes"}, "balance must be one of sample, weight, none; got 'yes'"),
        ({"train": TrainConfig(optimizer="adam")}, "train.optimizer must be sgd; got 'adam'"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_too_many_pseudo_clusters_are_refused(images):
    with pytest.raises(ValueError, match="n_pseudo must be at most 60 for 60 images; got 61"):
        fit(images, replace(TINY, n_pseudo=61))


def test_paper_values():
    paper = recipes.paper
    assert (paper.encoder, paper.n_pseudo, paper.pca, paper.reassign) == (
        "alexnet_bn",
        10_000,
        256,
        1,
    )
    assert paper.sobel
    assert (paper.view.scale, paper.view.flip) == ((0.08, 1), 0.5)
    assert paper.train == TrainConfig(
        epochs=500, batch_size=256, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-5
    )
