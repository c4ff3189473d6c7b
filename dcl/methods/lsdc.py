r"""LSD-C: linearly separable deep clusters, learned from which pairs in a batch look alike.

Paper: Rebuffi, Ehrhardt, Han, Vedaldi, Zisserman, *LSD-C: Linearly Separable Deep Clusters*, 2020,
arXiv 2006.10039. Explained in chapter lsdc.

Notation: features :math:`f_i` and cluster probabilities :math:`p_i` of the clean view of image i;
:math:`\tilde p_i, \tilde p'_i` probabilities of two RICAP mixtures; pair labels
:math:`S_{ij} \in \{0,1\}`; RICAP's partners :math:`\pi_k` and shares of the area :math:`W_k`.

Algorithm, after pretraining the encoder (here RotNet) and freezing its lower layers, for a batch:

1. features and probabilities of the clean view
2. pair labels from the detached features: cosine, L2 threshold, SNE, or k nearest neighbours
3. draw partners and patch sizes, mix two batches with them, at different patch positions
4. mix the pair labels on the side that was mixed, :math:`T_{ij} = \sum_k W_k S_{\pi_k(i) j}`
5. pair probabilities :math:`P_{ij} = \tilde p_i \cdot p_j`; step down, at epoch t from 0, with
   :math:`w(t) = 5 \exp(-5 (1 - \min(t, 100)/100)^2)`,

   .. math:: \frac{1}{B^2} \sum_{ij} -\left[ T_{ij} \log P_{ij} + (1 - T_{ij}) \log (1 - P_{ij})
             \right] + w(t)\, \frac{1}{BK} \sum_i \lVert \tilde p_i - \tilde p'_i \rVert^2

**Differences**

- the released code permutes the side of the pair labels that was not mixed (chapter lsdc)
- the L2 labeler exists (released: an UnboundLocalError), and P is clamped to [0,1] (released: NaN)
- the head may `start` at centroids of k-means, so that no two classes begin as one; paper: random
- the clean view may have a recipe of its own, `clean_view`; in the paper it is that of the others
- kept: three forward passes; BatchNorm of frozen layers in training mode, so its statistics move
- with several processes, mixtures of the own images meet the clean images of all
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.kmeans import kmeans
from dcl.cluster.pairwise import cosine_labels, knn_labels, l2_labels, pair_loss, sne_labels
from dcl.config import TrainConfig, check_config
from dcl.methods import rotnet, simclr
from dcl.nets.convnets import freeze
from dcl.objective import Encoder, Objective
from dcl.optim import ramp_up
from dcl.runtime.dist import all_gather_rows, own_rows
from dcl.train import extract, train
from dcl.views import CROP_FLIP, View
from dcl.views.ricap import RicapDraw, mixed_targets, ricap, ricap_draw


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    gone: ClassVar = {"official_orientation": False}
    advice: ClassVar = {"collapse": "Raise threshold."}
    n_clusters: int = 10
    labeler: Literal["cosine", "l2", "sne", "knn"] = "cosine"  #: which pairs of a batch are alike
    threshold: float = 0.9
    """cosine: least similarity; l2: a distance too large; sne: affinity too small (theirs .01)."""
    temperature: float = 1.0  #: sne only: width T of the Gaussian
    k: int = 20  #: knn only: neighbours, the image itself counted
    beta: float = 0.3  #: parameter of RICAP's Beta(beta, beta); 0: no mixing
    consistency: float = 5.0  #: final weight of the squared error between the two mixtures
    ramp: int = 100  #: epochs over which that weight rises
    view: View = CROP_FLIP  #: of the images before they are mixed
    clean_view: View = CROP_FLIP  #: of the images that are labelled
    frozen: tuple[str, ...] = ("1.conv1", "1.bn1", "1.layer1", "1.layer2", "1.layer3")
    """Beginnings of the names of the encoder's parameters that stay as the pretext left them."""
    pretext: rotnet.Config | simclr.Config = rotnet.Config()  #: trained with `seed`, or `encoder`
    start: Literal["random", "kmeans"] = "random"  #: of the linear head: the best of ten k-means
    head_rate: float = 1.0  #: learning rate of the linear head, in multiples of the encoder's
    train: TrainConfig = TrainConfig(
        epochs=220, lr=0.1, weight_decay=5e-4, schedule="step", milestones=(140, 180)
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "temperature", ramp=1, k=2)

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: neighbours are sought in a batch."""
        return {"k": min(n, self.train.batch_size)} if self.labeler == "knn" else {}


def pair_labels(f: Tensor, config: Config) -> Tensor:
    """The labels (B,B) of features (B,D) by the rule of the configuration, without gradient."""
    f = f.detach().float()
    if config.labeler == "knn":
        return knn_labels(f, config.k)
    if config.labeler == "sne":
        return sne_labels(f, config.threshold, config.temperature)
    return (cosine_labels if config.labeler == "cosine" else l2_labels)(f, config.threshold)


class LSDC(Objective):
    """An encoder and a linear head that separate a batch along the gaps in its features."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.head = nn.Linear(encoder.out_dim, config.n_clusters)
        freeze(encoder, config.frozen)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder's trained layers, and the head at its own rate."""
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        head = {"params": list(self.head.parameters()), "lr_scale": self.config.head_rate}
        return [{"params": trained}, head] if trained else [head]

    def targets(self, alike: Tensor, draw: RicapDraw) -> Tensor:
        """Step 4: pair labels (b,B) of own images with those of all, mixed by `draw`."""
        return mixed_targets(alike, draw)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Pair and consistency loss; "positive" is the share of pairs called alike."""
        c, f = self.config, self.encoder(self.config.clean_view(x))
        target = alike = pair_labels(all_gather_rows(f), c)[own_rows(x)]  # own images, and all
        a, b = c.view(x), c.view(x)
        if c.beta:
            draw = ricap_draw(len(x), (x.shape[2], x.shape[3]), c.beta, x.device)
            a, b, target = ricap(a, draw), ricap(b, draw), self.targets(alike, draw)
        features = (f, self.encoder(a), self.encoder(b))
        p, p_a, p_b = (self.head(z).float().softmax(1) for z in features)
        with torch.autocast(x.device.type, enabled=False):
            pairs, agree = pair_loss(p_a, all_gather_rows(p), target), F.mse_loss(p_a, p_b)
        found = {"pairs": pairs, "consistency": agree, "positive": alike.mean()}
        return {"loss": pairs + ramp_up(self.epoch, c.ramp, c.consistency) * agree, **found}

    @torch.no_grad()
    def start_at_centroids(self, images: Any) -> None:
        """Set the head's rows to the directions of k-means' centroids in the features of images."""
        found = kmeans(extract(self.embed, images), self.config.n_clusters, n_init=10)
        self.head.weight.copy_(F.normalize(found.centroids, dim=1))
        self.head.bias.zero_()

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x."""
        return self.head(self.encoder(x)).float().softmax(1)


