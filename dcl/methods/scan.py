r"""SCAN: semantic clustering by adopting nearest neighbours.

Paper: Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool, *SCAN: Learning to Classify
Images without Labels*, ECCV 2020, arXiv 2005.12320. Explained in chapter scan.

Notation: images :math:`X`, mined neighbours :math:`N_X`, cluster probabilities :math:`\Phi(X)`,
their mean over the batch :math:`\bar\Phi`, entropy :math:`H`, its weight :math:`\lambda`.

Algorithm (the paper's Algorithm 1):

1. pretext: train an encoder without labels (eq. 1; here SimCLR)
2. mining: :math:`N_X` = the k nearest images of each X in the pretext's embedding
3. clustering: linear heads with softmax on the encoder; draw a neighbour of each image, minimise
   :math:`-\frac{1}{|B|}\sum_X \log \langle \Phi(X), \Phi(N_X) \rangle - \lambda H(\bar\Phi)`, eq. 2
4. of several heads keep the one with the lowest loss
5. self-labelling (`dcl.methods.selflabel`)

**Differences**

- the log of the inner product is computed in log space; the released code takes the BCE of the
  product, whose log is cut at -100: pairs that disagree completely get no gradient
- neighbours are drawn from the k mined; the released draw includes the image itself
- head and network are chosen on the training images with the loss that was trained, last epoch;
  the released code takes the best epoch and head on the test images, with entropy weight 1
- image and neighbour go through the network in one pass, so BatchNorm sees 2B images
- with several processes the mean prediction is that of the whole batch
- a frozen encoder whose view changes nothing runs once; the heads are trained on its features
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dcl.algorithm import Run, algorithm, pretrain, untrained
from dcl.cluster.balance import mean_entropy
from dcl.cluster.neighbors import draw, mine
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr
from dcl.methods.selflabel import SelfLabel
from dcl.nets.convnets import Heads, identity, linear_head
from dcl.nets.features import features
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import extract, train, unit
from dcl.views import SCAN_STRONG, View


@dataclass(frozen=True)
class Config:
    """The paper's settings for CIFAR-10; batches and epochs as in the released configuration."""

    gone: ClassVar = {"official_neighbors": False}
    advice: ClassVar = dict.fromkeys(("collapse", "dead clusters"), "Raise entropy_weight.")

    n_clusters: int = 10  #: may exceed the number of classes (over-clustering)
    n_neighbors: int = 20  #: k, neighbours mined for each image
    heads: int = 1  #: linear heads trained side by side (the paper's ImageNet: 10)
    normalize: bool = False  #: BatchNorm before each head: ours, for schedules of hundreds of steps
    entropy_weight: float = 5.0  #: lambda of eq. 2
    threshold: float = 0.99  #: confidence above which an image is labelled by the network itself
    balance: bool = True  #: in self-labelling every class present weighs the same
    freeze_encoder: bool = False  #: step 3 trains the heads only (the paper's ImageNet)
    scan_view: View = SCAN_STRONG  #: of image and neighbour in step 3
    weak: View = View()  #: that is labelled in step 5
    strong: View = SCAN_STRONG  #: that is trained in step 5
    ema: Literal["off", "teacher"] = "off"  #: who labels in step 5: the network, or a mean teacher
    ema_decay: float = 0.999
    pretext: simclr.Config = simclr.Config()  #: with `seed` for its own; unused with an encoder
    scan: TrainConfig = TrainConfig(50, 128, "adam", 1e-4, weight_decay=1e-4)
    selflabel: TrainConfig = TrainConfig(200, 1000, "adam", 1e-4, weight_decay=1e-4)
    """0 epochs: no self-labelling."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, n_neighbors=1, heads=1, threshold=(0, 1), ema_decay=(0, 1))

    @property
    def takes_vectors(self) -> bool:
        """Whether nothing but heads is trained, on features that are there already."""
        return self.freeze_encoder and self.scan_view == View() and not self.selflabel.epochs

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: each has n - 1 neighbours."""
        return {"n_neighbors": n - 1}


def consistency(log_a: Tensor, log_n: Tensor) -> Tensor:
    """Minus the log of each pair's inner product, (B,), from log-probabilities (B,K): eq. 2."""
    return -torch.logsumexp(log_a + log_n, dim=1)  # a gradient however small the product


