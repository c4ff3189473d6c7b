"""Networks. An encoder maps float images (B,C,H,W) in [0,1] to features (B,out_dim)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.nets.resnet import ResNet
from dcl.objective import Encoder
from dcl.train import unit

RESNETS = ("resnet18", "resnet34", "resnet50")
ENCODERS = ("small_cnn", "striped_cnn", *RESNETS, "alexnet_bn", "vgg16_bn")


def evenly_spaced(images: Any) -> Tensor:
    """Rows from the whole set, to measure it by: 4096 or more, fewer that take 64 MB as floats."""
    most = max(16, min(4096, 2**24 // math.prod(images.shape[1:])))
    return images[torch.arange(0, len(images), max(1, len(images) // most))]


class Standardize(nn.Module):
    """Subtract a set's means and divide by its deviations: of channels, or of vectors' columns."""

    def __init__(self, images: Any):
        super().__init__()
        across, shape = (0, *range(2, images.ndim)), (-1, *[1] * (images.ndim - 2))
        std, mean = torch.std_mean(unit(evenly_spaced(images)), dim=across)
        self.mean = nn.Buffer(mean.view(shape))
        self.std = nn.Buffer(std.clamp(min=1e-3).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] or (B,d), to about zero mean and unit deviation."""
        return (x - self.mean) / self.std


class Sobel(nn.Module):
    """Grey, then horizontal and vertical edges: (B,1 or 3,H,W) -> (B,2,H,W). Not trained.

    Source: Caron et al. 2018 (DeepCluster), implementation details. Chapter: deepcluster.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        gx = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("kernel", torch.stack([gx, gx.T])[:, None])  # (2,1,3,3)

    def forward(self, x: Tensor) -> Tensor:
        """Edges, with zero padding at the border as in the released code."""
        return F.conv2d(x.mean(1, keepdim=True), self.kernel, padding=1)


def identity(out_dim: int) -> Encoder:
    """The identity, as an encoder of vectors (B,out_dim): features that are there already."""
    same: Any = nn.Identity()
    same.out_dim = out_dim
    return same


def mlp(dims: Sequence[int], batch_norm: bool = True, bias: bool = True) -> nn.Sequential:
    """Linear layers of the given widths with (BatchNorm and) ReLU between, none at the end."""
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(zip(dims, dims[1:], strict=False)):
        layers.append(nn.Linear(a, b, bias))
        if k < len(dims) - 2:
            layers += [nn.BatchNorm1d(b), nn.ReLU()] if batch_norm else [nn.ReLU()]
    return nn.Sequential(*layers)


def linear_head(encoder: Encoder, k: int, normalize: bool = False) -> nn.Sequential:
    """Features (B,out_dim) of an encoder to logits (B,k); `normalize`: a plain BatchNorm before."""
    norm = nn.BatchNorm1d if normalize else nn.Identity
    return nn.Sequential(norm(encoder.out_dim, affine=False), nn.Linear(encoder.out_dim, k))


class Heads(nn.ModuleList):
    """Heads side by side: features (B,d) to the logits (B,H,K) of all H."""

    def forward(self, features: Tensor) -> Tensor:
        """(B,d) -> (B,H,K)."""
        return torch.stack([head(features) for head in self], 1)


def conv_bn(a: int, b: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    return [nn.Conv2d(a, b, kernel, stride, padding), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]


def small_cnn(channels: int, width: int = 32, stripes: int = 1) -> nn.Sequential:
    """Three convolutions for 16 to 32 px; features are the means of 4*width maps.

    With stripes, of each of so many horizontal ones, top first: what is where on a standing person.
    Source of the stripes: Sun et al. 2018 (PCB). Chapter: rlcc.
    """
    first, second, third = (
        conv_bn(a, b, 3, padding=1)
        for a, b in ((channels, width), (width, 2 * width), (2 * width, 4 * width))
    )
    for layers in first, second:
        layers.insert(2, nn.MaxPool2d(2))  # before the ReLU: the same result on a quarter as many
    return nn.Sequential(
        *first,
        *second,
        *third,
        nn.AdaptiveAvgPool2d((stripes, 1) if stripes > 1 else 1),
        nn.Flatten(),
    )


def alexnet_bn(channels: int) -> nn.Sequential:
    """DeepCluster's AlexNet at 224 px; features are fc7 before its ReLU, 4096 wide."""
    pool = nn.MaxPool2d(3, 2)
    return _fc7(
        9216,
        *conv_bn(channels, 96, 11, 4, 2),
        pool,
        *conv_bn(96, 256, 5, 1, 2),
        pool,
        *conv_bn(256, 384, 3, 1, 1),
        *conv_bn(384, 384, 3, 1, 1),
        *conv_bn(384, 256, 3, 1, 1),
        pool,
    )


def vgg16_bn(channels: int) -> nn.Sequential:
    """VGG-16 with BatchNorm at 224 px; features are fc7 before its ReLU, 4096 wide."""
    layers: list[nn.Module] = []
    a = channels
    for b in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += conv_bn(a, b, 3, 1, 1) if b else [nn.MaxPool2d(2)]
        a = b or a
    return _fc7(25088, *layers, dropout_first=False)


