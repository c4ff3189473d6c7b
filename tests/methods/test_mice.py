"""MiCE by hand, by loop, on shapes that do not fit, and what its steps promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.centroids import simplex
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods import mice as method
from dcl.methods import simclr
from dcl.methods.mice import Config, MiCE, fit, log_phi, mice_loss
from dcl.recipes import mice as recipes
from dcl.train import extract, seeded, train
from dcl.views import View

SGD = TrainConfig(epochs=2, batch_size=4, lr=0.1, momentum=0.0)
TINY = Config(
    n_clusters=3,
    dim=4,
    temperature=0.5,
    gate_temperature=0.3,
    queue_length=9,
    momentum=0.75,
    view=View(),  # not random
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
    """A MiCE that tells images apart in eval mode, too, and whose key network is not the query."""
    with seeded(0):
        objective = MiCE(images(n), replace(TINY, **changes), Flat())
    quarters = F.adaptive_avg_pool2d(images(n).float() / 255, 2).flatten(1)
    with torch.no_grad():
        for norm in (objective.encoder.norm, objective.key[0].norm):
            norm.running_mean.copy_(quarters.mean(0))
            norm.running_var.copy_(quarters.var(0))
        for p in objective.key.parameters():
            p.add_(0.3 * torch.arange(p.numel()).view_as(p).sin())
        objective.key[0].norm.running_mean.add_(0.2)
    return objective


# -- the loss ----------------------------------------------------------------------------------


def loop_phi(f, v, mu, queue, tau):
    """The formula, image by image and expert by expert."""
    rows = []
    for b in range(len(f)):
        row = []
        for k in range(len(mu)):
            query = f[b, k] + mu[k]
            own = torch.exp(sum(v[b, k] * query) / tau)
            others = [torch.exp(sum(u * query) / tau) for u in queue[k]]
            row.append(own / (own + sum(others)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def loop_pi(g, w, kappa):
    scores = torch.stack([torch.stack([torch.exp(sum(a * c) / kappa) for c in w]) for a in g])
    return scores / scores.sum(1, keepdim=True)


def loop_loss(pi, phi, q=None):
    """Minus the bound with q constant, term by term; its gradient is that of the exact loss."""
    total = 0.0
    for b in range(len(pi)):
        mass = pi[b] * phi[b]
        posterior = (mass / mass.sum()).detach() if q is None else q[b]
        for k in range(len(mass)):
            if posterior[k] > 0:
                bound = torch.log(pi[b, k]) + torch.log(phi[b, k]) - torch.log(posterior[k])
                total = total - posterior[k] * bound / len(pi)
    return total


def gradients(loss, *parts):
    return torch.autograd.grad(loss, parts, retain_graph=True)


def drawn(b, k, d, nu):
    with seeded(b + k):
        unit = [(b, k, d), (b, k, d), (k, d), (k, nu, d), (b, d + k)]
        parts = [F.normalize(torch.randn(s, dtype=torch.float64), dim=-1) for s in unit]
    return *parts, simplex(k, d + k).double()


def ours(f, v, mu, queue, g, w):
    log_pi = (g @ w.T / 0.4).log_softmax(1)
    return log_pi, log_phi(f, v, mu, queue, 0.3)


@pytest.mark.parametrize("b, k, d, nu", [(5, 3, 4, 7), (3, 8, 2, 5), (1, 2, 3, 1), (4, 3, 2, 0)])
def test_loss_and_gradient_are_those_of_the_loop(b, k, d, nu):
    f, v, mu, queue, g, w = drawn(b, k, d, nu)
    given = F.one_hot(torch.arange(b) % 2, k).double()  # cluster 2 is empty
    for x in (f, mu, g):
        x.requires_grad_()
    log_pi, phi = ours(f, v, mu, queue, g, w)
    pi_slow, phi_slow = loop_pi(g, w, 0.4), loop_phi(f, v, mu, queue, 0.3)
    torch.testing.assert_close(log_pi.exp(), pi_slow)
    torch.testing.assert_close(phi.exp(), phi_slow)
    for q in (None, given):
        found = mice_loss(log_pi, phi, (log_pi + phi).softmax(1) if q is None else q)
        wanted = loop_loss(pi_slow, phi_slow, q)
        torch.testing.assert_close(found["loss"], wanted)
        for one, slow in zip(*(gradients(x, f, mu, g) for x in (found["loss"], wanted))):
            torch.testing.assert_close(one, slow)
        mass = pi_slow * phi_slow
        p = mass / mass.sum(1, keepdim=True) if q is None else q
        torch.testing.assert_close(found["gate"], -(p * pi_slow.log()).sum(1).mean())
        torch.testing.assert_close(found["experts"], -(p * phi_slow.log()).sum(1).mean())
        entropy = -torch.xlogy(p, p).sum(1).mean()
        torch.testing.assert_close(found["entropy"], entropy)


def evidence(log_pi, phi):
    return -(log_pi + phi).logsumexp(1).mean()


def exact(log_pi, phi):
    return mice_loss(log_pi, phi, (log_pi + phi).softmax(1))["loss"]


def test_with_the_posterior_the_bound_is_the_evidence_and_with_another_it_is_not():
    log_pi = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]).log()
    phi = torch.tensor([[0.2, 0.4, 0.1], [0.5, 0.5, 0.01]]).log()
    by_hand = -(math.log(0.1 + 0.1 + 0.025) + math.log(0.05 + 0.05 + 0.008)) / 2
    assert exact(log_pi, phi).item() == pytest.approx(by_hand)
    assert mice_loss(log_pi, phi, log_pi.exp())["loss"] > by_hand + 0.1
    f, v, mu, queue, g, w = drawn(5, 3, 4, 7)
    for x in (f, mu, g):
        x.requires_grad_()
    found = [gradients(loss(*ours(f, v, mu, queue, g, w)), f, mu, g) for loss in (exact, evidence)]
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_gradient_in_float64():
    f, v, mu, queue, g, w = drawn(4, 3, 2, 5)

    def loss(f, mu, g):  # q moves with them, but not its gradient: the bound touches the evidence
        return exact(*ours(f, v, mu, queue, g, w))

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in (f, mu, g)])


def test_equal_images_and_sharp_temperatures_stay_finite():
    f, v, mu, queue, g, w = (x.float() for x in drawn(4, 3, 2, 5))
    f, v, g = f[:1].expand(4, -1, -1), f[:1].expand(4, -1, -1), g[:1].expand(4, -1)
    f = f.clone().requires_grad_()
    for tau in (1.0, 1e-3):
        loss = exact((g @ w.T / tau).log_softmax(1), log_phi(f, v, mu, queue, tau))
        assert loss.isfinite() and torch.autograd.grad(loss, f)[0].isfinite().all()


def test_the_gate_has_room_for_the_corners():
    assert make(n_clusters=8).gate.out_features == 7  # more than dim


# -- a step ------------------------------------------------------------------------------------


def parts_by_loop(objective, z, gate_z, v):
    c = objective.config
    f = F.normalize(objective.head[0](z).view(-1, c.n_clusters, c.dim), dim=2)
    g, mu = F.normalize(objective.gate(gate_z), dim=1), F.normalize(objective.prototypes, dim=1)
    pi = loop_pi(g, objective.corners, c.gate_temperature)
    return pi, loop_phi(f, v, mu, objective.queue.rows, c.temperature)


def test_forward_is_the_algorithm_and_trains_all_but_the_keys():
    objective = make(view=View(rotate=60)).train()
    with torch.no_grad():
        objective.prototypes.mul_(3)  # only the direction counts
    x, i, seen = images().float() / 255, torch.tensor([7, 2, 9, 4]), []
    objective.encoder.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    objective.key[0].register_forward_hook(lambda _m, args, _o: seen.append((args[0], None)))
    losses = objective(x[i], i)
    (views, z), (key_view, _) = seen  # the key is not the encoder
    assert len(views) == 8 and len(key_view) == 4
    for a, b in ((views[:4], views[4:]), (views[:4], key_view), (views[4:], key_view)):
        assert not torch.equal(a, b)
    v = F.normalize(objective.key(key_view).detach(), dim=2)
    torch.testing.assert_close(objective.latest, v.transpose(0, 1))
    pi, phi = parts_by_loop(objective, z[:4], z[4:], v)
    torch.testing.assert_close(losses["loss"], loop_loss(pi, phi))
    losses["loss"].backward()
    for name, p in objective.named_parameters():
        assert (p.grad is None) == name.startswith("key."), name
        assert p.grad is None or p.grad.isfinite().all(), name
    chances = {"gate": math.log(3), "experts": math.log(9)}
    assert objective.chances() == pytest.approx(chances)


def test_after_a_step_the_keys_are_queued_and_summed_for_their_cluster():
    objective, x, i = make().train(), images().float() / 255, torch.arange(4)
    before, bias = objective.queue.rows.clone(), objective.key[1][0].bias.clone()
    objective(x[i], i)
    keys, chosen = objective.latest, objective.chosen
    assert before.shape == (3, 8, 4) and torch.equal(objective.queue.rows, before)
    objective.after_step()
    assert torch.equal(objective.queue.rows, torch.cat([keys, before[:, :4]], 1))
    assert not torch.equal(objective.key[1][0].bias, bias)
    twice = objective.sums.clone()
    for k in range(3):
        own = sum((keys[k, b] for b in range(4) if chosen[b] == k), torch.zeros(4))
        torch.testing.assert_close(twice[k], own)
    objective.after_step()
    torch.testing.assert_close(objective.sums, 2 * twice)


def test_the_chosen_cluster_is_the_most_probable():
    objective, x, i = make().eval(), images().float() / 255, torch.arange(12)
    with torch.no_grad():
        objective(x, i)
        z = objective.encoder(x)
        pi, phi = parts_by_loop(objective, z, z, objective.embed_key(x))
        p = objective.predict_proba(x)
    torch.testing.assert_close(p, pi * phi / (pi * phi).sum(1, keepdim=True))
    assert torch.equal(objective.chosen, p.argmax(1)) and len(p.argmax(1).unique()) > 1
    assert torch.equal(objective.predict(x), p.argmax(1))


def test_predictions_change_nothing_and_need_no_batch():
    objective, x = make().eval(), images().float() / 255
    state = {k: v.clone() for k, v in objective.state_dict().items() if torch.is_tensor(v)}
    p = objective.predict_proba(x)
    torch.testing.assert_close(torch.cat([objective.predict_proba(one[None]) for one in x]), p)
    assert all(torch.equal(objective.state_dict()[k], v) for k, v in state.items())


def test_prototypes_become_the_direction_of_their_members_and_stay_without():
    objective = make()
    before = objective.prototypes.detach().clone()
    objective.sums.copy_(torch.tensor([[0, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, -2.0]]))
    objective.before_epoch(1)
    wanted = torch.stack([torch.tensor([0, 0.6, 0.8, 0]), before[1], torch.tensor([0, 0, 0, -1.0])])
    torch.testing.assert_close(objective.prototypes.detach(), wanted)
    assert objective.prototypes.requires_grad and not objective.sums.any()
    objective.before_epoch(2)
    torch.testing.assert_close(objective.prototypes.detach(), wanted)


@pytest.mark.parametrize("refresh", [True, False])
def test_the_refresh_follows_every_epoch_the_last_one_too(refresh):
    seen = []
    with seeded(1):
        objective = fit(
            images(),
            replace(TINY, refresh=refresh),
            encoder=Flat(),
            monitor=lambda s, e, o, _l: seen.append(
                (o.prototypes.detach().clone(), o.sums.clone())
            ),
        )
    last, sums = seen[-1]
    members = sums.any(1)
    assert members.any() and not objective.sums.any()
    moved = torch.where(members[:, None] & refresh, F.normalize(sums, dim=1), last)
    torch.testing.assert_close(objective.prototypes.detach(), moved)
    assert torch.equal(objective.prototypes.detach(), last) != refresh


# -- parts that can be left out ----------------------------------------------------------------


def test_without_the_gate_every_cluster_has_the_same_prior():
    objective, x = make(gate=False).eval(), images().float() / 255
    with torch.no_grad():
        z = objective.encoder(x)
        _, phi = parts_by_loop(objective, z, z, objective.embed_key(x))
        losses = objective(x, torch.arange(12))
        p = objective.predict_proba(x)
    torch.testing.assert_close(p, phi / phi.sum(1, keepdim=True))
    assert losses["gate"].item() == pytest.approx(math.log(3))


def test_without_experts_the_gate_decides_and_learns_nothing():
    objective, x = make(experts=False).eval(), images().float() / 255
    losses = objective(x, torch.arange(12))
    z = objective.encoder(x)
    pi, phi = parts_by_loop(objective, z, z, objective.embed_key(x))
    torch.testing.assert_close(objective.predict_proba(x), pi)
    torch.testing.assert_close(losses["loss"], -phi.log().mean())
    (gradient,) = torch.autograd.grad(losses["loss"], objective.gate.weight)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-7, rtol=0)


def test_for_the_warm_up_clusters_are_given(monkeypatch):
    objective, x, i = make(warmup=1).train(), images().float() / 255, torch.tensor([3, 8, 1, 5])
    objective.given.copy_(torch.arange(12) % 3)
    objective.epoch = 0
    losses = objective(x[i], i)
    assert torch.equal(objective.chosen, i % 3)
    z = objective.encoder(x[i])
    v = objective.latest.transpose(0, 1)
    joint = torch.stack([part.log() for part in parts_by_loop(objective, z, z, v)]).sum(0)
    torch.testing.assert_close(losses["loss"], -joint[torch.arange(4), i % 3].mean())
    assert losses["entropy"] == 0
    objective.epoch = 1
    free = objective(x[i], i)
    assert torch.equal(objective.chosen, joint.argmax(1)) and free["loss"] < losses["loss"]


# -- the whole ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits").subset(160)


def test_the_warm_up_begins_with_k_means_of_the_pretext(digits, monkeypatch):
    seen = []

    def look(z, *a, **o):
        found = kmeans(z, *a, **o)
        seen.append((z, found.labels, o))
        return found

    monkeypatch.setattr(method, "kmeans", look)
    config = recipes.smoke
    pretext = simclr.fit(digits.images, replace(config.pretext, seed=config.seed))
    before = {k: v.clone() for k, v in pretext.state_dict().items()}
    a, b = fit(digits.images, config, encoder=pretext), fit(digits.images, config)
    assert all(torch.equal(v, before[k]) for k, v in pretext.state_dict().items())
    for (z, labels, how), model in zip(seen, (a, b), strict=True):
        torch.testing.assert_close(z, extract(pretext.embed, digits.images))
        assert torch.equal(model.given, labels) and how["spherical"]
    fit(digits.images, config, encoder=pretext.encoder)  # a network: its features
    torch.testing.assert_close(seen[-1][0], extract(pretext.encoder, digits.images))
    fit(digits.images, replace(config, warmup=0), encoder=pretext)
    assert len(seen) == 3


def test_losses_are_float32_under_autocast():
    objective, x, i = make(), images().float() / 255, torch.arange(12)
    with torch.autocast("cpu", torch.bfloat16):
        found, p = objective(x, i), objective.predict_proba(x)
    assert {v.dtype for v in found.values()} == {torch.float32} and p.dtype == torch.float32


def test_embeddings_are_those_of_all_experts():
    objective, x = make().eval(), images().float() / 255
    z = objective.embed(x)
    f = objective.head(objective.encoder(x))
    assert z.shape == (12, 12)
    for k in range(3):
        own = F.normalize(f[:, k], dim=1) / math.sqrt(3)
        torch.testing.assert_close(z[:, 4 * k : 4 * k + 4], own)


def test_a_run_of_one_mixture_lowers_its_loss():
    with seeded(3):
        objective = make()
        rows = train(objective, images(), replace(SGD, epochs=30))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"gate_temperature": -1.0}, "gate_temperature must be above 0; got -1.0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
        ({"warmup": -1}, "warmup must be at least 0; got -1"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"queue_length": 3}, "queue_length must be at least 4, a batch; got 3"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_the_released_settings():
    paper = recipes.paper
    assert (paper.dim, paper.temperature, paper.gate_temperature) == (128, 1, 1)
    assert (paper.queue_length, paper.momentum, paper.warmup) == (16_384, 0.999, 0)
    assert paper.gate and paper.experts and paper.refresh
    assert (paper.pretext.encoder, paper.pretext.train.epochs) == ("resnet34", 0)
    v, t = paper.view, paper.train
    assert (v.scale, v.jitter, v.jitter_prob, v.gray, v.flip) == ((0.2, 1), (0.4,) * 4, 1, 0.2, 0.5)
    assert (t.epochs, t.batch_size, t.lr, t.momentum, t.weight_decay) == (1000, 256, 1, 0.9, 1e-4)
    assert (t.schedule, t.milestones, t.gamma, t.warmup_epochs) == (
        "step",
        (480, 640, 800),
        0.1,
        10,
    )
