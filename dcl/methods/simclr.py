r"""SimCLR: contrastive features, the pretext task of SCAN.

Paper: Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual
Representations*, ICML 2020, arXiv 2002.05709; the recipe is that of SCAN (Van Gansbeke et al.,
ECCV 2020). Explained in chapter scan.

Algorithm (SimCLR, Algorithm 1), for every batch :math:`x_1,\dots,x_B`:

1. draw two views of each image, :math:`\tilde x_k` and :math:`\tilde x_{k+B}`
2. embed: :math:`z = g(f(\tilde x)) / \lVert g(f(\tilde x)) \rVert`, encoder f, head g
3. for each of the 2B embeddings, pick its partner out of the 2B - 1 others (eq. 1):

   .. math:: \ell_{ab} = -\log \frac{\exp(z_a \cdot z_b / T)}
             {\sum_{c \neq a} \exp(z_a \cdot z_c / T)}

4. step down the mean of :math:`\ell_{k,k+B}` and :math:`\ell_{k+B,k}` over all k

**Differences**

- from the SimCLR paper: ResNet-18, SGD without LARS or warm-up, temperature .1, no blur: what
  SCAN trains its pretext with
- from SCAN's released code: that uses only the first views as anchors, half of step 4
  (``symmetric=False``); here the cosine is per step, there per epoch
- both views go through the network in one pass, so BatchNorm sees 2B images
- with several processes the negatives come from all of them
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.contrast import nt_xent
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import train
from dcl.views import PHOTO_VIEW, View


@dataclass(frozen=True)
class Config:
    """SCAN's settings for CIFAR and STL-10."""

    encoder: str = "resnet18"  #: one of `dcl.nets.convnets.ENCODERS`
    width: int | None = None  #: width of the encoder; None: the original's
    out_dim: int = 128  #: width of the embedding
    temperature: float = 0.1  #: T of eq. 1
    symmetric: bool = True  #: both views are anchors, as in the paper; SCAN's code: the first only
    view: View = PHOTO_VIEW  #: recipe of both views
    train: TrainConfig = TrainConfig(
        500, 512, lr=0.4, weight_decay=1e-4, schedule="cosine", final_lr=0.0004
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "temperature")


class SimCLR(Objective):
    """Encoder and projection head under NT-Xent. It embeds images; it does not cluster them."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config = config
        if encoder is None:
            encoder = convnets.encoder(config.encoder, images, width=config.width)
        self.encoder = encoder
        width = self.encoder.out_dim
        self.head = convnets.mlp((width, width, config.out_dim), batch_norm=False)

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (B,out_dim) of length 1 of images (B,C,H,W) in [0,1]."""
        return F.normalize(self.head(self.encoder(x)).float(), dim=1)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """NT-Xent of two views of each image; "positive" is the mean cosine of the two."""
        c = self.config
        z1, z2 = self.embed(torch.cat([c.view(x), c.view(x)])).chunk(2)
        with torch.autocast(x.device.type, enabled=False):  # cosines / T need more than 8 bits
            everybody = all_gather_rows(z1), all_gather_rows(z2)
            loss = nt_xent(*everybody, c.temperature, c.symmetric)
        return {"loss": loss, "positive": (z1 * z2).sum(1).mean()}


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> SimCLR:
    """Train an encoder on images uint8 (N,C,H,W) without labels. Chapter: scan."""
    pretext = SimCLR(images, config, encoder)
    train(pretext, images, config.train, stage="pretext", **run)
    return pretext


model = SimCLR  # what `fit` returns, with fresh weights