def _fc7(flat: int, *features: nn.Module, dropout_first: bool = True) -> nn.Sequential:
    """A convolutional trunk with DeepCluster's initialisation, then fc6 and fc7."""
    head = [nn.Linear(flat, 4096), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4096, 4096)]
    drop = [nn.Dropout(0.5)] if dropout_first else []
    net = nn.Sequential(*features, nn.Flatten(), *drop, *head)
    for m in net:
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(m.bias)  # type: ignore[arg-type]
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, 0, 0.01)
            nn.init.zeros_(m.bias)
    return net


def encoder(
    name: str,
    images: Any,
    *,
    width: int | None = None,
    stem: str = "small",
    shortcut: str = "conv",
    sobel: bool = False,
) -> Encoder:
    """An encoder for `images` uint8 (N,C,H,W): standardise, (Sobel,) trunk; has `out_dim`.

    `name` is one of `ENCODERS`; `width` scales small_cnn (32), striped_cnn, the same with five
    stripes, and the ResNets (64). AlexNet and VGG need 224 px. Raises ValueError for an unknown
    name or a wrong size.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}; got {name!r}")
    size, channels = images.shape[-1], 2 if sobel else images.shape[1]
    trunk: nn.Module
    if name in ("alexnet_bn", "vgg16_bn"):
        if size != 224:
            raise ValueError(f"images must be 224 px for {name}; got {size} px")
        trunk, out_dim = (alexnet_bn if name == "alexnet_bn" else vgg16_bn)(channels), 4096
    elif name in ("small_cnn", "striped_cnn"):
        stripes, width = 5 if name == "striped_cnn" else 1, width or 32
        trunk, out_dim = small_cnn(channels, width, stripes), 4 * width * stripes
    else:
        depth, width = int(name.removeprefix("resnet")), width or 64
        trunk = ResNet(depth, channels, width, stem, shortcut)
        out_dim = 8 * width * (4 if depth == 50 else 1)
    front: list[nn.Module] = [Standardize(images), *([Sobel()] if sobel else [])]
    net: Any = nn.Sequential(*front, trunk)
    net.out_dim = out_dim
    # channels last: convolutions run a third faster, on CPUs and on tensor cores
    return net.to(images.device).to(memory_format=torch.channels_last)


def all_conv(
    images: Any, out_dim: int, width: int = 64, depth: int = 3, stages: int = 2
) -> Encoder:
    """DAC's network for `images` uint8 (N,C,H,W): standardise, convolve, average `out_dim` maps.

    Each stage: `depth` 3x3 convolutions without padding, which shorten a side by 2 * depth pixels,
    then a max-pool that halves it, also followed by BatchNorm. Stages have width, 2 * width, ...
    maps; a 1x1 convolution leads to `out_dim`. Raises ValueError for images that are too small.
    Source: Chang et al. 2017, released code. Chapter: dac.
    """
    layers: list[nn.Module] = [Standardize(images)]
    a, side = images.shape[1], min(images.shape[2:])
    for stage in range(stages):
        b, side = width * 2**stage, (side - 2 * depth) // 2
        for _ in range(depth):
            layers += conv_bn(a, b, 3)
            a = b
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(b)]
    if side < 1:
        what, got = f"{stages} stages of {depth} convolutions", tuple(images.shape[2:])
        raise ValueError(f"images must be larger for {what}; got {got}")
    layers += [*conv_bn(a, out_dim, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net: Any = nn.Sequential(*layers, nn.BatchNorm1d(out_dim))
    for m in net:
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)  # type: ignore[arg-type]
    net.out_dim = out_dim
    return net.to(images.device).to(memory_format=torch.channels_last)


def by_resolution(encoder: nn.Module, crops: tuple[Tensor, ...]) -> Tensor:
    """Features (V*B,d) of V crops (B,C,h,w), crop-major; crops of one size share a pass."""
    sizes = [tuple(crop.shape[2:]) for crop in crops]
    features: dict[int, Tensor] = {}
    for size in dict.fromkeys(sizes):
        same = [v for v, s in enumerate(sizes) if s == size]
        out = encoder(torch.cat([crops[v] for v in same]))
        features |= zip(same, out.chunk(len(same)), strict=True)
    return torch.cat([features[v] for v in range(len(crops))])


def freeze(encoder: nn.Module, beginnings: tuple[str, ...]) -> None:
    """Freeze parameters by the beginnings of their names. Raises ValueError if none matches one."""
    for start in beginnings:
        found = [p for name, p in encoder.named_parameters() if name.startswith(start + ".")]
        if not found:
            names = sorted({name.rsplit(".", 1)[0] for name, _ in encoder.named_parameters()})
            raise ValueError(f"frozen must name parts of the encoder, {names}; got {start!r}")
        for p in found:
            p.requires_grad_(False)


def reset(network: nn.Module) -> None:
    """Give every layer of a network new random weights, in place, as PyTorch draws them."""
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()  # type: ignore[operator]
