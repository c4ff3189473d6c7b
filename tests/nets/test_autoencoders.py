"""Autoencoders: scales, widths, what is linear, sizes that do not halve."""

import pytest
import torch
from torch import nn

from dcl.nets.autoencoders import Crop, Scale, cnn_coders, coders
from dcl.train import seeded


def kinds(net):
    return [type(m).__name__ for m in net]


def test_scale_makes_the_mean_square_one():
    images = torch.tensor([51, 102], dtype=torch.uint8).view(2, 1, 1, 1)  # .2 and .4: mean .1
    scale = Scale(images)
    assert scale.factor == pytest.approx(10**0.5)
    assert (scale(images / 255.0) ** 2).mean() == pytest.approx(1)
    vectors = torch.tensor([[3.0, 0.0], [0.0, -1.0]])  # mean square 2.5, and no pixels
    assert Scale(vectors).factor == pytest.approx(2.5**-0.5)
    assert Scale(vectors, 5.1).factor == pytest.approx(5.1)
    assert Scale(torch.zeros(1, 3)).factor == 1  # where there is nothing to measure


def test_the_networks_of_dec():
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    encoder, decoder = coders("mlp", images, (500, 500, 2000, 10))
    assert encoder.out_dim == 10
    down = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    up = [m for m in decoder.modules() if isinstance(m, nn.Linear)]
    widths = [784, 500, 500, 2000, 10]
    assert [(m.in_features, m.out_features) for m in down] == list(zip(widths, widths[1:]))
    assert [(m.in_features, m.out_features) for m in up] == list(zip(widths[::-1], widths[-2::-1]))
    # ReLU everywhere but on the code and on what is drawn
    assert kinds(encoder[1]) == ["Flatten", *["Linear", "ReLU"] * 3, "Linear"]
    assert kinds(decoder) == [*["Linear", "ReLU"] * 3, "Linear"]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in encoder.modules())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 24, 20), (1, 16, 16), (3, 9, 7)])
def test_convolutions_come_back_to_every_size(shape):
    images = torch.zeros(4, *shape, dtype=torch.uint8)
    encoder, decoder = coders("cnn", images, (4, 6, 8, 5))
    z = encoder(torch.rand(4, *shape))
    assert z.shape == (4, 5) and encoder.out_dim == 5
    assert decoder(z).shape == (4, torch.Size(shape).numel())


def test_the_border_that_is_cut_off_is_right_and_below():
    x = torch.arange(24).view(1, 2, 3, 4)
    kept = [[[0, 1, 2], [4, 5, 6]], [[12, 13, 14], [16, 17, 18]]]
    assert Crop(2, 3)(x).tolist() == [kept]


def test_code_and_drawing_of_the_convolutions_are_linear():
    with seeded(0):
        down, up = cnn_coders(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), (4, 8, 3))
        assert (down(torch.randn(64, 1, 16, 16)) < 0).any()
        assert (up(torch.randn(64, 3)) < 0).any()
    assert kinds(up)[-3:] == ["ConvTranspose2d", "Crop", "Flatten"]


def test_vectors_have_layers_of_their_own_width():
    encoder, decoder = coders("mlp", torch.randn(5, 7), (4, 2))
    z = encoder(torch.randn(3, 7))
    assert z.shape == (3, 2) and decoder(z).shape == (3, 7)


def test_what_cannot_be_built_is_refused():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="encoder must be one of mlp, cnn; got 'resnet'"):
        coders("resnet", images, (4, 2))
    with pytest.raises(ValueError, match=r"cnn needs images \(N,C,H,W\); got \(5, 7\)"):
        coders("cnn", torch.randn(5, 7), (4, 2))
