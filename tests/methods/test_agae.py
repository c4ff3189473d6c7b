"""AGAE by hand, by loop, and who learns from which loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from dcl.app.clusters import Clusters, fitted
from dcl.cluster.ensemble import coassociation
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import agae
from dcl.methods.agae import AGAE, Config, fit, graph_loss, partitions, prior
from dcl.methods.dec import student_t, target_distribution
from dcl.nets import graph as graphs
from dcl.nets.graph import Graph, normalized
from dcl.train import extract, predict, seeded, train

UNDRAWN = {"variational": False}  # what a step draws is noise
TINY = Config(
    n_clusters=3,
    partitions=8,
    hidden=12,
    dim=4,
    refresh=2,
    train=TrainConfig(4, 20, "adam", 1e-2),
)


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(90).images


def made(images, **changes):
    with seeded(1):
        objective = AGAE(images, replace(TINY, **changes))
        objective.connect(images)
        objective.before_epoch(0)
    return objective


# ---- the graph


def test_partitions_have_from_k_to_the_root_of_n_clusters(images):
    x = images.flatten(1).float()
    with seeded(0):
        found = partitions(x, 3, 40)
    sizes = {int(row.max()) + 1 for row in found}
    assert found.shape == (40, 90) and sizes == {*range(3, 10)}
    with seeded(0):
        assert {int(row.max()) + 1 for row in partitions(x[:20], 5, 10)} == {5}  # few images


def slow_normalized(s):
    n = len(s)
    out = torch.zeros_like(s)
    for i in range(n):
        for j in range(n):
            out[i, j] = s[i, j] / math.sqrt(sum(s[i]) * sum(s[j]))
    return out


def test_links_are_divided_by_the_roots_of_both_sums():
    with seeded(0):
        s = torch.rand(7, 7, dtype=torch.float64)
    s = (s + s.T).fill_diagonal_(1)
    s[0, 1:] = s[1:, 0] = 0  # one that is alone
    found = normalized(s)
    assert_close(found, slow_normalized(s))
    assert found[0, 0] == 1
    assert_close(found, found.T)
    assert_close(normalized(torch.ones(4, 4)), torch.full((4, 4), 0.25))


def test_the_graph_is_the_ensembles_above_the_threshold(images):
    for threshold in (0.0, 0.5, 1.0):
        objective = made(images, threshold=threshold)
        s = coassociation(objective.labelings)
        kept = torch.where(s >= threshold, s, 0.0)
        assert_close(objective.encoder.links, normalized(kept))
        assert_close(objective.encoder.share, (kept > 0).float().mean())
        x = images.flatten(1).float() / 255
        scaled = x / x.square().mean().sqrt()
        assert_close(objective.encoder.smooth, normalized(kept) @ scaled)
    assert objective.encoder.share < 0.3


def test_one_partition_is_a_graph_of_cliques(images):
    objective = made(images, partitions=1)
    own = objective.labelings[0]
    same = own[:, None] == own
    assert_close(objective.encoder.links, same / same.sum(1, keepdim=True))
    mu = objective.encoder.encode()[0]
    for k in own.unique():  # two convolutions leave one code a cluster
        assert_close(mu[own == k], mu[own == k][:1].expand(int((own == k).sum()), -1))


def test_the_encoder_is_two_convolutions(images):
    objective = made(images)
    g, w = objective.encoder, objective.encoder.hidden.weight.T
    x = images.flatten(1).float() / 255
    x = x / x.square().mean().sqrt()
    h = (g.links @ x @ w).clamp(min=0)
    mu, log_sigma = g.encode()
    assert_close(mu, g.links @ h @ g.mu.weight.T)
    assert_close(log_sigma, g.links @ h @ g.log_sigma.weight.T)
    one = sum(g.links[5, j] * (h[j] @ g.mu.weight.T) for j in range(90))  # by its neighbours
    assert_close(mu[5], one)


# ---- the losses


def slow_loss(logits, links, share):
    """VGAE's: links weigh (1 - share) / share, and all is scaled by 1 / (2 (1 - share))."""
    total = 0
    for row, linked in zip(logits, links):
        for score, link in zip(row, linked):
            p = 1 / (1 + (-score).exp())
            total = total - ((1 - share) / share * p.log() if link else (1 - p).log())
    return total / (2 * (1 - share)) / logits.numel()