class Embedding(nn.Sequential):
    """SimCLR's encoder and head as one encoder; its features have the length sqrt(out_dim)."""

    def __init__(self, pretext: simclr.SimCLR):
        super().__init__(pretext.encoder, pretext.head)
        self.out_dim = pretext.config.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,out_dim) of images (B,C,H,W)."""
        return F.normalize(super().forward(x), dim=1) * self.out_dim**0.5


def features_of(pretext: nn.Module) -> Any:
    """RotNet's encoder, SimCLR's embedding, or the module itself: what the head is put on."""
    trunk = pretext.encoder if isinstance(pretext, rotnet.RotNet) else pretext
    return Embedding(pretext) if isinstance(pretext, simclr.SimCLR) else trunk


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> LSDC:
    """What `fit` returns, with fresh weights, for images like `images` (N,C,H,W)."""
    pretext = _pretext(config).model(images, config.pretext) if encoder is None else encoder
    return LSDC(features_of(pretext), config)


def _pretext(config: Config) -> Any:
    return simclr if isinstance(config.pretext, simclr.Config) else rotnet


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> LSDC:
    """Cluster images uint8 (N,C,H,W); `encoder`: any with `out_dim`, a fitted SimCLR or RotNet."""
    pretext = pretrain(_pretext(config), images, config, run, encoder)
    lsdc = LSDC(features_of(pretext), config).to(images.device)
    if config.start == "kmeans":
        lsdc.start_at_centroids(images)
    train(lsdc, images, config.train, **run)
    return lsdc
