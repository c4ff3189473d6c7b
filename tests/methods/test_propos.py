"""ProPos by hand, by loop, in several processes, and what its E-step and M-step promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.methods import byol, propos
from dcl.methods.propos import Config, ProPos, fit, prototype_scattering, prototypes
from dcl.recipes import propos as recipes
from dcl.runtime import dist
from dcl.train import extract, seeded, train
from dcl.views import View
from processes import in_processes

UNDRAWN = {"noise": 0.0}  # of a step: see tests/test_together.py
SGD = TrainConfig(epochs=3, batch_size=4, lr=0.05, momentum=0.0)
TINY = Config(
    n_clusters=3,
    hidden=6,
    dim=4,
    view=View(),  # not random
    momentum=0.75,
    predictor_rate=3.0,
    scattering=0.4,
    temperature=0.5,
    noise=0.0,
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
    """With a target that is not the online network."""
    with seeded(0):
        objective = ProPos(images(n), replace(TINY, **changes), Flat())
    with torch.no_grad():
        for p in objective.target.parameters():
            p.add_(0.3 * torch.arange(p.numel()).view_as(p).sin())
        objective.target[0].norm.running_mean.add_(0.2)
    return objective


def random(*shape, seed=0):
    with seeded(seed):
        return torch.randn(*shape, dtype=torch.float64)


# -- prototypes --------------------------------------------------------------------------------


def test_prototypes_by_hand():
    z = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0], [0.0, -1.0]])
    mu, present = prototypes(z, torch.tensor([0, 0, 2, 2]), 4)
    root = math.sqrt(0.5)
    wanted = torch.tensor([[root, root], [0.0, 0.0], [-root, -root], [0.0, 0.0]])
    torch.testing.assert_close(mu, wanted)
    assert present.tolist() == [True, False, True, False]


def loop_prototypes(z, labels, k):
    found = []
    for c in range(k):
        total = torch.zeros(z.shape[1], dtype=z.dtype)
        for row, y in zip(z, labels):
            if y == c:
                total = total + row / row.norm()
        found.append(total / total.norm() if c in labels else total)
    return torch.stack(found)


@pytest.mark.parametrize("b, k, dim", [(7, 3, 4), (2, 5, 3), (9, 2, 2)])
def test_prototypes_are_the_formula_in_value_and_gradient(b, k, dim):
    z, weight = random(b, dim).requires_grad_(), random(k, dim, seed=1)
    with seeded(b):
        labels = torch.randint(k, (b,))
    mu, slow = (f(z, labels, k) for f in (lambda *a: prototypes(*a)[0], loop_prototypes))
    torch.testing.assert_close(mu, slow)
    grads = (torch.autograd.grad((m * weight).sum(), z)[0] for m in (mu, slow))
    torch.testing.assert_close(*grads)


def test_prototypes_do_not_depend_on_lengths_or_order():
    z, labels = random(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    mu, _ = prototypes(z, labels, 3)
    order = torch.tensor([3, 1, 0, 7, 6, 2, 5, 4])
    scale = random(8, 1, seed=2).abs() + 0.1
    torch.testing.assert_close(prototypes((scale * z)[order], labels[order], 3)[0], mu)
    relabelled = torch.tensor([2, 0, 1])[labels]
    torch.testing.assert_close(prototypes(z, relabelled, 3)[0][[2, 0, 1]], mu)


# -- scattering --------------------------------------------------------------------------------

EVERY = torch.ones(2, dtype=torch.bool)


def test_scattering_by_hand():
    """The spec's number, ln(1 + e^-2): two prototypes at a right angle."""
    mu = torch.eye(2)
    assert prototype_scattering(mu, mu, EVERY, 0.5).item() == pytest.approx(0.126928, abs=1e-6)
    one = prototype_scattering(mu, mu, torch.tensor([True, False]), 0.5)
    assert one.item() == pytest.approx(0, abs=1e-7)  # nothing to be told from
    # the target of the first is turned to the second: -0 + ln(1 + 1), and as before
    turned = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    by_hand = (math.log(2) + 0.126928) / 2
    assert prototype_scattering(mu, turned, EVERY, 0.5).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_others_are_of_the_online_network():
    """Where the target's other prototypes are plays no part."""
    mu = F.normalize(torch.tensor([[1.0, 0.2], [0.3, 1.0]]), dim=1)
    target = mu.flip(0)
    value = prototype_scattering(mu, target, EVERY, 0.5).item()
    cos = float(mu[0] @ mu[1])
    assert value == pytest.approx(math.log(2), abs=1e-6)  # both logits are cos / .5
    assert cos < 0.6


