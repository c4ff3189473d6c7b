"""The autoencoder: its loss by hand, dropout where it belongs, what each layer learns from."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcl.config import TrainConfig
from dcl.data import load
from dcl.methods.autoencoder import Autoencoder, Config, Layer, fit, layers_of, model
from dcl.recipes import recipe
from dcl.train import extract, seeded

NONE = TrainConfig(epochs=0)
FEW = TrainConfig(2, 50, "adam", 1e-3)
SMALL = Config(dims=(12, 9, 4), layers=NONE, train=FEW)


@pytest.fixture(scope="module")
def images():
    return load("digits").subset(200).images


def test_loss_by_hand():
    vectors = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    objective = Autoencoder(vectors, replace(SMALL, dims=(3, 1), scale=2.0))
    with torch.no_grad():
        for p in objective.decoder.parameters():
            p.zero_()
        objective.decoder[-1].bias.copy_(torch.tensor([1.0, 0.0]))
    # to be drawn: (2,4), (6,-2); drawn: (1,0) twice; squares 1, 16, 25, 4
    loss = objective(vectors, torch.arange(2))["loss"]
    assert float(loss.detach()) == pytest.approx(46 / 4)


def test_images_are_scaled_for_network_and_target_alike(images):
    with seeded(0):
        objective = model(images, SMALL)
    x = images[:8].float() / 255
    assert objective.target(x).shape == (8, 256)
    assert float(objective.target(images.float() / 255).square().mean()) == pytest.approx(1)
    net = objective.encoder[1]
    torch.testing.assert_close(objective.encoder(x), net(objective.target(x).view(8, 1, 16, 16)))


def stack():
    torch.manual_seed(0)
    return layers_of(model(torch.randn(6, 5), replace(SMALL, dims=(8, 7, 3))))


def by_hand(layer, h, keep, first=False, code=False):
    """Loss of a layer with given masks (0 or 1/.8) on its input and on its hidden numbers."""
    z = (h if first else h * keep[0]) @ layer.encoder.weight.T + layer.encoder.bias
    z = z if code else z.clamp(min=0) * keep[1]
    back = z @ layer.mirror.weight.T + layer.mirror.bias
    return ((back if first else back.clamp(min=0)) - h).square().mean()


def test_each_layer_learns_from_what_lies_below_it(monkeypatch):
    drawn = []

    def drop(h, p):  # every second number
        assert p == 0.2
        keep = torch.ones_like(h)
        keep[:, ::2] = 0
        drawn.append(keep / (1 - p))
        return h * keep / (1 - p)

    monkeypatch.setattr(F, "dropout", drop)
    with seeded(0):
        layers, x = list(stack()), torch.randn(4, 5)
        for layer in layers:  # weights of a size that shows
            nn.init.normal_(layer.encoder.weight)
            nn.init.normal_(layer.mirror.weight)
    h = layers[0].below(x)
    torch.testing.assert_close(h, x * layers[0].below[0].factor)
    for n, layer in enumerate(layers):
        drawn.clear()
        first, code = n == 0, n == 2
        loss = layer(x, torch.arange(4))["loss"]
        # image: hidden only; between: both; code: input only
        assert len(drawn) == (1, 2, 1)[n]
        keep = {0: [None, drawn[0]], 1: drawn, 2: [drawn[0], None]}[n]
        torch.testing.assert_close(loss, by_hand(layer, h, keep, first, code))
        loss.backward()
        assert all(p.grad is None for below in layers[:n] for p in below.encoder.parameters())
        layer.zero_grad()
        h = F.relu(layer.encoder(h)).detach()


def test_the_layers_are_those_of_the_stack_with_a_fresh_start():
    with seeded(0):
        objective = model(torch.randn(6, 5), replace(SMALL, dims=(800, 700, 3)))
        layers = list(layers_of(objective))
    down = [m for m in objective.encoder.modules() if isinstance(m, nn.Linear)]
    up = [m for m in objective.decoder.modules() if isinstance(m, nn.Linear)]
    assert [layer.encoder for layer in layers] == down
    assert [layer.mirror for layer in layers] == up[::-1]
    for layer in layers:
        trained = [p for g in layer.parameter_groups() for p in g["params"]]
        assert {id(p) for p in trained} == {
            id(p) for m in (layer.encoder, layer.mirror) for p in m.parameters()
        }
        assert not layer.encoder.bias.any()
    assert float(layers[1].encoder.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert [layer.first for layer in layers] == [True, False, False]
    assert [layer.code for layer in layers] == [False, False, True]


def test_layer_by_layer_then_together(images, tmp_path):
    rows = []
    config = replace(SMALL, layers=TrainConfig(3, 50, "adam", 3e-3))
    done = fit(images, config, monitor=lambda *row: rows.append(row), run_dir=tmp_path)
    stages = [(row[0], row[1]) for row in rows]
    assert stages == [(f"layer{k}", e) for k in (1, 2, 3) for e in range(3)] + [
        ("pretext", 0), ("pretext", 1),
    ]  # fmt: skip
    assert all(isinstance(row[2], Layer) for row in rows[:9])
    first = [row[3]["loss"] for row in rows[:3]]
    assert first[2] < first[0]
    again = fit(images, config, run_dir=tmp_path)  # nothing is left to do
    assert torch.equal(extract(done.encoder, images), extract(again.encoder, images))


@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_it_learns_to_draw_digits(encoder, images):
    rows = []
    config = replace(
        SMALL, encoder=encoder, dims=(24, 24, 10), train=TrainConfig(20, 20, "adam", 5e-3)
    )
    fit(images, config, monitor=lambda *row: rows.append(row[3]["loss"]))
    mean = images.float().div(255).flatten(1)
    alone = (mean - mean.mean(0)).square().mean() / mean.square().mean()  # the mean image, always
    assert rows[-1] < 0.7 * float(alone)


def test_bad_settings_are_refused(images):
    for change, message in (
        ({"dims": (3,)}, r"dims must be two widths or more, .*; got \(3,\)"),
        ({"dims": (3, 0)}, "dims must be two widths or more, each at least 1"),
        ({"scale": 0.0}, "scale must be above 0; got 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        ({"encoder": "cnn", "layers": FEW}, "layers.epochs must be 0 with encoder cnn"),
        ({"encoder": "vit"}, "encoder must be one of mlp, cnn; got 'vit'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **change)
    mine = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
    mine.out_dim = 4
    with pytest.raises(ValueError, match="layers.epochs must be 0 with an encoder of your own"):
        fit(images, replace(SMALL, layers=FEW), encoder=mine)


def test_the_paper_recipe_is_the_released_one():
    c = recipe("autoencoder", "paper")
    assert (c.dims, c.dropout) == ((500, 500, 2000, 10), 0.2)
    assert c.scale == pytest.approx(255 * 0.02)
    steps = 60_000 // 256  # in an epoch of the images it was trained on
    for stage, iterations in ((c.layers, 50_000), (c.train, 100_000)):
        assert abs(stage.epochs * steps - iterations) < steps
        assert (stage.optimizer, stage.lr, stage.momentum, stage.gamma) == ("sgd", 0.1, 0.9, 0.1)
        for n, milestone in enumerate(stage.milestones, 1):
            assert abs(milestone * steps - 20_000 * n) < steps
