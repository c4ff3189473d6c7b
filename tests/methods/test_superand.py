"""Super-AND by hand, by loops over the formulas, and what its rounds promise."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.cluster.contrast import spreading
from dcl.config import TrainConfig, epochs_of
from dcl.data import load
from dcl.methods.superand import (
    Config,
    SuperAND,
    fit,
    model,
    neighbor_loss,
    unification_loss,
)
from dcl.nets.convnets import Sobel
from dcl.recipes import superand as recipes
from dcl.train import extract, seeded
from dcl.views import View

TINY = Config(dim=4, temperature=0.5, ramp=1, view=View(), train=TrainConfig(1, 4, lr=0.5))


class Flat(nn.Module):
    """Mean brightness of quarters, four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1) * self.scale


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(config=TINY, n=9):
    with seeded(0):
        return SuperAND(images(n), config, Flat())


# -- the losses --------------------------------------------------------------------------------


def softmax(row, temperature):
    e = [torch.exp(value / temperature) for value in row]
    return [value / sum(e) for value in e]


def slow_neighbor(scores, i, neighbor, temperature):
    total = 0.0
    for row, own, near in zip(scores, i.tolist(), neighbor.tolist(), strict=True):
        p = softmax(row, temperature)
        total = total - torch.log(p[own] if near == own else p[own] + p[near])
    return total / len(scores)


def slow_unification(scores, i, temperature):
    total = 0.0
    for row, own in zip(scores, i.tolist(), strict=True):
        rest = [value if j != own else row.new_tensor(-1.0) for j, value in enumerate(row)]
        total = total - sum(p * torch.log(p) for p in softmax(rest, temperature))
    return total / len(scores)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("rows, n", [(5, 7), (1, 2), (7, 3)])  # odd; one; more views than rows
def test_losses_and_gradients_are_those_of_the_loops(rows, n, temperature):
    with seeded(rows):
        scores = torch.rand(rows, n, dtype=torch.float64) * 2 - 1
        i = torch.randint(n, (rows,))
        neighbor = torch.where(torch.arange(rows) % 2 == 0, (i + 1) % n, i)  # every second: alone
    scores.requires_grad_()
    for fast, slow in (
        (neighbor_loss(scores, i, neighbor, temperature),
         slow_neighbor(scores, i, neighbor, temperature)),
        (unification_loss(scores, i, temperature), slow_unification(scores, i, temperature)),
    ):  # fmt: skip
        torch.testing.assert_close(fast, slow)
        (ours,), (wanted,) = (torch.autograd.grad(loss, scores) for loss in (fast, slow))
        torch.testing.assert_close(ours, wanted)


def test_losses_by_hand():
    scores = torch.tensor([[1.0, 0.0, -1.0]])
    i, alone, near = (torch.tensor([k]) for k in (1, 1, 2))
    e = [math.exp(2), 1, math.exp(-2)]
    wanted = -math.log(e[1] / sum(e))
    assert neighbor_loss(scores, i, alone, 0.5).item() == pytest.approx(wanted)
    wanted = -math.log((e[1] + e[2]) / sum(e))
    assert neighbor_loss(scores, i, near, 0.5).item() == pytest.approx(wanted)
    p = [v / (e[0] + 2 * e[2]) for v in (e[0], e[2], e[2])]  # the own score is -1, too
    wanted = -sum(v * math.log(v) for v in p)
    assert unification_loss(scores, i, 0.5).item() == pytest.approx(wanted)


def test_gradients_in_float64():
    with seeded(0):
        scores = torch.rand(3, 5, dtype=torch.float64).requires_grad_()
    i, near = torch.tensor([4, 0, 2]), torch.tensor([1, 0, 3])
    torch.autograd.gradcheck(lambda s: neighbor_loss(s, i, near, 0.3), scores)
    torch.autograd.gradcheck(lambda s: unification_loss(s, i, 0.3), scores)


# -- a step ------------------------------------------------------------------------------------


def test_forward_is_the_algorithm():
    objective = make(replace(TINY, unification=0.3, augmentation=0.7, ramp=2))
    x, i = torch.rand(3, 1, 8, 8), torch.tensor([6, 0, 8])
    objective.neighbor[6] = 2
    for epoch, weight in ((0, 0.0), (1, 0.0), (2, 0.3), (5, 0.6)):
        objective.epoch = epoch
        losses = objective(x, i)
        z = objective.embed(torch.cat([x, x]))
        scores, both = z @ objective.bank.rows.T, torch.tensor([6, 0, 8, 6, 0, 8])
        parts = {
            "instance": slow_neighbor(scores, both, torch.tensor([2, 0, 8, 2, 0, 8]), 0.5),
            "unification": slow_unification(scores, both, 0.5),
            "augmentation": spreading(z[:3], z[3:], 0.5),
        }
        for name, value in parts.items():
            torch.testing.assert_close(losses[name], value)
        whole = parts["instance"] + weight * parts["unification"] + 0.7 * parts["augmentation"]
        torch.testing.assert_close(losses["loss"], whole)