@pytest.mark.parametrize("k", [2, 10])
def test_scattering_of_prototypes_that_are_alike_is_ln_k(k):
    mu = F.normalize(torch.ones(k, 3), dim=1)
    value = prototype_scattering(mu, mu, torch.ones(k, dtype=torch.bool), 0.2).item()
    assert value == pytest.approx(math.log(k), abs=1e-5)


def loop_scattering(mu, target, present, tau):
    total, count = 0, 0
    for k in range(len(mu)):
        if present[k]:
            own = (mu[k] @ target[k] / tau).exp()
            rest = [(mu[k] @ mu[j] / tau).exp() for j in range(len(mu)) if j != k and present[j]]
            total, count = total - (own / (own + sum(rest))).log(), count + 1
    return total / count


@pytest.mark.parametrize("gone", [[], [1], [0, 2]])
def test_scattering_is_the_formula_in_value_and_gradient(gone):
    mu, target = (F.normalize(random(4, 3, seed=s), dim=1).requires_grad_() for s in (0, 1))
    present = torch.ones(4, dtype=torch.bool)
    present[gone] = False
    loss, slow = (f(mu, target, present, 0.3) for f in (prototype_scattering, loop_scattering))
    torch.testing.assert_close(loss, slow)
    for a, b in zip(*(torch.autograd.grad(one, (mu, target)) for one in (loss, slow))):
        torch.testing.assert_close(a, b)
        assert not a[gone].any()
    assert torch.autograd.gradcheck(lambda m: prototype_scattering(m, target, present, 0.3), mu)


def test_an_empty_cluster_gives_no_nan():
    z = random(5, 3).requires_grad_()
    mu, present = prototypes(z, torch.tensor([0, 0, 3, 3, 0]), 6)
    prototype_scattering(mu, mu.detach(), present, 0.1).backward()
    assert z.grad.isfinite().all() and z.grad.any()
    few, has = prototypes(z.detach(), torch.tensor([0, 0, 1, 1, 0]), 2)  # and counts for nothing
    a, b = (prototype_scattering(m, m, p, 0.1) for m, p in ((mu, present), (few, has)))
    torch.testing.assert_close(a, b)


# -- several processes -------------------------------------------------------------------------

Z, Y = random(7, 3, seed=5), torch.tensor([0, 1, 1, 3, 0, 4, 3])


def shared(rank):
    """Loss and gradient of a part of the rows; cluster 4 is in one process only."""
    own = slice(0, 3) if rank == 0 else slice(3, 7)
    z = Z[own].clone().requires_grad_()
    mu, present = prototypes(z, Y[own], 5)
    target, _ = prototypes(z.detach() + 0.1, Y[own], 5)
    loss = prototype_scattering(mu, target, present, 0.5)
    loss.backward()
    return {"loss": loss.detach(), "grad": z.grad / dist.world_size(), "present": present}


def test_two_processes_find_the_prototypes_of_the_whole_batch(tmp_path):
    many = in_processes(shared, (), tmp_path)
    z = Z.clone().requires_grad_()
    mu, present = prototypes(z, Y, 5)
    loss = prototype_scattering(mu, prototypes(Z + 0.1, Y, 5)[0], present, 0.5)
    loss.backward()
    assert present.tolist() == [True, True, False, True, True]
    for found in many:
        torch.testing.assert_close(found["loss"], loss.detach())
        assert torch.equal(found["present"], present)
    # backward sums over processes, which the loop then averages: lambda means what it says
    torch.testing.assert_close(torch.cat([found["grad"] for found in many]), z.grad)


