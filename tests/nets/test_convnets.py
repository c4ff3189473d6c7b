"""Networks against torchvision, against counts from the papers, and by hand."""

import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from dcl.nets import convnets, resnet
from dcl.train import seeded


def images(n=8, channels=3, size=32):
    with seeded(0):
        return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)


def floats(x):
    return x.float() / 255


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]


def perturbed(net):
    """Batch statistics and affine parameters that are not the identity."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in (
                (m.weight, 0.5, 1.5),
                (m.bias, -0.5, 0.5),
                (m.running_mean, -0.5, 0.5),
                (m.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(t, low, high)
    return net.eval()


# ---- AlexNet and VGG of DeepCluster


@pytest.fixture(scope="module")
def built():
    """Each large network once: drawing 100 million weights takes seconds."""
    return functools.cache(lambda name: convnets.encoder(name, images(2, size=224), sobel=True))


@pytest.mark.parametrize(
    ("name", "millions", "exact"),
    [("alexnet_bn", 99.2, 99_242_480), ("vgg16_bn", 175.2, 175_238_416)],
)
def test_deepcluster_networks_have_the_released_sizes(built, name, millions, exact):
    net = built(name)
    assert net.out_dim == 4096
    count = parameters(net) + 4096 * 10_000 + 10_000  # with the top layer for K = 10,000
    assert count == exact
    assert round(count / 1e6, 1) == millions
    kinds = [type(m) for m in net[-1]]
    assert kinds.count(nn.Dropout) == (2 if name == "alexnet_bn" else 1)
    assert kinds[-1] is nn.Linear  # fc7 without its ReLU: what is clustered
    fc = [m for m in net[-1] if isinstance(m, nn.Linear)]
    for m in fc:
        assert m.weight.detach().std() == pytest.approx(0.01, rel=0.01)
        assert not m.bias.any()
    for m in convolutions(net)[1:]:
        fan_out = m.kernel_size[0] ** 2 * m.out_channels
        assert m.weight.detach().std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert not m.bias.any()


def test_vgg_trunk_equals_torchvisions(built):
    trunk = perturbed(nn.Sequential(*built("vgg16_bn")[2][:44]))
    vgg = torchvision.models.vgg
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    theirs = nn.Sequential(nn.Conv2d(2, 64, 3, padding=1), *layers[1:]).eval()  # 2 edge maps
    assert [type(m) for m in trunk] == [type(m) for m in theirs]
    theirs.load_state_dict(trunk.state_dict())
    x = floats(images(2, size=32))[:, :2]
    torch.testing.assert_close(trunk(x), theirs(x), rtol=1e-4, atol=1e-5)


# ---- ResNets


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_equals_torchvisions_with_the_same_weights(depth):
    with seeded(0):
        mine = perturbed(resnet.ResNet(depth, 3, stem="imagenet"))
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(mine.state_dict())  # strict: every name and shape is torchvision's
    x = floats(images(2, size=64))
    z = mine(x)
    torch.testing.assert_close(z, theirs.eval()(x), rtol=1e-4, atol=1e-5)
    assert z.std() > 0.01


def test_small_stem_keeps_the_resolution():
    net = resnet.ResNet(18, 3, width=8)
    assert isinstance(net.maxpool, nn.Identity)
    seen = []
    net.layer1.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))
    net.layer4.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))
    assert net(floats(images(2))).shape == (2, 64)
    assert seen == [(2, 8, 32, 32), (2, 64, 4, 4)]
    full = resnet.ResNet(18, 3)
    assert parameters(full) == 11_168_832  # 11.17 M, as SCAN's


def test_shortcut_without_parameters():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = resnet.PadShortcut(2, 2)(x)
    assert y.shape == (1, 3, 2, 2)
    assert y[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert not y[0, 1:].any()
    lsdc = resnet.ResNet(18, 3, shortcut="pad")
    plain = sum(m.weight.numel() for m in convolutions(lsdc))
    assert not any(m.kernel_size == (1, 1) for m in convolutions(lsdc))
    assert parameters(lsdc) == plain + sum(
        p.numel() for m in lsdc.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    )
    assert round((parameters(lsdc) + 512 * 10 + 10) / 1e6, 2) == 11.0  # with the head for C = 10


# ---- front ends and heads


def test_sobel_by_hand_and_against_an_explicit_convolution():
    ramp = torch.arange(5.0).expand(3, 5, 5).clone()  # grows by 1 a column, equal channels
    gx, gy = convnets.Sobel()(ramp[None])[0]
    assert gx[1:-1, 1:-1].unique().tolist() == [-8.0]  # (1 + 2 + 1) * (left - right) = 4 * -2
    assert not gy[1:-1, 1:-1].any()
    gx, gy = convnets.Sobel()(ramp.transpose(1, 2)[None])[0]
    assert gy[1:-1, 1:-1].unique().tolist() == [-8.0]
    assert not gx[1:-1, 1:-1].any()
    x = floats(images(2, size=6))
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    grey = x.mean(1, keepdim=True)  # a third of each channel, so colour is not seen
    torch.testing.assert_close(convnets.Sobel()(x), F.conv2d(grey, kernels, padding=1))
    assert not list(convnets.Sobel().parameters())


def test_standardize():
    x = images(64)
    z = convnets.Standardize(x)(floats(x))
    assert z.mean((0, 2, 3)).abs().max() < 1e-4
    assert (z.std((0, 2, 3)) - 1).abs().max() < 1e-4
    flat = convnets.Standardize(torch.full((4, 1, 8, 8), 128, dtype=torch.uint8))
    assert flat(torch.rand(2, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "resnet34", "resnet50"])
def test_encoder_says_how_wide_it_is(name, channels, sobel):
    x = images(4, channels, 16)
    net = convnets.encoder(name, x, width=4, sobel=sobel)
    z = net.eval()(floats(x))
    assert z.shape == (4, net.out_dim)
    assert net.out_dim == {"small_cnn": 16, "resnet18": 32, "resnet34": 32, "resnet50": 128}[name]
    assert any(isinstance(m, convnets.Sobel) for m in net) == sobel
    assert convolutions(net)[0].in_channels == (2 if sobel else channels)


def test_all_conv_by_hand():
    x = images(4, 3, 36)
    net = convnets.all_conv(x, 7, width=4, depth=2, stages=3)  # 36 - 4 = 32, 16 - 4 = 12, 6 - 4 = 2
    assert net.out_dim == 7 and net.eval()(floats(x[:1])).shape == (1, 7)
    x = images(4, 3, 32)
    with pytest.raises(ValueError, match=r"images must be larger for 3 stages of 2 .*32, 32"):
        convnets.all_conv(x, 7, 4, 2, 3)
    net = convnets.all_conv(x, 7, width=4, depth=2).eval()
    sizes = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convolutions(net)]
    assert sizes == [(3, 4, 3), (4, 4, 3), (4, 8, 3), (8, 8, 3), (8, 7, 1)]
    kinds = [type(m).__name__ for m in net]
    conv, pool = ["Conv2d", "BatchNorm2d", "ReLU"], ["MaxPool2d", "BatchNorm2d"]
    end = [*conv, "AdaptiveAvgPool2d", "Flatten", "BatchNorm1d"]
    assert kinds == ["Standardize", *2 * (conv + conv + pool), *end]
    assert net(floats(x)).shape == (4, 7) and [n.shape[2] for n in maps(net, x)] == [
        32, 30, 30, 30, 28, 28, 28, 14, 14, 12, 12, 12, 10, 10, 10, 5, 5, 5, 5, 5, 1,
    ]  # fmt: skip
    spread = convolutions(convnets.all_conv(x, 7, width=64))[1].weight.std()
    assert float(spread.detach()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # He


def maps(net, x):
    """What each layer makes of uint8 images, as far as it is maps."""
    y, found = floats(x), []
    for layer in net:
        y = layer(y)
        found += [y] if y.ndim == 4 else []
    return found


def test_encoder_refuses():
    with pytest.raises(ValueError, match="encoder must be one of small_cnn.*; got 'resnet19'"):
        convnets.encoder("resnet19", images())
    for name in ("alexnet_bn", "vgg16_bn"):
        with pytest.raises(ValueError, match=f"images must be 224 px for {name}; got 32 px"):
            convnets.encoder(name, images())


def test_heads_stand_side_by_side():
    with seeded(0):
        heads, z = convnets.Heads([nn.Linear(3, 2), nn.Linear(3, 2)]), torch.randn(5, 3)
    assert heads(z).shape == (5, 2, 2) and torch.equal(heads(z)[:, 1], heads[1](z))


def test_reset_gives_new_weights_and_keeps_what_was_measured():
    with seeded(0):
        net = convnets.encoder("resnet18", images(), width=4)
        net.train()(floats(images()))  # BatchNorm's statistics move
        old = {k: v.clone() for k, v in net.state_dict().items()}
        convnets.reset(net)
    for name, value in net.state_dict().items():
        if "running" in name or "batches" in name:
            assert torch.equal(value, torch.full_like(value, "var" in name))
        elif value.ndim > 1 and name[:2] != "0.":
            assert not torch.equal(value, old[name]), name
    assert torch.equal(net[0].mean, old["0.mean"])  # of the data set, not learned
