"""Autoencoders: an encoder to a short code, and the decoder that mirrors it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcl.nets.convnets import evenly_spaced, mlp
from dcl.objective import Encoder

ENCODERS = ("mlp", "cnn")


class Scale(nn.Module):
    """Multiply by one number, by default such that the mean of ``|x|^2 / d`` is 1.

    Source: Xie, Girshick, Farhadi 2016 (DEC), section 4.3. Chapter: dec.
    """

    def __init__(self, images: Any, factor: float | None = None):
        super().__init__()
        if factor is None:
            sample = evenly_spaced(images).float()
            square = float(sample.square().mean()) / (255**2 if images.dtype == torch.uint8 else 1)
            factor = 1 / math.sqrt(square) if square else 1.0
        self.factor = nn.Buffer(torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        """(B,...) -> (B,...)."""
        return x * self.factor


class Crop(nn.Module):
    """The upper left `height` x `width` pixels."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,height,width)."""
        return x[..., : self.height, : self.width]


def mlp_decoder(out_dim: int, dims: Sequence[int], images: Any) -> nn.Sequential:
    """Decoder from a code (B,out_dim) to a flat image or vector (B,d), through reversed `dims`."""
    return mlp([out_dim, *reversed(dims[:-1]), math.prod(images.shape[1:])], batch_norm=False)


def mlp_coders(images: Any, dims: Sequence[int]) -> tuple[nn.Sequential, nn.Sequential]:
    """DEC's networks: layers of `dims` with ReLU between, none on the code or the output.

    For images (N,C,H,W) or vectors (N,d). Source: DEC, section 4.3. Chapter: dec.
    """
    trunk = mlp([math.prod(images.shape[1:]), *dims], batch_norm=False)
    return nn.Sequential(nn.Flatten(), *trunk), mlp_decoder(dims[-1], dims, images)


def cnn_coders(images: Any, dims: Sequence[int]) -> tuple[nn.Sequential, nn.Sequential]:
    """Convolutions that halve the image, with `dims[:-1]` maps, then a linear layer to `dims[-1]`.

    ReLU between, as above, and no BatchNorm, so that an image's code does not depend on its batch.
    The decoder doubles the sides again and crops the surplus border.
    """
    channels, height, width = images.shape[1:]
    stages = len(dims) - 1
    small = [-(-side // 2**stages) for side in (height, width)]
    last = dims[-2] * math.prod(small)
    up: list[nn.Module] = []
    down: list[nn.Module] = []
    for a, b in zip([channels, *dims], dims[:-1]):
        down += [nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()]
        up = [nn.ConvTranspose2d(b, a, 4, 2, 1), *([nn.ReLU()] if up else []), *up]
    down += [nn.Flatten(), nn.Linear(last, dims[-1])]
    start = [nn.Linear(dims[-1], last), nn.ReLU(), nn.Unflatten(1, (dims[-2], *small))]
    return nn.Sequential(*down), nn.Sequential(*start, *up, Crop(height, width), nn.Flatten())


def coders(
    name: str, images: Any, dims: Sequence[int], scale: float | None = None
) -> tuple[Encoder, nn.Module]:
    """Encoder (scaling, layers; has `out_dim`) and decoder (B,out_dim) -> scaled inputs (B,d).

    `name` is one of `ENCODERS`; `images` uint8 (N,C,H,W), or for "mlp" also vectors (N,d).
    Raises ValueError for an unknown name, and for vectors with "cnn".
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}; got {name!r}")
    if name == "cnn" and images.ndim != 4:
        raise ValueError(f"encoder cnn needs images (N,C,H,W); got {tuple(images.shape)}")
    down, up = (mlp_coders if name == "mlp" else cnn_coders)(images, dims)
    encoder: Any = nn.Sequential(Scale(images, scale), down)
    encoder.out_dim = dims[-1]
    return encoder.to(images.device), up.to(images.device)