def test_the_bank_moves_after_the_step_by_the_second_view():
    objective = make(replace(TINY, view=View(negative=0.5)))
    x, i = torch.rand(4, 1, 8, 8), torch.tensor([6, 0, 8, 3])
    seen = []
    objective.encoder.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    before = objective.bank.rows.clone()
    objective(x, i)["loss"].backward()
    assert torch.equal(objective.bank.rows, before)
    assert len(seen) == 1 and not torch.equal(seen[0][:4], seen[0][4:])
    rows = F.normalize((before[i] + objective.embed(seen[0])[4:].detach()) / 2, dim=1)
    with torch.no_grad():
        objective.head.weight.mul_(-1)  # the bank gets what the loss saw
    objective.after_step()
    torch.testing.assert_close(objective.bank.rows[i], rows)
    rest = [1, 2, 4, 5, 7]
    assert torch.equal(objective.bank.rows[rest], before[rest])


def test_the_surest_images_get_their_nearest_neighbour():
    objective = make(n=30)
    rows = objective.bank.rows
    assert torch.equal(objective.neighbor, torch.arange(30))
    e = [-sum(p * math.log(p) for p in map(float, softmax(rows @ row, 0.5))) for row in rows]
    surest = sorted(range(30), key=e.__getitem__)[:7]
    objective.neighbor[:] = 5  # what an earlier round found is forgotten
    objective.discover(7)
    for a in range(30):
        others = [b for b in range(30) if b != a]
        near = max(others, key=lambda b: float(rows[a] @ rows[b]))
        assert objective.neighbor[a] == (near if a in surest else a)
    objective.discover(0)
    assert torch.equal(objective.neighbor, torch.arange(30))


def test_losses_and_embeddings_are_float32_under_autocast():
    objective, x = make(), torch.rand(5, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        z, losses = objective.embed(x), objective(x, torch.arange(5))
    assert {v.dtype for v in losses.values()} == {torch.float32} and z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))


# -- the whole ---------------------------------------------------------------------------------


def test_each_round_is_a_training_with_more_neighbours():
    config = replace(TINY, rounds=6, share=0.25, train=replace(TINY.train, epochs=2))
    found, epochs = {}, []

    def look(stage, epoch, objective, losses):
        found[stage] = int((objective.neighbor != torch.arange(9)).sum())
        epochs.append(objective.epoch)

    fit(images(9), config, encoder=Flat(), monitor=look)
    assert found == {f"round{r}": min(int(r * 0.25 * 9), 9) for r in range(6)}
    assert epochs == [0, 1] * 6 and epochs_of(config) == 12


def test_a_second_network_sees_edges():
    data = load("digits").subset(20)
    with seeded(0):
        both = model(data.images, replace(recipes.smoke, sobel=True))
        one = model(data.images, recipes.smoke)
    assert both.encoder.out_dim == 2 * one.encoder.out_dim == 64
    first, second = both.encoder.each
    assert not any(isinstance(m, Sobel) for m in first.modules())
    assert any(isinstance(m, Sobel) for m in second.modules())
    x = data.images.float() / 255
    z = both.eval().encoder(x)
    assert torch.equal(z, torch.cat([first(x), second(x)], 1))
    trained = fit(data.images, replace(recipes.smoke, sobel=True, train=replace(TINY.train)))
    assert extract(trained.embed, data.images).shape == (20, 32)


def test_training_tells_images_apart():
    data, rows = load("digits").subset(300), []
    config = replace(recipes.smoke, train=replace(recipes.smoke.train, epochs=5))
    fit(data.images, config, monitor=lambda stage, epoch, o, losses: rows.append(losses))
    assert rows[-1]["instance"] < rows[0]["instance"] - 0.3
    assert rows[-1]["augmentation"] < rows[0]["augmentation"] - 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0; got 0.0"),
        ({"rounds": 0}, "rounds must be at least 1; got 0"),
        ({"ramp": 0}, "ramp must be at least 1; got 0"),
        ({"share": -0.1}, "share must be at least 0; got -0.1"),
        ({"keep": 1.0}, "keep must be at least 0 and below 1; got 1.0"),
        ({"unification": -1.0}, "unification must be at least 0; got -1.0"),
        ({"augmentation": -1.0}, "augmentation must be at least 0; got -1.0"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_the_released_settings():
    c = recipes.paper
    assert (c.dim, c.temperature, c.keep, c.rounds, c.share) == (128, 0.1, 0.5, 5, 0.25)
    assert (c.unification, c.ramp, c.augmentation, c.sobel) == (0.2, 80, 1.0, True)
    t = c.train
    assert (t.epochs, t.batch_size, t.lr, t.nesterov) == (200, 128, 0.03, True)
    assert (t.weight_decay, t.schedule, t.milestones) == (5e-4, "step", (120, 160))