@pytest.mark.parametrize("shape", [(3, 7), (1, 5), (6, 6)])
def test_loss_is_the_slow_loop(shape):
    with seeded(sum(shape)):
        logits = 2 * torch.randn(*shape, dtype=torch.float64)
        links = torch.rand(*shape) < 0.3
    a, b = (logits.clone().requires_grad_() for _ in range(2))
    share = torch.tensor(0.2, dtype=torch.float64)
    ours, loop = graph_loss(a, links, share), slow_loss(b, links, share)
    assert_close(ours, loop)
    assert_close(torch.autograd.grad(ours, a)[0], torch.autograd.grad(loop, b)[0])


def test_loss_of_who_knows_nothing_is_ln_2_and_half_of_it_the_links():
    links = torch.zeros(4, 10, dtype=torch.bool)
    links[:, :2] = True
    share = links.float().mean()
    zeros = torch.zeros(4, 10)
    assert graph_loss(zeros, links, share) == pytest.approx(math.log(2))
    right = torch.where(links, 50.0, 0.0)
    assert graph_loss(right, links, share) == pytest.approx(math.log(2) / 2)
    full = torch.ones(4, 10, dtype=torch.bool)  # all linked: no gap to divide by
    assert graph_loss(zeros, full, full.float().mean()) == pytest.approx(math.log(2) / 2)


def test_samples_are_centres_by_the_sharpened_assignment():
    with seeded(0):
        mu, centres = torch.randn(11, 3), torch.randn(4, 3)
    p = target_distribution(student_t(mu, centres))
    assert_close(
        prior(mu, centres), torch.stack([sum(r[k] * centres[k] for k in range(4)) for r in p])
    )
    near = prior(centres + 1e-3, centres)
    assert (near - centres).norm() < (student_t(centres, centres) @ centres - centres).norm()


def test_a_step_is_the_algorithm(images):
    objective = made(images, variational=False, adversary=0.3)
    i = torch.tensor([3, 50, 7, 7, 88])
    losses = objective(images[i].float() / 255, i)
    g = objective.encoder
    mu = g.encode()[0]
    wanted = graph_loss(mu[i] @ mu.T, g.links[i] > 0, g.share)
    taken, real = objective.critic(mu[i]), objective.critic(objective.prior[i])
    ones, zeros = torch.ones_like(taken), torch.zeros_like(taken)
    bce = F.binary_cross_entropy_with_logits
    assert_close(losses["reconstruction"], wanted)
    assert_close(losses["adversary"], bce(taken, ones))
    assert_close(losses["critic"], (bce(real, ones) + bce(taken, zeros)) / 2)
    assert objective.chances() == {"reconstruction": math.log(2)}
    total = wanted + 0.3 * losses["adversary"] + losses["critic"]
    assert_close(losses["loss"], total)


def test_encoder_and_critic_each_learn_from_their_own_loss(images):
    objective = made(images, variational=False, adversary=0.3)
    i = torch.arange(0, 90, 7)
    losses = objective(images[i].float() / 255, i)
    net, critic = [*objective.encoder.parameters()], [*objective.critic.parameters()]
    net = [p for p in net if p is not objective.encoder.log_sigma.weight]  # not used without noise
    found = torch.autograd.grad(losses["loss"], net + critic, retain_graph=True)
    mu = objective.encoder.encode()[0]
    deceived = 0.3 * F.softplus(-objective.critic(mu[i])).mean()
    own = graph_loss(mu[i] @ mu.T, objective.encoder.links[i] > 0, objective.encoder.share)
    for got, wanted in zip(found, torch.autograd.grad(own + deceived, net)):
        assert_close(got, wanted)
    for got, wanted in zip(found[len(net) :], torch.autograd.grad(losses["critic"], critic)):
        assert_close(got, wanted)
    first, second = objective.parameter_groups()
    assert second["lr_scale"] == 0.1 and {*second["params"]} == {*critic}
    assert {*first["params"]} == {*objective.encoder.parameters()}


