r"""IDEC: DEC with the decoder kept, so that the codes go on describing their images.

Guo, Gao, Liu, Yin: Improved Deep Embedded Clustering with Local Structure Preservation, IJCAI 2017.
Explained in chapter dec.

Notation: that of DEC; g the decoder, d the numbers of an image.

Algorithm: DEC's, whose step 4 is, for f, g and the centres,

.. math:: L_r + \gamma L,\; L_r = \frac{1}{B d} \sum_i \lVert x_i - g(z_i) \rVert^2

**Differences**

- the paper's formulas have no division by d; the authors' code has it, and the published figures
  come from that code. The chapter has the formulas' loss, and a port's, as subclasses
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dcl.algorithm import Run, algorithm, pretrain
from dcl.config import TrainConfig, check_config
from dcl.methods import autoencoder, dec
from dcl.objective import Encoder
from dcl.train import train


@dataclass(frozen=True)
class Config(dec.Config):
    """The paper's for MNIST."""

    gone: ClassVar = {"reading": "code", "refresh": "set"}

    gamma: float = 0.1  #: weight of the KL divergence beside the reconstruction
    interval: int = 140
    train: TrainConfig = TrainConfig(epochs=143, batch_size=256, optimizer="adam", lr=1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self, "gamma")


def reconstruction_loss(x: Tensor, drawn: Tensor) -> Tensor:
    """Squared error of the reconstruction `drawn` of x, both (B,d): mean over images and pixels.

    Source: the authors' code. Chapter: dec.
    """
    return (x - drawn).square().mean()


class IDEC(dec.DEC):
    """DEC's loss and the reconstruction of the images."""

    config: Config

    def __init__(self, images: Any, config: Config, encoder: Any):
        if not isinstance(encoder, autoencoder.Autoencoder):
            raise ValueError("encoder must be an Autoencoder for IDEC: it needs a decoder")
        super().__init__(images, config, encoder)
        self.decoder, self.scale = encoder.decoder, encoder.scale
        self.to(images.device)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4; "changed" is the share of labels that the last target found changed."""
        z = self.encoder(x)
        kl, error = self.divergence(z, i), self.reconstruction(z, x)
        found = {"kl": kl, "reconstruction": error, "changed": self.changed}
        return {"loss": error + self.config.gamma * kl, **found}

    def reconstruction(self, z: Tensor, x: Tensor) -> Tensor:
        """The error, a scalar, of reconstructing images or vectors x from their codes z (B,D)."""
        return reconstruction_loss(self.scale(x).flatten(1), self.decoder(z).float())


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> IDEC:
    """What `fit` trains on these images (N,C,H,W) or vectors (N,d), with fresh weights."""
    pretext = autoencoder.model(images, config.pretext) if encoder is None else encoder
    return IDEC(images, config, pretext)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> IDEC:
    """Cluster images uint8 (N,C,H,W), or vectors float32 (N,d), without labels.

    `encoder`: a fitted `autoencoder.Autoencoder` instead of the pretext; a copy is trained.
    Chapter: dec.
    """
    idec = IDEC(images, config, pretrain(autoencoder, images, config, run, encoder))
    train(idec, images, config.train, **run)
    return idec
