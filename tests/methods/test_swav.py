"""SwAV by hand, by loop, against the released formulas, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.sinkhorn import sinkhorn
from dcl.config import TrainConfig
from dcl.methods.swav import Config, SwAV, swapped_prediction
from dcl.nets.convnets import by_resolution
from dcl.recipes import swav as recipes
from dcl.train import seeded, train
from dcl.views import View

SGD = TrainConfig(epochs=1, batch_size=4, lr=0.5, momentum=0.9, weight_decay=0.1)
TINY = Config(
    n_clusters=3,
    n_prototypes=5,
    hidden=7,
    dim=4,
    views=(View(rotate=5), View(rotate=5), View(size=6)),
    freeze_steps=0,
    train=SGD,
)


class Flat(nn.Module):
    """Mean brightness of quarters: any size in, four features out; remembers what it saw."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


@pytest.fixture
def x():
    with seeded(3):
        return torch.rand(4, 1, 8, 8)


def make(config=TINY):
    with seeded(0):
        return SwAV(images(4), config, Flat())


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


# -- the loss ----------------------------------------------------------------------------------


def test_loss_by_hand():
    # T = .1 turns the scores into logits (1, 0) and (0, 1); log-softmax is -.3133 and -1.3133
    scores = torch.tensor([[[0.1, 0.0]], [[0.0, 0.1]]])
    codes = torch.tensor([[[1.0, 0.0]], [[0.25, 0.75]]])
    high, low = math.log(1 + math.exp(-1)), math.log(1 + math.e)  # .3133, 1.3133
    by_hand = (low + (0.25 * high + 0.75 * low)) / 2
    assert float(swapped_prediction(scores, codes)) == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(1.1883, abs=1e-4)


@pytest.mark.parametrize("crops, assign", [(2, 2), (4, 2), (5, 1), (3, 3)])
def test_loss_is_the_mean_cross_entropy_to_the_codes_of_other_crops(crops, assign):
    with seeded(1):
        scores = torch.randn(crops, 6, 7, dtype=torch.float64)
        codes = torch.rand(assign, 6, 7, dtype=torch.float64)
    codes /= codes.sum(2, keepdim=True)
    each = [
        F.cross_entropy(scores[v] / 0.3, codes[a])
        for a in range(assign)
        for v in range(crops)
        if v != a
    ]
    torch.testing.assert_close(swapped_prediction(scores, codes, 0.3), torch.stack(each).mean())


def test_a_crop_does_not_predict_itself():
    scores = torch.zeros(2, 1, 3, requires_grad=True)
    codes = torch.tensor([[[0.2, 0.3, 0.5]]])  # only crop 0 gives a code
    swapped_prediction(scores, codes).backward()
    assert not scores.grad[0].any() and scores.grad[1].any()


def test_collapse_is_a_fixed_point_with_loss_ln_k():
    scores = torch.full((2, 64, 3000), 0.3, requires_grad=True)
    codes = torch.stack([sinkhorn(s) for s in scores])
    torch.testing.assert_close(codes, torch.full_like(codes, 1 / 3000))
    loss = swapped_prediction(scores, codes)
    loss.backward()
    known = make(replace(TINY, n_prototypes=3000)).chances()["loss"]
    assert loss.item() == pytest.approx(known) and known == pytest.approx(8.006, abs=5e-4)
    assert float(scores.grad.abs().max()) < 1e-9  # nothing pulls it out


def test_loss_is_floor_plus_divergence(x):
    objective = make()
    losses = objective(x, torch.arange(4))
    assert losses["loss"].item() >= losses["floor"].item() >= 0
    with seeded(5):
        scores = torch.rand(2, 8, 6)
    codes = torch.stack([sinkhorn(s) for s in scores])
    # a prediction equal to the code reaches the floor
    perfect = swapped_prediction(codes.flip(0).log(), codes, temperature=1.0)
    floor = torch.special.entr(codes).sum(2).mean()
    assert float(perfect) == pytest.approx(float(floor), rel=1e-5)


# -- codes -------------------------------------------------------------------------------------


def test_codes_have_no_gradient_and_use_the_settings(x):
    config = replace(TINY, epsilon=0.2, sinkhorn_iterations=1)
    objective = make(config)
    with seeded(6):
        scores = torch.rand(2, 4, 5, requires_grad=True)
    codes = objective.codes(scores)
    assert not codes.requires_grad
    expected = [sinkhorn(s, epsilon=0.2, iterations=1) for s in scores]
    torch.testing.assert_close(codes, torch.stack(expected))


# -- crops -------------------------------------------------------------------------------------


def test_one_pass_per_resolution_and_crop_major_order():
    encoder = Flat()
    with seeded(0):
        crops = tuple(torch.rand(3, 1, s, s) for s in (8, 6, 8, 4, 6))
    features = by_resolution(encoder, crops)
    assert encoder.seen == [(6, 1, 8, 8), (6, 1, 6, 6), (3, 1, 4, 4)]
    torch.testing.assert_close(features, torch.cat([encoder(c) for c in crops]))


def test_embeddings_are_unit_float32_rows_from_one_head_pass(x):
    objective = make()
    passes = []
    objective.head.register_forward_hook(lambda _m, args, _o: passes.append(args[0].shape))
    z = objective.embed(x, x[:, :, :6, :6], x)
    assert passes == [(12, 4)]
    assert z.shape == (12, 4) and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(12))