# -- E-step ------------------------------------------------------------------------------------


def e_step(epoch=1, **changes):
    objective = make(**changes)
    objective.epoch = epoch
    objective.train()
    with seeded(1):
        objective.before_epoch(epoch)
    return objective


def test_the_e_step_clusters_the_targets_embeddings_in_evaluation_mode():
    objective = e_step()
    assert objective.training and objective.target.training  # as they were
    objective.eval()
    z = objective.embed(images().float() / 255)
    with seeded(1):
        wanted = kmeans(z, 3, n_init=10, spherical=True).labels
    assert torch.equal(objective.pseudo, wanted) and len(wanted.unique()) == 3
    assert objective.pseudo.dtype == torch.int64


@pytest.mark.parametrize(("warmup", "runs"), [(0, 3), (1, 2), (2, 1), (3, 0)])
def test_every_epoch_after_the_warm_up_clusters_anew(warmup, runs, monkeypatch):
    config, calls, rows = replace(TINY, warmup=warmup, restarts=4, init="random"), [], []

    def counted(x, k, **how):
        calls.append((len(x), k, how))
        return kmeans(x, k, **how)

    monkeypatch.setattr(propos, "kmeans", counted)
    with seeded(2):
        objective = ProPos(images(), config, Flat())
        train(objective, images(), SGD, monitor=lambda s, e, o, losses: rows.append(losses))
    assert calls == [(12, 3, {"n_init": 4, "spherical": True, "init": "random"})] * runs
    assert ["scatter" in losses for losses in rows] == [epoch >= warmup for epoch in range(3)]
    assert objective.pseudo.any() == (runs > 0)


def test_pseudo_labels_stay_out_of_published_weights():
    assert ProPos.transient == ("pseudo",) and "pseudo" in make().state_dict()


# -- M-step ------------------------------------------------------------------------------------


def test_forward_is_the_loss_of_the_paper_and_labels_follow_the_image():
    objective, i = e_step(view=View(rotate=90)), torch.tensor([7, 2, 9, 4])
    objective.pseudo.copy_(torch.arange(12) % 3)  # of these images 1, 2, 0, 1
    views = []
    objective.encoder.register_forward_hook(lambda _m, args, _o: views.append(args[0]))
    losses = objective(images()[i].float() / 255, i)
    fresh = e_step()
    za, zb = (fresh.online()(view) for view in views)
    ta, tb = (F.normalize(fresh.target(view), dim=1) for view in views)
    align = (byol.byol_loss(fresh.predictor(za), tb) + byol.byol_loss(fresh.predictor(zb), ta)) / 2
    torch.testing.assert_close(losses["align"], align)
    y, every = [1, 2, 0, 1], [True] * 3
    a, b, a2, b2 = (loop_prototypes(z, y, 3) for z in (za, zb, ta, tb))
    scatter = (loop_scattering(a, b2, every, 0.5) + loop_scattering(b, a2, every, 0.5)) / 2
    torch.testing.assert_close(losses["scatter"], scatter)
    torch.testing.assert_close(losses["loss"], align + 0.4 * scatter)
    assert objective.chances() == {"scatter": pytest.approx(math.log(3))}


def test_no_gradient_reaches_the_target():
    objective = e_step()
    objective(images()[:4].float() / 255, torch.arange(4))["scatter"].backward()
    for name, p in objective.named_parameters():
        scattered = name.startswith(("encoder.", "head."))
        assert (p.grad is not None) == scattered, name