def scan_loss(anchors: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """Disagreement with the neighbours minus the entropy of the anchors' mean prediction, eq. 2.

    `anchors`, `neighbors` (B,K): logits. A scalar, at least ``-entropy_weight * ln K``.
    """
    log_a, log_n = anchors.log_softmax(1), neighbors.log_softmax(1)
    return consistency(log_a, log_n).mean() - entropy_weight * mean_entropy(log_a)


def head_losses(log_p: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """SCAN losses (H,) of H heads, of log-probabilities (N,H,K) and neighbours (N,k): no labels."""
    columns = [torch.logsumexp(log_p + log_p[j], dim=2).mean(0) for j in neighbors.T]  # k x (H,)
    entropy = torch.stack([mean_entropy(one) for one in log_p.unbind(1)])  # (H,)
    return -torch.stack(columns).mean(0) - entropy_weight * entropy


class Scan(Objective):
    """Step 3: an encoder and linear heads that agree with their neighbours."""

    def __init__(self, encoder: Encoder, images: Tensor, neighbors: Tensor, config: Config):
        super().__init__()
        self.config, self.images, self.encoder = config, images, encoder
        encoder.requires_grad_(not config.freeze_encoder)
        k, norm = config.n_clusters, config.normalize
        self.heads = Heads(linear_head(encoder, k, norm) for _ in range(config.heads))
        self.neighbors = nn.Buffer(neighbors)  # (N,k)

    def before_epoch(self, epoch: int) -> None:
        """A frozen encoder stays in eval mode."""
        self.encoder.train(not self.config.freeze_encoder)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The SCAN loss of images and one neighbour each, summed over heads."""
        view, weight = self.config.scan_view, self.config.entropy_weight
        j = draw(self.neighbors, i)
        z = self.encoder(torch.cat([view(x), view(unit(self.images[j]))]))  # (2B,D)
        logits = self.heads(z).float()  # (2B,H,K)
        anchors, others = (all_gather_rows(y).unbind(1) for y in logits.chunk(2))  # H x (B,K)
        losses = torch.stack([scan_loss(a, n, weight) for a, n in zip(anchors, others)])  # (H,)
        h = torch.stack([mean_entropy(a.log_softmax(1)) for a in anchors]).mean()
        return {"loss": losses.sum(), "consistency": losses.mean() + weight * h, "entropy": h}

    def log_proba(self, x: Tensor) -> Tensor:
        """Log-probabilities (B,H,K) of all heads."""
        return self.heads(self.encoder(x)).float().log_softmax(2)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, by the first head."""
        return self.log_proba(x)[:, 0].exp()

    def chances(self) -> dict[str, float]:
        """Both terms are ln K for a network that knows nothing."""
        return dict.fromkeys(("consistency", "entropy"), math.log(self.config.n_clusters))


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> SelfLabel:
    """What `fit` returns, with fresh weights, for images (N,C,H,W) or vectors (N,d)."""
    pretext = untrained(simclr, images, config, encoder)
    trunk: Any = getattr(pretext, "encoder", pretext)
    head = linear_head(trunk, config.n_clusters, config.normalize)
    return SelfLabel(trunk, head.to(images.device), config)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> SelfLabel:
    """Cluster images uint8 (N,C,H,W) without labels, or vectors (N,d) if all but heads is frozen.

    `encoder`: a trained pretext, a `simclr.SimCLR` (mined in its embedding) or any module with
    `out_dim` (mined in its features); a copy is trained. Chapter: scan.
    """
    pretext = pretrain(simclr, images, config, run, encoder)  # 1.
    embed, trunk = getattr(pretext, "embed", pretext), getattr(pretext, "encoder", pretext)
    frozen = config.freeze_encoder and config.scan_view == View()  # every view is the same
    seen = features(trunk, images, cache=run["run_dir"]).to(images.device) if frozen else images
    z = seen if frozen and embed is trunk else extract(embed, images)  # 2. mining
    neighbors = mine(z, config.n_neighbors)

    scan = Scan(identity(trunk.out_dim) if frozen else trunk, seen, neighbors, config)  # 3.
    train(scan, seen, config.scan, stage="scan", **run)
    log_p = extract(scan.log_proba, seen)  # 4. the head with the lowest loss
    best = int(head_losses(log_p, neighbors, config.entropy_weight).argmin())
    fitted = SelfLabel(trunk, scan.heads[best], config)  # 5. self-labelling
    train(fitted, images, config.selflabel, stage="selflabel", **run)
    return fitted.eval()
