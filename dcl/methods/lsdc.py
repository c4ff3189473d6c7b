r"""LSD-C: linearly separable deep clusters, learned from which pairs in a batch look alike.

Paper: Rebuffi, Ehrhardt, Han, Vedaldi, Zisserman, *LSD-C: Linearly Separable Deep Clusters*, 2020,
arXiv 2006.10039. Explained in chapter lsdc.

Notation: features :math:`f_i` and cluster probabilities :math:`p_i` of the clean view of image i;
:math:`\tilde p_i, \tilde p'_i` probabilities of two RICAP mixtures; pair labels
:math:`S_{ij} \in \{0,1\}`; RICAP's partners :math:`\pi_k` and shares of the area :math:`W_k`.

Algorithm, after pre-training the encoder (here RotNet) and freezing its lower layers; for every
batch:

1. features and probabilities of the clean view
2. pair labels from the detached features: cosine, L2 threshold, SNE, or k nearest neighbours
3. draw partners and patch sizes, mix two batches with them, at different patch positions
4. mix the pair labels in the same way, on the side that was mixed:
   :math:`T_{ij} = \sum_k W_k S_{\pi_k(i) j}`
5. pair probabilities :math:`P_{ij} = \tilde p_i \cdot p_j`; step down

   .. math:: \frac{1}{B^2} \sum_{ij} -\left[ T_{ij} \log P_{ij} + (1 - T_{ij}) \log (1 - P_{ij})
             \right] + w(t)\, \frac{1}{BK} \sum_i \lVert \tilde p_i - \tilde p'_i \rVert^2

   with :math:`w(t) = 5 \exp(-5 (1 - \min(t, 100)/100)^2)`, t the epoch from 0

**Differences**

- the released code permutes the side of the pair labels that was not mixed,
  :math:`S_{i \pi_k(j)}`; ``official_orientation=True`` does so
- P is clamped to [0,1] (released: NaN when rounding brings it above 1)
- the L2 labeler exists (released: an UnboundLocalError)
- the linear head may begin at the centroids of k-means, `start`; in the paper it is random
- the clean view may have a recipe of its own, `clean_view`; in the paper it is that of the others
- kept from the released code: three forward passes, and BatchNorm of frozen layers in training
  mode, so its running statistics move although its weights do not
- with several processes, mixtures of the own images meet the clean images of all; with
  `official_orientation`, which would permute those of the others too, only the own ones
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import check_fit
from dcl.cluster.kmeans import kmeans
from dcl.cluster.pairwise import pair_loss
from dcl.config import TrainConfig, check_config, with_epochs
from dcl.methods import rotnet, simclr
from dcl.runtime.dist import all_gather_rows, own_rows
from dcl.train import Monitor, Objective, extract, seeded, train
from dcl.views import CROP_FLIP, DIGIT_VIEW, View
from dcl.views.ricap import RicapDraw, ricap, ricap_draw


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    n_clusters: int = 10
    labeler: Literal["cosine", "l2", "sne", "knn"] = "cosine"
    """Rule that says which pairs of a batch are alike."""
    threshold: float = 0.9
    """cosine: least similarity; l2: a distance too large; sne: affinity too small (theirs .01)."""
    temperature: float = 1.0
    """sne only: width T of the Gaussian."""
    k: int = 20
    """knn only: neighbours, the image itself counted."""
    beta: float = 0.3
    """Parameter of RICAP's Beta(beta, beta); 0: no mixing."""
    consistency: float = 5.0
    """Final weight of the squared error between the two mixtures."""
    ramp: int = 100
    """Epochs over which that weight rises."""
    view: View = CROP_FLIP
    """View of the images before they are mixed."""
    clean_view: View = CROP_FLIP
    """View that is labelled."""
    frozen: tuple[str, ...] = ("1.conv1", "1.bn1", "1.layer1", "1.layer2", "1.layer3")
    """Beginnings of the names of the encoder's parameters that stay as the pretext left them."""
    official_orientation: bool = False
    """Permute the pair labels on the side that was not mixed, as the released code."""
    pretext: rotnet.Config | simclr.Config = rotnet.Config()
    """The paper's, or SimCLR. Its seed is replaced by `seed`. Unused with an encoder handed in."""
    start: Literal["random", "kmeans"] = "random"
    """What the linear head begins as. kmeans: the directions of k-means' centroids (best of 10
    starts) in the features that the head is put on, so that no two classes begin as one."""
    head_rate: float = 1.0
    """Learning rate of the linear head, in multiples of that of the encoder."""
    train: TrainConfig = TrainConfig(
        epochs=220, lr=0.1, weight_decay=5e-4, schedule="step", milestones=(140, 180)
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, ramp=1)
        size = self.train.batch_size
        for name, good, expected in (
            ("k", self.labeler != "knn" or 2 <= self.k <= size, f"in 2 to batch_size, {size}"),
            ("temperature", self.temperature > 0, "above 0"),
        ):
            if not good:
                raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")


