r"""Autoencoder: a code of ten numbers from which the image can be reconstructed; DEC's pretext.

Xie, Girshick, Farhadi: Unsupervised Deep Embedding for Clustering Analysis, ICML 2016,
arXiv 1511.06335, section 3.2; stacked denoising autoencoders are from Vincent et al. 2010.
Explained in chapter dec.

Notation: x an image or vector of d numbers, already scaled; encoder f, code :math:`z = f(x)`,
decoder g; :math:`W_k` the encoder's layers, :math:`V_k` those of the decoder that undo them.

Algorithm:

1. Scale the input by one number for the whole set, so that the mean of
   :math:`\lVert x \rVert^2 / d` is one.
2. Layer by layer, if `layers` has epochs: with :math:`h_{k-1}` the outputs of the layers below,
   which are frozen,

   .. math:: \min_{W_k, V_k} \lVert h_{k-1} -
             V_k\, \mathrm{drop}(\mathrm{ReLU}(W_k\, \mathrm{drop}(h_{k-1}))) \rVert^2

   without dropout on the image and on the code, and without ReLU on the code; the reconstruction
   has a ReLU where :math:`h_{k-1}` had one.
3. The whole stack without dropout: :math:`\min \lVert x - g(f(x)) \rVert^2`.

All squared errors are means, over images and over the numbers of each.

**Differences** from the released code

- the paper scales as in step 1; its code multiplies MNIST's pixels by .02, which gives 2.9 instead
  of one: `scale=5.1` for images in [0,1]
- biases have the learning rate of the weights (released: twice), momentum is constant (released:
  it rises over 1,000 steps), and the learning rate drops at the nearest end of an epoch
- step 2 may be left out, as in later re-implementations, which found it no better
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.config import TrainConfig, check_config
from dcl.nets.autoencoders import Scale, coders, mlp_decoder
from dcl.objective import Encoder, Objective
from dcl.train import train


@dataclass(frozen=True)
class Config:
    """The released settings for MNIST."""

    takes_vectors = True

    encoder: Literal["mlp", "cnn"] = "mlp"
    """mlp: linear layers; cnn: convolutions, one to halve the image for each width but the last."""
    dims: tuple[int, ...] = (500, 500, 2000, 10)
    """Widths of the encoder's layers; the last is the length of the code."""
    scale: float | None = None  #: factor for the input; None: the mean of its squares becomes one
    layers: TrainConfig = TrainConfig(213, 256, lr=0.1, schedule="step", milestones=(85, 170))
    """Training of each layer, with dropout, before that of all; 0 epochs: none."""
    dropout: float = 0.2  #: share of a layer's numbers dropped while it is trained alone
    train: TrainConfig = TrainConfig(
        427, 256, lr=0.1, schedule="step", milestones=(85, 170, 256, 342)
    )
    """Training of all layers together."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "scale", dropout=(0, 1))
        if len(self.dims) < 2 or min(self.dims) < 1:
            raise ValueError(f"dims must be two widths or more, each at least 1; got {self.dims}")
        if self.encoder == "cnn" and self.layers.epochs:
            raise ValueError("layers.epochs must be 0 with encoder cnn: only mlp has such layers")


class Autoencoder(Objective):
    """Encoder and decoder that reconstruct the scaled input. It does not cluster."""

    def __init__(self, images: Any, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, self.scale = config, Scale(images, config.scale)
        own, decoder = coders(config.encoder, images, config.dims, config.scale)
        if encoder is not None:
            decoder = mlp_decoder(encoder.out_dim, config.dims, images)
        self.encoder, self.decoder = own if encoder is None else encoder, decoder
        self.to(images.device)

    def target(self, x: Tensor) -> Tensor:
        """What is to be reconstructed, (B,d): images or vectors x, scaled."""
        return self.scale(x).flatten(1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the reconstruction."""
        return {"loss": F.mse_loss(self.decoder(self.encoder(x)).float(), self.target(x))}


class Layer(Objective):
    """One layer of the encoder and its mirror in the decoder, as a denoising autoencoder."""

    def __init__(
        self, below: nn.Module, layer: nn.Linear, mirror: nn.Linear, dropout: float, k: int, n: int
    ):
        """Layer k of n, both from 1."""
        super().__init__()
        self.below, self.mirror, self.dropout = below, mirror, dropout
        self.encoder = layer  # type: ignore[assignment]
        self.first, self.code = k == 1, k == n
        for linear in (layer, mirror):
            nn.init.normal_(linear.weight, 0, 0.01)
            nn.init.zeros_(linear.bias)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The layer and its mirror; the layers below are frozen."""
        return [{"params": [*self.encoder.parameters(), *self.mirror.parameters()]}]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the layer's input, reconstructed from a corrupted one."""
        drop = self.dropout
        with torch.no_grad():
            h = self.below(x)  # (B,a)
        z = self.encoder(h if self.first else F.dropout(h, drop))
        back = self.mirror(z if self.code else F.dropout(F.relu(z), drop))
        return {"loss": F.mse_loss((back if self.first else F.relu(back)).float(), h.float())}


def layers_of(objective: Autoencoder) -> Iterator[Layer]:
    """The encoder's layers from the image up, each with new weights (step 2)."""
    scale, trunk = objective.encoder.children()
    parts = list(trunk.children())
    at = {k: m for k, m in enumerate(parts) if isinstance(m, nn.Linear)}
    mirrors = [m for m in objective.decoder.children() if isinstance(m, nn.Linear)]
    for n, ((k, layer), mirror) in enumerate(zip(at.items(), mirrors[::-1], strict=True), 1):
        below = nn.Sequential(scale, *parts[:k])
        yield Layer(below, layer, mirror, objective.config.dropout, n, len(at))


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> Autoencoder:
    """Train on images uint8 (N,C,H,W), or vectors float32 (N,d), without labels.

    An `encoder` with `out_dim` is trained as a copy, with a decoder of linear layers; ValueError
    when it is to be trained layer by layer. Chapter: dec.
    """
    if encoder is not None and config.layers.epochs:
        raise ValueError("layers.epochs must be 0 with an encoder of your own")
    whole = Autoencoder(images, config, encoder)
    if config.layers.epochs:  # step 2
        for n, layer in enumerate(layers_of(whole), 1):
            train(layer, images, config.layers, stage=f"layer{n}", **run)
    train(whole, images, config.train, stage="pretext", **run)  # step 3
    return whole


model = Autoencoder  # what `fit` returns, with fresh weights
