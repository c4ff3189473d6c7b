"""ResNet-18, -34 and -50 for images of any size, with any number of channels and of maps."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1-3x3-1x1 with `bottleneck`."""

    def __init__(self, a: int, b: int, stride: int, bottleneck: bool, shortcut: str):
        super().__init__()
        out = b * (4 if bottleneck else 1)
        first, second = (1, 3) if bottleneck else (3, 3)
        self.conv1 = nn.Conv2d(a, b, first, 1 if bottleneck else stride, first // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, second, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(b)
        if bottleneck:
            self.conv3 = nn.Conv2d(b, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.bottleneck = bottleneck
        self.downsample: nn.Module | None = None
        if stride != 1 or a != out:
            conv = nn.Sequential(nn.Conv2d(a, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            self.downsample = conv if shortcut == "conv" else PadShortcut(out - a, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B,a,H,W) -> (B,out,H/stride,W/stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PadShortcut(nn.Module):
    """Parameter-free shortcut: average pooling, new channels are zero (LSD-C)."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C+new,H/stride,W/stride)."""
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 without its classifier; parameter names are torchvision's.

    `stem`: "small" is a 3x3 convolution without pooling, for 16 to 64 px; "imagenet" is
    7x7 with stride 2 and a max-pool. `width` 64 is the original.
    Source: He et al. 2016; the small stem is SCAN's and LSD-C's. Chapter: scan.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        width: int = 64,
        stem: str = "small",
        shortcut: str = "conv",
    ):
        super().__init__()
        repeats, bottleneck = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3), depth == 50
        small = stem == "small"
        self.conv1 = nn.Conv2d(
            channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        a = width
        for k, n in enumerate(repeats):
            b = width * 2**k
            blocks = []
            for j in range(n):
                stride = 2 if k > 0 and j == 0 else 1
                blocks.append(Block(a, b, stride, bottleneck, shortcut))
                a = b * (4 if bottleneck else 1)
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> the maps (B,D,h,w) of the last block."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = self.get_submodule(f"layer{k}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> the spatial mean of the last block's maps."""
        return self.maps(x).mean((2, 3))
