"""Self-labelling by hand, against the released weighting, and with a teacher."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.selflabel import SelfLabel, self_label_loss
from dcl.nets import convnets
from dcl.recipes import scan as recipes
from dcl.train import seeded, train
from dcl.views import View

STEP = TrainConfig(1, 160, "sgd", 0.1, momentum=0.0)  # of all images


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(160).images


def labeller(images, **changes):
    config = replace(recipes.smoke, weak=View(), strong=View(), **changes)
    with seeded(0):
        encoder = convnets.encoder("small_cnn", images, width=4)
        return SelfLabel(encoder, convnets.linear_head(encoder, 10, normalize=True), config)


def test_loss_by_hand():
    sure = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.1, 0.0]])  # the last is not sure
    strong = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    ce = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(-2))]
    plain, mask = self_label_loss(sure, strong, 0.9, balance=False)
    assert mask.tolist() == [True, True, True, False]
    assert plain.item() == pytest.approx(sum(ce) / 3)
    balanced, _ = self_label_loss(sure, strong, 0.9)
    assert balanced.item() == pytest.approx(((ce[0] + ce[1]) / 2 + ce[2]) / 2)


def test_balancing_is_the_released_weighting():
    with seeded(0):
        weak, strong = 18 * torch.randn(6, 4), 2 * torch.randn(6, 4)
    loss, mask = self_label_loss(weak, strong, 0.9)
    label = weak.argmax(1)[mask]
    count = label.bincount(minlength=4)
    assert count.max() > 1
    weight = torch.where(count > 0, len(label) / count.clamp(min=1), 1.0)
    torch.testing.assert_close(loss, F.cross_entropy(strong[mask], label, weight))


def test_the_threshold_is_strict_and_weak_views_get_no_gradient():
    even = torch.zeros(3, 2, requires_grad=True)  # confidence exactly .5
    strong = torch.randn(3, 2, requires_grad=True)
    assert not self_label_loss(even, strong, 0.5)[1].any()
    self_label_loss(even, strong, 0.49)[0].backward()
    assert even.grad is None and strong.grad.abs().sum() > 0


def test_nobody_confident_is_zero_with_a_graph_and_counted(images):
    strong = torch.randn(4, 3, requires_grad=True)
    loss, mask = self_label_loss(torch.zeros(4, 3), strong)
    loss.backward()
    assert loss == 0 and not mask.any() and strong.grad.abs().sum() == 0
    model = labeller(images, threshold=1 - 1e-9)
    (row,) = train(model, images, TrainConfig(1, 40, "adam", 0.01))
    assert row["empty"] == 1 and row["loss"] == 0 and row["confident"] == 0


def test_a_head_that_knows_nothing_costs_what_the_objective_says(images):
    model = labeller(images, threshold=0.0)
    nn.init.zeros_(model.head[-1].weight), nn.init.zeros_(model.head[-1].bias)
    loss = model(images.float() / 255, torch.arange(160))["loss"]
    assert model.chances() == {"loss": pytest.approx(loss.item())}


def test_the_teacher_follows_and_labels(images):
    model = labeller(images, ema="teacher", threshold=0.0, ema_decay=0.999)
    start = model.shadow[1][-1].weight.clone()
    assert "shadow.1.1.weight" in model.state_dict()  # so a resumed run has it
    train(model, images, STEP)
    expected = start.lerp(model.head[-1].weight, 0.001)
    torch.testing.assert_close(model.shadow[1][-1].weight, expected)
    assert not any(p.requires_grad for p in model.shadow.parameters())
    model.shadow[1][-1].bias.data[3] = 1e4  # the teacher now says 3 to everything
    loss = model(images[:20].float() / 255, torch.arange(20))["loss"]
    strong = model.live()(images[:20].float() / 255)
    torch.testing.assert_close(loss, -strong.log_softmax(1)[:, 3].mean())