# ---------------------------------------------------------------- pair labels


def cosine_labels(f: Tensor, threshold: float = 0.9) -> Tensor:
    """1 where the cosine of two rows of f (B,D) is at least `threshold`: (B,B) of 0 and 1.

    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    f = F.normalize(f, dim=1)
    return (f @ f.T >= threshold).float().fill_diagonal_(1)


def l2_labels(f: Tensor, threshold: float) -> Tensor:
    """1 where the distance of two rows of f (B,D) is below `threshold`: (B,B) of 0 and 1.

    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    return (torch.cdist(f, f) < threshold).float().fill_diagonal_(1)


def sne_labels(f: Tensor, threshold: float = 0.01, temperature: float = 1.0) -> Tensor:
    """1 where the SNE affinity of two rows of f (B,D) is above `threshold`: (B,B) of 0 and 1.

    The affinity is the mean of "j is i's neighbour" and "i is j's", each a softmax of minus the
    squared distance over T squared. Source: LSD-C section 3.1. Chapter: lsdc.
    """
    logits = -(torch.cdist(f, f) ** 2) / temperature**2
    logits.fill_diagonal_(-torch.inf)  # nobody is its own neighbour
    return ((logits.softmax(1) + logits.softmax(0)) / 2 > threshold).float().fill_diagonal_(1)


def knn_labels(f: Tensor, k: int = 20) -> Tensor:
    """1 where i is near to j *or* j near to i, rows of f (B,D): (B,B) of 0 and 1.

    Near: closer than the k-th smallest distance, the own one (0) counted, so k - 2 others.
    Source: LSD-C section 3.1. Chapter: lsdc.
    """
    distance = torch.cdist(f, f).fill_diagonal_(0)
    near = distance < distance.kthvalue(k, dim=1).values[:, None]
    return (near | near.T).float().fill_diagonal_(1)


def pair_labels(f: Tensor, config: Config) -> Tensor:
    """The labels (B,B) of features (B,D) by the rule of the configuration, without gradient."""
    f = f.detach().float()
    if config.labeler == "knn":
        return knn_labels(f, config.k)
    if config.labeler == "sne":
        return sne_labels(f, config.threshold, config.temperature)
    return (cosine_labels if config.labeler == "cosine" else l2_labels)(f, config.threshold)


# ---------------------------------------------------------------- losses


def mixed_targets(s: Tensor, draw: RicapDraw, official: bool = False) -> Tensor:
    r"""Soft pair labels (B,B) of RICAP mixtures (rows) and clean images (columns).

    :math:`T_{ij} = \sum_k W_k S_{\pi_k(i) j}`: a mixture is as much like j as its parts are, by
    their area. `official` is the released :math:`\sum_k W_k S_{i \pi_k(j)}`, the transpose.
    Source: LSD-C section 3.2. Chapter: lsdc.
    """
    parts = [s[:, perm] if official else s[perm] for perm in draw.perms]
    return torch.einsum("k,kij->ij", draw.weights, torch.stack(parts))


def ramp_up(epoch: int, length: int = 100, height: float = 5.0) -> float:
    """Weight of the consistency loss, from height * exp(-5) at 0 to `height` at `length`.

    Source: LSD-C section 3.3, after Laine and Aila 2017. Chapter: lsdc.
    """
    return height * math.exp(-5 * (1 - min(epoch, length) / length) ** 2)


# ---------------------------------------------------------------- objective


