"""Features of 10,000 photographs: what lives on features needs neither images nor a network.

The test images of CIFAR-10, from JPEG files, through EfficientNet-Lite0 at 224 pixels, which was
trained with the labels of ImageNet; their first principal components, a byte each. No image can be
made from them. Made by book/photographs.py; sources and licences: data/README.md.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".safetensors")


class Photographs(NamedTuple):
    """Vectors float32 (10000,D) and the class of each, int64 (10000,)."""

    vectors: Tensor
    labels: Tensor
    classes: list[str]


def packed(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first `dim` principal components of features (N,D): int8 (N,dim), and what a 1 means.

    The components are not rescaled, so that distances are those between the features; the second
    tensor is float32 (dim,). The sign of a component makes its largest value positive.
    """
    x = features.double() - features.double().mean(0)
    axes = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :dim]  # (D,dim), the widest first
    x = x @ axes
    x = x * x.gather(0, x.abs().argmax(0, keepdim=True)).sign()
    step = (x.amax(0) / 127).float()
    return (x / step).round().to(torch.int8), step


def photographs(file: Path = FILE) -> Photographs:
    """Read the committed features; the values are the same on every machine."""
    from safetensors import safe_open

    with safe_open(file, "pt") as f:
        parts = {name: f.get_tensor(name) for name in ("components", "step", "labels")}
        classes = f.metadata()["classes"].split(",")
    return Photographs(parts["components"].float() * parts["step"], parts["labels"].long(), classes)
