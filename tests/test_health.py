import math

import pytest
import torch

from dcl.health import effective_rank, health
from dcl.train import seeded


def healthy(n=500, k=10, seed=0):
    with seeded(seed):
        labels = torch.arange(n) % k
        logits = 5.0 * torch.eye(k)[labels] + torch.randn(n, k)
        return logits.softmax(1), torch.eye(k)[labels] + 0.1 * torch.randn(n, k)


def test_a_healthy_state_lights_nothing():
    p, z = healthy()
    h = health(p, z, loss=0.4)
    assert h.warnings == []
    assert (h.n_clusters, h.used) == (10, 10)
    assert sum(h.sizes) == 500 and h.largest < 0.15
    assert h.chance == pytest.approx(math.log(10))
    assert h.feature_rank > 8
    assert health(p.argmax(1)).warnings == []
    assert health(p.argmax(1), n_clusters=12).warnings == []


def test_numbers_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    h = health(p, loss=0.3)
    assert h.sizes == [2, 0, 2] and h.used == 2 and h.largest == 0.5
    assert h.confidence == pytest.approx(3.5 / 4)
    assert h.entropy == pytest.approx(math.log(2) / 4)
    m = torch.tensor([1.5, 0.5, 2.0]) / 4
    assert h.balance == pytest.approx(float(-(m * m.log()).sum()))
    hard = health(torch.tensor([0, 0, 2, 2]), n_clusters=3)
    assert hard.confidence is None and hard.entropy is None
    assert hard.balance == pytest.approx(math.log(2))


def only(h, words):
    assert len(h.warnings) == 1, h.warnings
    assert h.warnings[0].startswith(words)


def test_collapse_to_one_cluster():
    p = torch.full((300, 10), 0.01)
    p[:, 3] = 0.91
    only(health(p), "collapse")
    only(health(torch.full((300,), 3), n_clusters=10), "collapse")


def test_stuck_at_ln_k():
    p, z = healthy()
    only(health(p, z, loss=math.log(10) - 0.001), "stuck")
    assert health(p, z, loss=math.log(10) - 0.1).warnings == []
    only(health(p, z, loss=math.nan), "loss is nan")


def test_giant_cluster():
    labels = torch.arange(1000) % 10
    labels[labels < 6] = 0
    only(health(labels), "giant cluster: 60% of the images are in one of 10")


def test_dead_clusters():
    only(health(torch.arange(300) % 3, n_clusters=10), "dead clusters: only 3 of 10")


def test_nothing_confident():
    with seeded(0):
        p = (0.1 * torch.randn(500, 10)).softmax(1)
    only(health(p), "nothing is confident")


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_collapsed_features(noise):
    p, _ = healthy()
    with seeded(0):
        z = torch.ones(500, 64) + noise * torch.randn(500, 64)
    only(health(p, z), "collapsed features")


def test_features_on_a_line():
    p, _ = healthy()
    line = torch.linspace(-1, 1, 500)[:, None] * torch.arange(1.0, 9.0)
    only(health(p, line + 1e-6), "collapsed features")


def test_spread_by_hand():
    # the mean of the four unit vectors has length 1/2
    h = health(torch.arange(4), 3 * torch.eye(4))
    assert h.feature_spread == pytest.approx(1 - 1 / 4)


def test_effective_rank():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(20, 6)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.eye(3).repeat(5, 2)) == pytest.approx(3, abs=1e-4)
    with seeded(0):
        z = torch.randn(50, 7)
    s = torch.linalg.svdvals(z.double() / z.double().norm(dim=1, keepdim=True))
    s = s / s.sum()
    expected = float((-(s * s.log()).sum()).exp())
    assert effective_rank(z) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(z.T) <= 7


def test_bad_input():
    with pytest.raises(ValueError, match="sum to 1"):
        health(torch.randn(10, 3))
    with pytest.raises(ValueError, match="between 0 and 2"):
        health(torch.tensor([0, 3]), n_clusters=3)
    with pytest.raises(ValueError, match="assignments must be"):
        health(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"features must be \(2"):
        health(torch.tensor([0, 1]), torch.randn(3, 4))
