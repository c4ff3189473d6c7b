"""Features of 10,000 photographs: what lives on features needs neither images nor a network.

The test images of CIFAR-10, from JPEG files, through EfficientNet-Lite0 at 224 pixels, which was
trained with the labels of ImageNet; the space of their first principal components, a byte a number.
No image can be made from them. Made by book/photographs.py; sources, licences: data/README.md.
"""

import json
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
    """Features (N,D) in the space of their `dim` principal components: int8 (N,dim), and a step.

    In it the axes are turned at random, so that all columns are about equally wide: methods divide
    each by its deviation, which would make the last components as large as the first. Distances
    are those between the features. The second tensor, float32 (dim,), is what a 1 means.
    """
    x = features.double() - features.double().mean(0)
    axes = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :dim]  # (D,dim), the widest first
    x = x @ axes
    x = x * x.gather(0, x.abs().argmax(0, keepdim=True)).sign()
    draw = torch.Generator().manual_seed(0)
    x = x @ torch.linalg.qr(torch.randn(dim, dim, generator=draw, dtype=torch.float64))[0]
    step = (x.abs().amax(0) / 127).float()
    return (x / step).round().to(torch.int8), step


def photographs(file: Path = FILE) -> Photographs:
    """Read the committed features; the values are the same on every machine."""
    from safetensors import safe_open

    with safe_open(file, "pt") as f:
        parts = {name: f.get_tensor(name) for name in ("components", "step", "labels")}
        classes = json.loads(f.metadata()["about"])["classes"]
    return Photographs(parts["components"].float() * parts["step"], parts["labels"].long(), classes)
