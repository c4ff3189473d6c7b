"""RLCC by hand, by loop, and what a generation hands to the next."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dcl.cluster.consensus import Memory, centres, consensus, former, refined
from dcl.config import TrainConfig
from dcl.data import load
from dcl.measure.metrics import nmi
from dcl.methods.rlcc import RLCC, Config, fit, refined_loss
from dcl.recipes import rlcc as recipes
from dcl.train import extract, predict, seeded, train
from dcl.views import View

TINY = Config(
    n_clusters=3,
    clusters="kmeans",
    n_pseudo=7,
    encoder="small_cnn",
    width=4,
    view=View(pad=1),
    temperature=0.2,
    train=TrainConfig(4, 20, "adam", 1e-2),
)
DENSE = replace(TINY, clusters="density", eps=0.2, min_samples=3)


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(90).images


def make(images, config=TINY, **changes):
    with seeded(1):
        return RLCC(images, replace(config, **changes))


# ---- the loss


def drawn(b, k):
    with seeded(b + k):
        z, m = (F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (b, k))
        soft = torch.rand(b, k, dtype=torch.float64)
        y = torch.randint(max(k - 1, 1), (b,))  # the last cluster is nobody's
    return z @ m.T / 0.3, y, soft / soft.sum(1, keepdim=True)


def slow_loss(logits, y, soft, alpha):
    total = 0
    for row, label, target in zip(logits, y.tolist(), soft):
        powers = [value.exp() for value in row]
        log_p = [(power / sum(powers)).log() for power in powers]
        total = total - alpha * log_p[label]
        for t, value in zip(target, log_p):
            total = total - (1 - alpha) * t * value
    return total / len(logits)


@pytest.mark.parametrize("b, k", [(7, 4), (3, 9), (1, 6), (5, 1)])
@pytest.mark.parametrize("alpha", [0.9, 0.3, 1.0])
def test_loss_is_the_slow_loop(b, k, alpha):
    logits, y, soft = drawn(b, k)
    a, c = (logits.clone().requires_grad_() for _ in range(2))
    ours, loop = refined_loss(a, y, soft, alpha), slow_loss(c, y, soft, alpha)
    torch.testing.assert_close(ours, loop)
    grads = torch.autograd.grad(ours, a)[0], torch.autograd.grad(loop, c)[0]
    torch.testing.assert_close(*grads)


def test_loss_by_hand_and_alpha_1_is_the_cross_entropy():
    logits = torch.tensor([[math.log(3), 0.0]])  # probabilities 3/4, 1/4
    soft = torch.tensor([[0.5, 0.5]])
    by_hand = 0.9 * math.log(4 / 3) + 0.1 * (math.log(4 / 3) + math.log(4)) / 2
    assert float(refined_loss(logits, torch.tensor([0]), soft, 0.9)) == pytest.approx(by_hand)
    logits, y, soft = drawn(6, 5)
    torch.testing.assert_close(refined_loss(logits, y, soft, 1.0), F.cross_entropy(logits, y))
    both = refined_loss(logits, y, F.one_hot(y, 5).double(), 0.4)  # soft labels that are hard
    torch.testing.assert_close(both, F.cross_entropy(logits, y))


def test_gradient_is_prediction_minus_the_mixed_label():
    logits, y, soft = drawn(6, 5)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(refined_loss(logits, y, soft, 0.9), logits)
    mixed = 0.9 * F.one_hot(y, 5) + 0.1 * soft
    torch.testing.assert_close(found, (logits.softmax(1) - mixed) / 6)


# ---- a generation


def test_features_are_of_length_1_and_float32_under_autocast(images):
    objective = make(images).train()
    with torch.autocast("cpu", torch.bfloat16):
        z = objective.embed(images[:9].float() / 255)
        scores = objective.memory.scores(z)
    assert z.dtype == scores.dtype == torch.float32 and z.shape == (9, 16)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(9))
    assert z.min() < -0.1  # BatchNorm: cosines of both signs


@pytest.mark.parametrize("config", [TINY, DENSE], ids=["kmeans", "density"])
def test_a_generation_is_the_algorithm(images, config):
    objective = make(images, config).train()
    for epoch in range(4):
        y0, c0 = objective.pseudo.clone(), objective.centres.clone()
        with seeded(epoch):
            objective.before_epoch(epoch)
        f = extract(objective.embed, images)
        y, k = objective.pseudo, int(objective.pseudo.max()) + 1
        assert y[y >= 0].unique().tolist() == list(range(k))  # none empty
        torch.testing.assert_close(objective.centres, centres(f, y, k))
        assert torch.equal(objective.memory.rows, objective.centres)
        told = {"clusters": k, "nmi": nmi(y0, y), "outliers": float((y < 0).float().mean())}
        assert {n: float(v) for n, v in objective.log.items()} == pytest.approx(told)
        if epoch:
            share = 0.9 if epoch > 1 else 0.0  # the first soft labels are of features alone
            p = former(f, c0, y0, 30.0, share)
            expected = refined(p, consensus(y0, y, len(c0), k), y)
            torch.testing.assert_close(objective.soft, expected)
            torch.testing.assert_close(objective.soft.sum(1), torch.ones(90))
        with seeded(10 + epoch), torch.no_grad():  # features that have moved
            for p in objective.encoder.parameters():
                p.add_(0.1 * p.std() * torch.randn_like(p) if p.numel() > 1 else 0)
        assert objective.training


def test_the_number_of_clusters_changes_and_outliers_come_and_go(images):
    counts, outside = [], []

    def look(stage, epoch, objective, losses):
        counts.append(losses["clusters"])
        outside.append(losses["outliers"])
        assert objective.soft.shape[1] == len(objective.centres) == losses["clusters"]

    fit(images, DENSE, monitor=look)
    assert len({*counts}) > 1 and max(outside) > 0


def test_forward_is_step_5_and_the_memory_learns_after_the_step(images):
    objective = make(images, view=View())
    with seeded(0):
        objective.before_epoch(0)
        objective.before_epoch(1)
    i = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    x = images[i].float() / 255
    rows, y = objective.memory.rows.clone(), objective.pseudo[i]
    for epoch, alpha in ((0, 1.0), (1, 0.9)):
        objective.epoch = epoch
        losses = objective(x, i)
        z = objective.embed(x)
        logits = z @ rows.T / 0.2
        expected = refined_loss(logits, y, objective.soft[i], alpha)
        torch.testing.assert_close(losses["loss"], expected)
    assert list(losses) == ["loss", "entropy", "clusters", "nmi", "outliers"]
    entropy = -(objective.soft[i] * objective.soft[i].clamp(min=1e-30).log()).sum(1).mean()
    torch.testing.assert_close(losses["entropy"], entropy)
    assert torch.equal(objective.memory.rows, rows)  # forward alone: no change
    losses["loss"].backward()
    assert objective.neck.weight.grad.abs().max() > 0
    objective.after_step()
    assert torch.equal(objective.centres, rows)  # the old ones of the next generation
    moved = Memory(7, 16, keep=0.2)
    moved.rows = rows
    moved.update(y, z)
    torch.testing.assert_close(objective.memory.rows, moved.rows)


def test_alpha_1_is_the_loop_with_hard_labels(images):
    """The soft labels play no part then: other ones train the same network."""
    trained = []
    for sharpness in (30.0, 1.0):
        config = replace(TINY, alpha=1.0, sharpness=sharpness)
        trained.append(fit(images, config).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(t.values() for t in trained)))
    refinement = fit(images, replace(TINY, alpha=0.9)).state_dict()
    assert not torch.equal(refinement["neck.weight"], trained[0]["neck.weight"])


def test_an_epoch_is_uniform_over_clusters_and_without_outliers(images):
    objective = make(images)
    objective.pseudo.copy_(torch.tensor([0] * 40 + [1] * 10 + [-1] * 40))
    with seeded(0):
        rows = objective.order(90)
    assert rows.shape == (90,)
    assert objective.pseudo[rows].unique(return_counts=True)[1].tolist() == pytest.approx(
        [45, 45], abs=2
    )
    assert objective.pseudo[rows].min() == 0


def test_a_checkpoint_holds_clusters_in_any_number(images):
    objective, other = make(images, DENSE), make(images, DENSE)
    with seeded(0):
        objective.before_epoch(0)
    assert len(objective.centres) != len(other.centres)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.centres, objective.centres)
    with seeded(1):
        objective.before_epoch(1)
    with seeded(1):
        other.before_epoch(1)
    assert torch.equal(other.soft, objective.soft)
    assert not any(name.startswith(("soft", "memory")) for name in objective.state_dict())


def test_predict_is_the_nearest_centroid_of_the_features(images):
    objective = fit(images, replace(TINY, train=replace(TINY.train, epochs=1)))
    z = extract(objective.embed, images)
    nearest = (z @ objective.clusters.centroids.T).argmax(1)
    assert torch.equal(predict(objective, images), nearest)
    assert nearest.unique().numel() == 3


# ---- configuration


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"alpha": 1.1}, "alpha must be at least 0"),
        ({"alpha": -0.1}, "alpha must be at least 0"),
        ({"keep": 1.0}, "keep must be at least 0 and below 1; got 1.0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"sharpness": 0.0}, "sharpness must be above 0"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"n_pseudo": 1}, "n_pseudo must be at least 2; got 1"),
        ({"clusters": "dbscan"}, "clusters must be one of kmeans, density; got 'dbscan'"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_too_small_a_radius_is_an_error_that_names_it(images):
    with pytest.raises(ValueError, match="eps must be larger"):
        train(make(images, DENSE, eps=1e-9), images, DENSE.train)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.clusters, paper.eps, paper.min_samples) == ("density", 0.6, 4)
    assert (paper.alpha, paper.sharpness, paper.temperature, paper.keep) == (0.9, 30.0, 0.04, 0.2)
    assert paper.encoder == "resnet50"
    assert (paper.view.pad, paper.view.flip) == (10, 0.5)
    t = paper.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr, t.weight_decay) == (
        50, 64, "adam", 3.5e-4, 5e-4
    )  # fmt: skip
    assert (t.schedule, t.milestones, t.gamma) == ("step", (20, 40), 0.1)