class LSDC(Objective):
    """An encoder and a linear head that cut a batch where its own features see a gap."""

    def __init__(self, encoder: nn.Module, config: Config):
        super().__init__()
        self.config, self.encoder, self.weight = config, encoder, 0.0
        self.head = nn.Linear(encoder.out_dim, config.n_clusters)  # type: ignore[arg-type]
        freeze(encoder, config.frozen)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder's trained layers, and the head at its own rate."""
        trained = [p for p in self.encoder.parameters() if p.requires_grad]
        head = {"params": list(self.head.parameters()), "lr_scale": self.config.head_rate}
        return [{"params": trained}, head] if trained else [head]

    def before_epoch(self, epoch: int) -> None:
        """Raise the weight of the consistency loss."""
        self.weight = ramp_up(epoch, self.config.ramp, self.config.consistency)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Pair and consistency loss; "positive" is the share of pairs called alike."""
        c = self.config
        gather = (lambda own: own) if c.official_orientation else all_gather_rows
        f = self.encoder(c.clean_view(x))
        mine = slice(None) if c.official_orientation else own_rows(x)
        target = alike = pair_labels(gather(f), c)[mine]  # own images with those of all
        a, b = c.view(x), c.view(x)
        if c.beta:
            draw = ricap_draw(len(x), (x.shape[2], x.shape[3]), c.beta, x.device)
            a, b = ricap(a, draw), ricap(b, draw)
            target = mixed_targets(alike, draw, c.official_orientation)
        p, p_a, p_b = (self.probabilities(z) for z in (f, self.encoder(a), self.encoder(b)))
        with torch.autocast(x.device.type, enabled=False):
            pairs, agree = pair_loss(p_a, gather(p), target), F.mse_loss(p_a, p_b)
        found = {"pairs": pairs, "consistency": agree, "positive": alike.mean()}
        return {"loss": pairs + self.weight * agree, **found}

    @torch.no_grad()
    def start_at_centroids(self, images: Any) -> None:
        """Set the head's rows to the directions of k-means' centroids in the features of images."""
        found = kmeans(extract(self.embed, images), self.config.n_clusters, n_init=10)
        self.head.weight.copy_(F.normalize(found.centroids, dim=1))
        self.head.bias.zero_()

    def probabilities(self, f: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of features (B,D)."""
        return self.head(f).float().softmax(1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x."""
        return self.probabilities(self.encoder(x))


def freeze(encoder: nn.Module, beginnings: tuple[str, ...]) -> None:
    """Take the parameters whose names begin so out of training. Raises ValueError if none does."""
    for start in beginnings:
        found = [p for name, p in encoder.named_parameters() if name.startswith(start + ".")]
        if not found:
            names = sorted({name.rsplit(".", 1)[0] for name, _ in encoder.named_parameters()})
            raise ValueError(f"frozen must name parts of the encoder, {names}; got {start!r}")
        for p in found:
            p.requires_grad_(False)


# ---------------------------------------------------------------- Algorithm 1


class Embedding(nn.Sequential):
    """SimCLR's encoder and head as one encoder; its features have the length sqrt(out_dim)."""

    def __init__(self, pretext: simclr.SimCLR):
        super().__init__(pretext.encoder, pretext.head)
        self.out_dim = pretext.config.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,out_dim) of images (B,C,H,W)."""
        return F.normalize(super().forward(x), dim=1) * self.out_dim**0.5


def features_of(pretext: nn.Module) -> nn.Module:
    """RotNet's encoder, SimCLR's embedding, or the module itself: what the head is put on."""
    if isinstance(pretext, simclr.SimCLR):
        return Embedding(pretext)
    return pretext.encoder if isinstance(pretext, rotnet.RotNet) else pretext


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> LSDC:
    """What `fit` returns, with fresh weights, for images like `images` (N,C,H,W)."""
    if encoder is None:
        pretext = simclr if isinstance(config.pretext, simclr.Config) else rotnet
        encoder = pretext.model(images, config.pretext)
    return LSDC(features_of(copy.deepcopy(encoder).to(images.device)), config)


def fit(
    images: Tensor,
    config: Config,
    *,
    encoder: nn.Module | None = None,
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> LSDC:
    """Cluster images uint8 (N,C,H,W) without labels.

    `encoder`: any trained module with `out_dim`, or a fitted `simclr.SimCLR` or
    `rotnet.RotNet`, instead of the pretext; a copy is trained. Chapter: lsdc.
    """
    check_fit(images, config, run_dir, encoder)
    with seeded(config.seed):
        if encoder is None:  # pretext
            inner = Path(run_dir) / "pretext" if run_dir else None
            recipe = replace(config.pretext, seed=config.seed)
            pretext = simclr if isinstance(recipe, simclr.Config) else rotnet
            encoder = pretext.fit(images, recipe, monitor=monitor, run_dir=inner)
        objective = model(images, config, encoder)
        if config.start == "kmeans":
            objective.start_at_centroids(images)
        train(objective, images, config.train, monitor=monitor, run_dir=run_dir)
    return objective


_D, _S = simclr.PROFILES["quick"], simclr.PROFILES["quick-shapes"]
_M = simclr.PROFILES["gpu-mnist"]
_QUICK = Config(threshold=0.7, ramp=10, view=DIGIT_VIEW, clean_view=View(), frozen=("0",),
    head_rate=30, pretext=_D,
    train=TrainConfig(12, 128, "adam", 3e-4, schedule="cosine"))  # fmt: skip
PROFILES = {
    "smoke": replace(_QUICK, labeler="knn", k=6, frozen=(), head_rate=1,
        pretext=simclr.PROFILES["smoke"], train=TrainConfig(3, 32, "adam", 5e-3)),
    "quick": replace(_QUICK, start="kmeans"),
    "quick-shapes": replace(_QUICK, n_clusters=6, view=_S.view, pretext=_S),
    "photos": replace(_QUICK, threshold=0.5, view=CROP_FLIP, pretext=simclr.PROFILES["photos"]),
    "gpu": Config(pretext=rotnet.PROFILES["gpu"], train=with_epochs(Config.train, 60)),
    "gpu-mnist": replace(_QUICK, threshold=0.6, ramp=3, view=_M.view, pretext=_M,
        frozen=("0.1.0", "0.1.1", "0.1.4", "0.1.5"), train=replace(_QUICK.train, epochs=4)),
    "paper": Config(),
}  # fmt: skip