def test_forward_is_the_algorithm(x):
    objective = make(replace(TINY, views=(View(), View(size=6), View())))  # not random
    with torch.no_grad():
        objective.prototypes.mul_(7)
    losses = objective(x, torch.arange(4))
    c = objective.prototypes
    torch.testing.assert_close(c.norm(dim=1), torch.ones(5))
    z = objective.embed(x, View(size=6)(x), x)
    s = (z @ c.T).view(3, 4, 5)
    codes = torch.stack([sinkhorn(s[0].detach()), sinkhorn(s[1].detach())])
    torch.testing.assert_close(losses["loss"], swapped_prediction(s, codes, 0.1))
    torch.testing.assert_close(losses["floor"], torch.special.entr(codes).sum(2).mean())
    losses["loss"].backward()
    for p in objective.parameters():
        assert p.grad is not None and p.grad.isfinite().all()


def test_scores_stay_float32_under_autocast(x):
    objective = make()
    with torch.autocast("cpu", torch.bfloat16):
        z = objective.embed(x)
        s = objective.scores(z)
    assert s.dtype == torch.float32
    torch.testing.assert_close(s, z @ objective.prototypes.T)


# -- prototypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen, moves", [(100, False), (6, False), (5, True), (0, True)])
def test_frozen_prototypes_stand_still_against_momentum_and_weight_decay(frozen, moves):
    objective = make(replace(TINY, freeze_steps=frozen))
    before = F.normalize(objective.prototypes.detach().clone(), dim=1)
    scale = objective.encoder.scale.detach().clone()
    train(objective, images(24), SGD)  # six steps
    after = objective.prototypes.detach()
    moved = float((after - before).abs().max())
    assert moved > 1e-3 if moves else moved < 1e-6
    assert not torch.equal(objective.encoder.scale.detach(), scale)


# -- the queue ---------------------------------------------------------------------------------


def queued():
    return make(replace(TINY, queue_length=8, queue_start=0))


def test_the_queue_holds_the_embeddings_of_the_crops_that_give_codes(x):
    objective = queued()
    objective(x, torch.arange(4))
    assert not objective.queue.rows.any() and not objective.queue.filled  # forward alone: no change
    latest = objective.latest
    objective.after_step()
    torch.testing.assert_close(objective.queue.rows[:, :4], latest)
    assert objective.queue.rows.shape == (2, 8, 4) and not torch.equal(*latest)


def test_the_queue_is_used_only_when_full_and_then_before_the_batch(x):
    objective = queued()
    with seeded(9):
        scores = torch.rand(2, 4, 5)
    alone = torch.stack([sinkhorn(s) for s in scores])
    for full in (False, False, True):
        codes = objective.codes(scores)
        assert torch.equal(codes, alone) != full
        objective(x, torch.arange(4))
        objective.after_step()
    with torch.no_grad():
        objective.prototypes.copy_(objective.prototypes.roll(1, 0))  # the current ones count
        earlier = objective.queue.rows @ objective.prototypes.T
        by_hand = [sinkhorn(torch.cat(both))[-4:] for both in zip(earlier, scores)]
    torch.testing.assert_close(objective.codes(scores), torch.stack(by_hand))


def test_the_queue_starts_at_its_epoch_and_is_cut_to_whole_batches():
    objective, filled = make(replace(TINY, queue_length=11, queue_start=2)), []
    assert len(objective.queue) == 8
    four = replace(SGD, epochs=4)
    train(objective, images(4), four, monitor=lambda *_: filled.append(objective.queue.filled))
    assert filled == [0, 0, 4, 8] and objective.queue.full


# -- clusters ----------------------------------------------------------------------------------


def test_predict_is_the_nearest_centroid_and_prototype_the_nearest_prototype(x):
    objective = make().eval()
    with pytest.raises(ValueError, match="clusters must be fitted first"):
        objective.predict(x)
    z = objective.embed(x).detach()
    objective.clusters.centroids.copy_(torch.stack([z[2], -z[2], z[0]]))
    assert objective.predict(x)[2] == 0 and objective.predict(x)[0] == 2
    expected = (z @ objective.clusters.centroids.T / 0.1).softmax(1)
    torch.testing.assert_close(objective.predict_proba(x), expected)
    with torch.no_grad():
        objective.prototypes[3] = 9 * z[1]  # its length does not count
        objective.prototypes[:3] = -z[1]
        objective.prototypes[4] = -20 * z[1]
    assert objective.prototype(x)[1] == 3


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"epsilon": -1.0}, "epsilon must be above 0"),
        ({"n_prototypes": 0}, "n_prototypes must be at least 1; got 0"),
        ({"sinkhorn_iterations": -1}, "sinkhorn_iterations must be at least 0; got -1"),
        ({"views": (View(),)}, "views must be 2 recipes or more; got 1"),
        ({"n_assign": 4}, "views must be 4 recipes or more; got 3"),
        ({"queue_length": 3}, "queue_length must be 0 or >= 4; got 3"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.n_prototypes, paper.dim, paper.hidden) == (3000, 128, 2048)
    assert (paper.temperature, paper.epsilon, paper.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert [v.size for v in paper.views] == [224] * 2 + [96] * 6
    assert [v.scale for v in paper.views] == [(0.14, 1)] * 2 + [(0.05, 0.14)] * 6
    assert (paper.freeze_steps, paper.queue_length, paper.queue_start) == (313, 0, 15)
    t = paper.train
    assert (t.epochs, t.batch_size, t.lr, t.final_lr) == (800, 4096, 4.8, 0.0048)
    assert (t.warmup_epochs, t.warmup_lr, t.weight_decay, t.momentum) == (10, 0.3, 1e-6, 0.9)
    assert (t.optimizer, t.schedule) == ("larc", "cosine")
