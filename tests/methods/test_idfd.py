"""IDFD by hand, by loops over the formulas, and what its parts promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.methods.idfd import IDFD, Config, decorrelation_loss, instance_loss
from dcl.recipes import idfd as recipes
from dcl.train import extract, seeded, train
from dcl.views import View

SGD = TrainConfig(epochs=1, batch_size=4, lr=0.5)
TINY = Config(n_clusters=3, dim=4, view=View(), train=SGD)


class Flat(nn.Module):
    """Mean brightness of quarters: four features out; remembers what it saw."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


@pytest.fixture
def x():
    with seeded(3):
        return torch.rand(5, 1, 8, 8)


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(config=TINY, n=9):
    with seeded(0):
        return IDFD(images(n), config, Flat())


def draw(*shape):
    with seeded(1):
        return torch.randn(*shape, dtype=torch.float64)


# -- the losses --------------------------------------------------------------------------------


def test_losses_by_hand():
    # the image is at cosine 1 with its own row and at 0 and -1 with the two others
    scores = torch.tensor([[0.0, 1.0, -1.0]])
    by_hand = -math.log(math.e / (math.e + 1 + 1 / math.e))
    assert float(instance_loss(scores, torch.tensor([1]))) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.4076, abs=1e-4)
    # columns (1,1,1,1) and (1,1,1,-1): cosine 1/2, logits 1/2 and 1/4
    z = torch.tensor([[3.0, 0.1], [3.0, 0.1], [3.0, 0.1], [3.0, -0.1]])
    assert float(decorrelation_loss(z)) == pytest.approx(math.log(1 + math.exp(-0.25)))
    assert float(decorrelation_loss(z, 0.5)) == pytest.approx(math.log(1 + math.exp(-1)))


def slow_instance(z, bank, i, tau):
    total = 0.0
    for b in range(len(z)):
        exponents = [sum(z[b, k] * bank[n, k] for k in range(z.shape[1])) / tau
                     for n in range(len(bank))]  # fmt: skip
        total = total - exponents[int(i[b])] + torch.stack(exponents).exp().sum().log()
    return total / len(z)


def slow_decorrelation(z, tau):
    rows, d = z.shape
    length = [sum(z[b, k] ** 2 for b in range(rows)) ** 0.5 for k in range(d)]
    total = 0.0
    for k in range(d):
        likeness = [
            (sum(z[b, k] * z[b, m] for b in range(rows)) / (length[k] * length[m]) / tau).exp()
            for m in range(d)
        ]
        total = total - (likeness[k] / sum(likeness)).log()
    return total / d


@pytest.mark.parametrize("b, d, n, tau", [(5, 3, 7, 1.0), (1, 4, 1, 0.07), (3, 6, 11, 0.5)])
def test_instance_loss_is_the_formula(b, d, n, tau):
    z = F.normalize(draw(b, d), dim=1).requires_grad_()
    bank = F.normalize(draw(n, d).flip(1), dim=1)
    i = torch.arange(n).flip(0)[:b]
    slow = slow_instance(z, bank, i, tau)
    fast = instance_loss(z @ bank.T, i, tau)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, z), torch.autograd.grad(slow, z))


@pytest.mark.parametrize(
    "b, d, tau, constant",
    [(7, 4, 2.0, False), (3, 8, 2.0, False), (5, 3, 0.3, True), (1, 3, 1.0, False)],
)
def test_decorrelation_loss_is_the_formula(b, d, tau, constant):
    """More features than images, one image (all columns agree but for the sign), a constant."""
    z = draw(b, d)
    if constant:
        z[:, 1] = 0.4
    z.requires_grad_()
    slow, fast = slow_decorrelation(z, tau), decorrelation_loss(z, tau)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(torch.autograd.grad(fast, z), torch.autograd.grad(slow, z))


def test_gradients_in_float64():
    z, bank = draw(3, 4).requires_grad_(), draw(5, 4)
    i = torch.tensor([4, 0, 2])
    torch.autograd.gradcheck(lambda z: instance_loss(z @ bank.T, i, 0.3), z)
    torch.autograd.gradcheck(lambda z: decorrelation_loss(z, 0.7), z)


@pytest.mark.parametrize("d, floor, collapsed", [(128, 4.357, 4.852), (64, 3.669, 4.159)])
def test_decorrelation_between_orthogonal_and_equal_columns(d, floor, collapsed):
    least = decorrelation_loss(torch.linalg.qr(draw(200, d))[0])
    assert float(least) == pytest.approx(math.log(1 + (d - 1) * math.exp(-0.5)))
    assert float(least) == pytest.approx(floor, abs=1e-3)
    same = draw(200, 1).expand(200, d)
    assert float(decorrelation_loss(same)) == pytest.approx(collapsed, abs=1e-3)
    scaled = draw(50, d) * torch.linspace(1, 9, d)  # the scale of a feature does not count
    torch.testing.assert_close(decorrelation_loss(scaled), decorrelation_loss(draw(50, d)))