def test_noise_has_the_deviation_sigma(images, monkeypatch):
    objective = made(images, adversary=0.0)
    i = torch.arange(90)
    mu, log_sigma = objective.encoder.encode()
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    z = mu + log_sigma.exp()
    g = objective.encoder
    losses = objective(images.float() / 255, i)
    assert_close(losses["loss"], graph_loss(z @ z.T, g.links > 0, g.share))
    assert [*losses] == ["loss"] and objective.chances() == {"loss": math.log(2)}


def test_the_prior_follows_the_partition_every_few_epochs(images):
    objective = made(images)
    before = objective.prior.clone()
    with torch.no_grad():
        objective.encoder.mu.weight.mul_(-2)
    objective.before_epoch(1)
    assert torch.equal(objective.prior, before)
    with seeded(5):
        objective.before_epoch(2)
    mu = objective.encoder.encode()[0].detach()
    with seeded(5):
        centres = kmeans(mu, 3).centroids
    assert_close(objective.prior, prior(mu, centres))
    without = made(images, adversary=0.0)
    assert not without.prior.any()


def test_without_the_adversary_the_critic_stays_what_it_was(images):
    objective = made(images, adversary=0.0)
    before = [p.clone() for p in objective.critic.parameters()]
    train(objective, images, TINY.train)
    assert all(torch.equal(a, b) for a, b in zip(before, objective.critic.parameters()))
    assert objective.encoder.mu.weight.grad is None


# ---- who is not in the graph


@pytest.fixture(scope="module")
def trained(images):
    return fit(images, TINY)


def test_images_are_their_own_nodes_and_new_ones_those_nearest(images, trained):
    mu = trained.encoder.encode()[0].detach()
    z = extract(trained.embed, images)
    assert torch.equal(z, mu)
    q = student_t(mu, trained.clusters.centroids)
    assert torch.equal(predict(trained, images), q.argmax(1))
    new = load("digits").images[1000:1010]
    away = (new[:, None].float() - images.float()).flatten(2).norm(dim=2)
    assert torch.equal(extract(trained.embed, new), mu[away.argmin(1)])
    twin = fit(images[[*range(90), 4]], replace(TINY, train=replace(TINY.train, epochs=1)))
    assert_close(*twin.encoder.encode()[0][[4, 90]])  # identical images, one code


def test_while_training_codes_are_those_of_the_last_step(images):
    objective = made(images)
    i = torch.arange(20)
    objective(images[i].float() / 255, i)
    objective.after_step()
    assert_close(objective.encoder.codes, objective.encoder.encode()[0].detach())


def test_vectors_far_from_the_origin_find_themselves():
    with seeded(0):
        x = 1e4 + torch.randn(60, 5)
    objective = fit(x, TINY)
    assert torch.equal(extract(objective.embed, x), objective.encoder.codes)


def test_saved_clusters_know_their_nodes(images, trained, tmp_path):
    clusters, assignment = fitted(trained, "agae", images)
    clusters.save(tmp_path / "a.safetensors")
    again = Clusters.load(tmp_path / "a.safetensors")
    assert len(again.model.encoder.nodes) == 90
    new = load("digits").images[500:600]
    assert torch.equal(again.assign(images).clusters, assignment.clusters)
    assert torch.equal(again.assign(new).clusters, clusters.assign(new).clusters)


def test_features_of_an_encoder_are_used_and_not_trained(images):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 6))
    net.out_dim = 6
    objective = fit(images, TINY, encoder=net)
    assert_close(objective.encoder.nodes, net(images.float() / 255).detach())
    assert torch.equal(objective.encoder.features[1].weight, net[1].weight)


def test_more_images_than_the_graph_can_hold_are_refused(images, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST", 80)
    with pytest.raises(ValueError, match="images must be at most 80, for a graph of all; got 90"):
        fit(images, TINY)
    assert Graph(images[:80], 4, 2).links.shape == (80, 80)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"partitions": 0}, "partitions must be at least 1; got 0"),
        ({"threshold": 1.1}, "threshold must be at least 0"),
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"adversary": -1.0}, "adversary must be at least 0"),
        ({"refresh": 0}, "refresh must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_file_says_that_it_is_a_reconstruction():
    assert "a reconstruction" in agae.__doc__.splitlines()[0]