def test_noise_is_added_to_the_projection_as_it_is(monkeypatch):
    """Before the predictor, to what is not scaled to length 1; not to what makes prototypes."""
    quiet, noisy = e_step(), e_step(noise=0.5)
    inputs, drawn, draw = {}, [], torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda z: drawn.append(draw(z)) or drawn[-1])
    for name, objective in (("quiet", quiet), ("noisy", noisy)):
        seen = inputs[name] = []
        objective.predictor.register_forward_hook(
            lambda _m, args, _o, seen=seen: seen.append(args[0].detach())
        )
    x, i = images().float() / 255, torch.arange(12)
    losses, plain = noisy(x, i), quiet(x, i)
    assert len(drawn) == 2 and not torch.equal(*drawn)
    for k in range(2):
        torch.testing.assert_close(inputs["noisy"][k] - inputs["quiet"][k], 0.5 * drawn[k])
    assert losses["align"] != plain["align"]
    torch.testing.assert_close(losses["scatter"], plain["scatter"])


def test_the_warm_up_is_byol():
    warm = e_step(epoch=0, noise=0.5)
    assert not warm.pseudo.any() and warm.chances() == {}
    x = images()[:4].float() / 255
    losses = warm(x, torch.arange(4))
    wanted = byol.BYOL.forward(make(), x, torch.arange(4))
    assert losses.keys() == {"loss", "align"} and losses["loss"] == losses["align"]
    assert losses["loss"] == wanted["loss"]


def test_without_scattering_and_noise_it_is_byol_to_the_bit():
    config = replace(TINY, scattering=0.0, view=View(rotate=20))
    known = {k: v for k, v in vars(config).items() if k in byol.Config.__dataclass_fields__}
    mine = fit(images(), config, encoder=Flat()).state_dict()
    theirs = byol.fit(images(), byol.Config(**known), encoder=Flat()).state_dict()
    assert mine.keys() - theirs.keys() == {"pseudo"}
    for name, value in theirs.items():
        assert torch.equal(mine[name], value), name


def test_scattering_pushes_prototypes_apart():
    """Of the same images with the same labels: the larger lambda, the smaller the products."""
    found = []
    for weight in (0.0, 5.0):
        config = replace(TINY, scattering=weight, warmup=0, train=replace(SGD, epochs=30))
        with seeded(6):
            objective = ProPos(images(48), config, Flat())
            objective.pseudo.copy_(torch.arange(48) % 3)
            objective.before_epoch = lambda epoch: None
            train(objective, images(48), config.train)
        z = extract(objective.embed, images(48))
        mu, _ = prototypes(z, torch.arange(48) % 3, 3)
        found.append(float((mu @ mu.T).sum() - 3) / 6)
    assert found[1] < found[0] - 0.2


def test_clusters_are_those_of_the_target():
    with seeded(4):
        model = fit(images(), TINY, encoder=Flat())
    z = model.embed(images().float() / 255)
    torch.testing.assert_close(z, F.normalize(model.target(images().float() / 255), dim=1))
    assert torch.equal(
        model.predict(images().float() / 255), (z @ model.clusters.centroids.T).argmax(1)
    )


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"scattering": -1.0}, "scattering must be at least 0; got -1.0"),
        ({"noise": -0.1}, "noise must be at least 0; got -0.1"),
        ({"warmup": -1}, "warmup must be at least 0; got -1"),
        ({"restarts": 0}, "restarts must be at least 1; got 0"),
        ({"init": "pca"}, r"init must be one of k-means\+\+, random; got 'pca'"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_the_released_settings():
    """Lambda is written as .1 there, of whose gradient four processes keep a quarter."""
    paper = recipes.paper
    assert (paper.scattering, paper.temperature, paper.noise) == (0.1 / 4, 0.5, 0.001)
    assert (paper.warmup, paper.restarts, paper.starts) == (50, 10, 10)
    assert paper.init == "k-means++"
    assert (paper.momentum, paper.rises) == (0.996, False)
    assert paper.train == byol.Config().train and paper.view == byol.Config().view