def test_a_feature_that_is_zero_gives_a_number():
    z = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    assert float(decorrelation_loss(z)) == pytest.approx(
        (math.log(2) + math.log(1 + math.exp(-0.5))) / 2
    )


# -- a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_forward_is_the_algorithm(x, weight):
    objective = make(replace(TINY, decorrelation=weight, temperature=0.5))
    i = torch.tensor([6, 0, 8, 3, 1])
    before = objective.bank.rows.clone()
    losses = objective(x, i)
    z = objective.embed(x)
    instance = slow_instance(z, before, i, 0.5)
    apart = slow_decorrelation(z, 2.0)
    torch.testing.assert_close(losses["instance"], instance)
    torch.testing.assert_close(losses["decorrelation"], apart)
    torch.testing.assert_close(losses["loss"], instance + weight * apart)
    weights = list(objective.parameters())
    fast = torch.autograd.grad(losses["loss"], weights)
    slow = torch.autograd.grad(instance + weight * apart, weights)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)


def test_the_bank_moves_after_the_step_and_only_there(x):
    objective = make(replace(TINY, keep=0.75))
    i = torch.tensor([6, 0, 8, 3, 1])
    before = objective.bank.rows.clone()
    objective(x, i)["loss"].backward()
    assert torch.equal(objective.bank.rows, before)
    z = objective.embed(x).detach()
    with torch.no_grad():
        objective.fc.weight.mul_(-1)  # the bank gets what the loss saw, not what it would see now
    objective.after_step()
    rows = F.normalize(0.75 * before[i] + 0.25 * z, dim=1)
    torch.testing.assert_close(objective.bank.rows[i], rows)
    rest = [2, 4, 5, 7]
    assert torch.equal(objective.bank.rows[rest], before[rest])


def test_one_view_of_each_image_is_drawn(x):
    objective = make(replace(TINY, view=View(negative=1.0)))
    objective(x, torch.arange(5))
    (seen,) = objective.encoder.seen
    torch.testing.assert_close(seen, 1 - x)


def test_a_epoch_moves_the_row_of_every_image_it_served():
    objective = make(n=8)
    before, start = objective.bank.rows.clone(), objective.fc.weight.detach().clone()
    train(objective, images(8), SGD)
    assert (objective.bank.rows != before).any(1).all()
    assert not torch.equal(objective.fc.weight.detach(), start)
    torch.testing.assert_close(objective.bank.rows.norm(dim=1), torch.ones(8))


def test_embeddings_have_length_one_and_stay_float32_under_autocast(x):
    objective = make()
    with torch.autocast("cpu", torch.bfloat16):
        z, losses = objective.embed(x), objective(x, torch.arange(5))
    assert z.dtype == torch.float32 and z.shape == (5, 4)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    assert {v.dtype for v in losses.values()} == {torch.float32}


def test_chance_is_what_equal_scores_give():
    n = 9
    chance = make(n=n).chances()["instance"]
    assert float(instance_loss(torch.zeros(4, n), torch.arange(4))) == pytest.approx(chance)


# -- clusters ----------------------------------------------------------------------------------


def test_clusters_are_those_of_the_embeddings_of_plain_images(x):
    objective = make(replace(TINY, view=View(negative=1.0)), n=30).eval()
    with pytest.raises(ValueError, match="clusters must be fitted first"):
        objective.predict(x)
    objective.fit_clusters(images(30))
    z = extract(objective.embed, images(30))
    torch.testing.assert_close(objective.clusters.centroids.norm(dim=1), torch.ones(3))
    cosines = z @ objective.clusters.centroids.T
    found = extract(objective.predict, images(30))
    assert torch.equal(found, cosines.argmax(1)) and found.unique().numel() == 3


def test_the_bank_is_kept_in_checkpoints_and_left_out_of_published_weights():
    objective = make()
    assert "bank.rows" in objective.state_dict() and objective.transient == ("bank.rows",)
    assert "bank.rows" not in dict(objective.named_parameters())


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"decorrelation_temperature": -1.0}, "decorrelation_temperature must be above 0"),
        ({"decorrelation": -0.5}, "decorrelation must be at least 0; got -0.5"),
        ({"keep": 1.0}, "keep must be at least 0 and below 1; got 1.0"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_the_papers_settings():
    paper = recipes.paper
    assert (paper.temperature, paper.decorrelation_temperature) == (1, 2)
    assert (paper.decorrelation, paper.keep, paper.dim) == (1, 0.5, 128)
    assert (paper.encoder, paper.stem) == ("resnet18", "small")
    v = paper.view
    assert (v.scale, v.jitter, v.jitter_prob, v.gray) == ((0.2, 1), (0.4, 0.4, 0.4, 0), 1, 0.2)
    assert not v.flip
    t = paper.train
    assert (t.epochs, t.batch_size, t.optimizer, t.lr) == (2000, 128, "sgd", 0.03)
    assert (t.momentum, t.weight_decay, t.gamma) == (0.9, 5e-4, 0.1)
    assert (t.schedule, t.milestones) == ("step", (600, 950, 1300, 1650))
