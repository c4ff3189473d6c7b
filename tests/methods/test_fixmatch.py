"""FixMatch's objective: who is in a batch, what is stepped down, and who answers."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.methods.fixmatch import FixMatch
from dcl.recipes import spice as recipes
from dcl.train import seeded, train
from dcl.views import View

CONFIG = replace(recipes.smoke, n_clusters=3, labelled=2, weak=View(), strong=View(), threshold=0.4)


class Flat(nn.Module):
    """Mean brightness of quarters, standardised: four features."""

    out_dim = 4

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.adaptive_avg_pool2d(x, 2).flatten(1))


def images(n):
    with seeded(8):
        return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8)


def make(config=CONFIG, labels=(-1, 2, -1, 0, 1, -1, -1, 0, -1)):
    with seeded(0):
        head = nn.Linear(4, 3)
        nn.init.normal_(head.weight, 0, 3)
        made = FixMatch(Flat(), head, images(len(labels)), config, torch.tensor(labels))
    made.before_epoch(0)
    return made


class Turned(View):
    def __call__(self, x):
        return x.flip(-1)


def test_forward_is_the_loss_of_one_pass():
    objective, i = make(replace(CONFIG, strong=Turned())), torch.tensor([5, 0, 8])
    x = images(9).float() / 255
    seen = []
    objective.encoder.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    found = objective(x[i], i)
    j = objective.rows[:2]
    assert torch.equal(seen[0], torch.cat([x[j], x[i], x[i].flip(-1)])) and len(seen) == 1
    z = copy.deepcopy(objective.encoder)(seen[0])  # BatchNorm sees all
    p = objective.head(z).softmax(1)
    wanted = -sum(p[b, y].log() for b, y in enumerate(objective.labels[j].tolist())) / 2
    torch.testing.assert_close(found["labelled"], wanted)
    taught = 0
    for weak, strong in zip(p[2:5], p[5:], strict=True):
        if weak.max() > 0.4:
            wanted, taught = wanted - strong[weak.argmax()].log() / 3, taught + 1
    assert taught and found["confident"].item() == pytest.approx(taught / 3)
    torch.testing.assert_close(found["loss"], wanted)


def test_views_are_those_of_the_configuration():
    class Plus(View):
        def __call__(self, x):
            return x + 10 * self.rotate

    objective = make(replace(CONFIG, weak=Plus(rotate=1), strong=Plus(rotate=2)))
    seen = []
    objective.encoder.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    objective(torch.zeros(3, 1, 8, 8), torch.arange(3))
    assert [seen[0][2:5].unique().item(), seen[0][5:].unique().item()] == [10, 20]
    assert seen[0][:2].min() >= 10 and seen[0][:2].max() <= 11


def test_labelled_images_come_in_turn_and_each_epoch_in_another_order():
    objective = make()
    assert sorted(objective.rows.tolist()) == [1, 3, 4, 7]
    seen = []
    objective.encoder.register_forward_hook(lambda m, args, out: seen.append(args[0][:3]))
    objective.config = replace(CONFIG, labelled=3)
    x = images(9).float() / 255
    for step in range(4):
        objective.step = step
        objective(x[:2], torch.arange(2))
    served = torch.cat(seen)
    wanted = torch.cat([objective.rows] * 3)
    assert torch.equal(served, x[wanted])
    with seeded(1):
        orders = {tuple(objective.before_epoch(e) or objective.rows.tolist()) for e in range(9)}
    assert len(orders) > 1


def test_nobody_confident_leaves_the_labelled_loss():
    objective = make(replace(CONFIG, threshold=1 - 1e-9))
    found = objective(images(9).float() / 255, torch.arange(9))
    assert found["confident"] == 0 and found["loss"] == found["labelled"] > 0
    found["loss"].backward()
    assert objective.head.weight.grad.any()


def test_the_average_follows_and_answers():
    objective = make(replace(CONFIG, ema_decay=0.9))
    start = objective.average[1].weight.clone()
    assert torch.equal(start, objective.head.weight)
    train(objective, images(9), TrainConfig(1, 9, "sgd", 0.5, momentum=0.0))
    moved = objective.head.weight
    assert not torch.equal(moved, start)
    torch.testing.assert_close(objective.average[1].weight, start.lerp(moved, 0.1))
    assert torch.equal(objective.average[0].norm.running_mean, objective.encoder.norm.running_mean)
    for c in range(3):  # whatever the live network says
        objective.average[1].bias.data[c] = 1e4 * (c + 1)
        assert objective.predict(images(9).float() / 255).tolist() == [c] * 9
    assert not any(p.requires_grad for p in objective.average.parameters())


def test_biases_and_batch_norm_do_not_decay():
    objective = make()
    weights, flat = objective.parameter_groups()
    assert [p.shape for p in weights["params"]] == [objective.head.weight.shape]
    assert "weight_decay" not in weights and flat["weight_decay"] == 0
    assert len(flat["params"]) == 3  # the bias and both of BatchNorm


def test_a_network_that_knows_nothing_costs_what_the_objective_says():
    objective = make()
    nn.init.zeros_(objective.head.weight), nn.init.zeros_(objective.head.bias)
    found = objective(images(9).float() / 255, torch.arange(9))
    assert objective.chances() == {"labelled": pytest.approx(found["labelled"].item())}
