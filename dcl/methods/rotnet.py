r"""RotNet: features from predicting how far an image was rotated; the pretext task of LSD-C.

Paper: Gidaris, Singh, Komodakis, *Unsupervised Representation Learning by Predicting Image
Rotations*, ICLR 2018, arXiv 1803.07728. Explained in chapter lsdc.

Algorithm, for every batch of images :math:`x_1,\dots,x_B`:

1. draw a view of each image and turn it by 0, 90, 180 and 270 degrees
2. classify all 4B pictures: encoder, linear head with four outputs
3. step down the cross-entropy of the angle (eq. 2 and 3):

   .. math:: -\frac{1}{4B} \sum_b \sum_{y=0}^{3} \log F^y(\mathrm{rot}_y(x_b))

**Differences**

- the recipe (epochs, learning rate, view) is the one that LSD-C's authors published with a
  neighbouring method; LSD-C itself ships weights and no training code
- the last epoch is kept; that recipe keeps the epoch with the best rotation accuracy on the test
  images
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.config import TrainConfig
from dcl.nets import convnets
from dcl.objective import Encoder, Objective
from dcl.train import train
from dcl.views import CROP_FLIP, View


@dataclass(frozen=True)
class Config:
    """Settings for CIFAR-10."""

    encoder: str = "resnet18"  #: one of `dcl.nets.convnets.ENCODERS`
    width: int | None = None  #: width of the encoder; None: the original's
    shortcut: str = "pad"  #: of a ResNet: pad has no parameters, conv is a 1x1 convolution
    view: View = CROP_FLIP  #: drawn before the rotations
    # fmt: off
    train: TrainConfig = TrainConfig(epochs=200, batch_size=128, lr=0.1, nesterov=True,
        weight_decay=5e-4, schedule="step", milestones=(60, 120, 160), gamma=0.2)
    # fmt: on
    """A batch of 128 images is 512 pictures."""
    seed: int = 0


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """The images turned by 0, 90, 180 and 270 degrees, and by how many quarters.

    `x` (B,C,H,H): returns (4B,C,H,H) and int64 (4B,), first all of 0, then all of 90 degrees, ...
    counter-clockwise. Raises ValueError unless square. Source: RotNet, eq. 2. Chapter: lsdc.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"images must be square to be turned; got {tuple(x.shape[-2:])}")
    turned = torch.cat([x.rot90(quarter, (2, 3)) for quarter in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))


class RotNet(Objective):
    """An encoder that learns to tell four rotations apart. It does not cluster."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config = c = config
        if encoder is None:
            encoder = convnets.encoder(c.encoder, images, width=c.width, shortcut=c.shortcut)
        self.encoder = encoder
        self.head = nn.Linear(self.encoder.out_dim, 4)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the rotation; "rotation" is the rotation accuracy."""
        turned, quarter = rotations(self.config.view(x))
        logits = self.head(self.encoder(turned)).float()  # (4B,4)
        right = (logits.argmax(1) == quarter).float().mean()
        return {"loss": F.cross_entropy(logits, quarter), "rotation": right}

    def chances(self) -> dict[str, float]:
        """A network that knows nothing guesses one of four."""
        return {"loss": math.log(4)}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> RotNet:
    """Train an encoder on square images uint8 (N,C,H,H) without labels. Chapter: lsdc."""
    pretext = RotNet(images, config, encoder)
    train(pretext, images, config.train, stage="pretext", **run)
    return pretext


model = RotNet  # what `fit` returns, with fresh weights
