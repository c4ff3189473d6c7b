r"""SCAN: semantic clustering by adopting nearest neighbours.

Paper: Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool, *SCAN: Learning to Classify
Images without Labels*, ECCV 2020, arXiv 2005.12320. Explained in chapter scan.

Notation: images :math:`X`, mined neighbours :math:`N_X`, cluster probabilities
:math:`\Phi(X) \in [0,1]^K`, entropy weight :math:`\lambda`, mean prediction
:math:`\bar\Phi = \frac{1}{|B|}\sum_X \Phi(X)`, entropy :math:`H`.

Algorithm (the paper's Algorithm 1):

1. pretext: train an encoder without labels (eq. 1; here SimCLR)
2. mining: :math:`N_X` = the k nearest images of each X in the pretext's embedding
3. clustering: on top of the encoder, a linear head with softmax; for every image draw one of its
   neighbours, and minimise (eq. 2)

   .. math:: -\frac{1}{|B|}\sum_{X} \log \langle \Phi(X), \Phi(N_X) \rangle
             - \lambda H(\bar\Phi)

4. of several heads keep the one with the lowest loss
5. self-labelling: images whose weak view is classified with more than `threshold` are trained,
   in a strong view, with that class as the label (cross-entropy); repeat

**Differences**

- the log of the inner product is computed in log space. The released code takes BCE of the
  product, whose log is cut at -100: pairs that disagree completely get no gradient
- neighbours are drawn from the k mined; the released draw includes the image itself
  (``official_neighbors``)
- head and network are chosen on the training images with the loss that was trained, last epoch;
  the released code takes the best epoch and head on the test images, with entropy weight 1
- image and neighbour go through the network in one pass, so BatchNorm sees 2B images
- a batch without confident images has loss 0 (released code: an error) and is counted
- ``ema="teacher"`` is a mean teacher; ``ema="official"`` what the released ImageNet code does:
  the average overwrites the live network after every step
- ``normalize`` puts a BatchNorm before each head; only the quick recipes use it
- with several processes the mean prediction, and who is confident, are those of the whole batch
- a frozen encoder whose view changes nothing looks at every image once, and the heads are
  trained on its features
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dcl.algorithm import check_fit
from dcl.cluster.neighbors import draw, mine
from dcl.config import TrainConfig, check_config, with_epochs
from dcl.methods import simclr
from dcl.nets.convnets import identity
from dcl.nets.features import features
from dcl.optim import ema
from dcl.runtime.dist import all_gather_rows
from dcl.train import Monitor, Objective, extract, seeded, train, unit
from dcl.views import DIGIT_VIEW, SCAN_STRONG, View


@dataclass(frozen=True)
class Config:
    """The paper's settings for CIFAR-10; batches and epochs as in the released configuration."""

    n_clusters: int = 10
    """May exceed the number of classes (over-clustering)."""
    n_neighbors: int = 20
    """k, neighbours mined for each image."""
    heads: int = 1
    """Linear heads trained side by side (the paper's ImageNet: 10)."""
    normalize: bool = False
    """BatchNorm before each head: for schedules of hundreds of steps instead of thousands."""
    entropy_weight: float = 5.0
    """lambda of eq. 2."""
    threshold: float = 0.99
    """Confidence above which an image is labelled by the network itself."""
    balance: bool = True
    """In self-labelling every class present among the confident weighs the same."""
    freeze_encoder: bool = False
    """Step 3 trains the heads only, encoder in eval mode (the paper's ImageNet)."""
    scan_view: View = SCAN_STRONG
    """View of image and neighbour in step 3."""
    weak: View = View()
    """View that is labelled in step 5."""
    strong: View = SCAN_STRONG
    """View that is trained in step 5."""
    ema: Literal["off", "teacher", "official"] = "off"
    """Who labels in step 5: the network, a mean teacher, or the released code's average."""
    ema_decay: float = 0.999
    official_neighbors: bool = False
    """Draw the image itself as its own neighbour with probability 1/(k+1), as the released code."""
    pretext: simclr.Config = simclr.Config()
    """Step 1; its seed is replaced by `seed`. Unused when an encoder is handed in."""
    scan: TrainConfig = TrainConfig(50, 128, "adam", 1e-4, weight_decay=1e-4)
    selflabel: TrainConfig = TrainConfig(200, 1000, "adam", 1e-4, weight_decay=1e-4)
    """0 epochs: no self-labelling."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, heads=1, threshold=(0, 1), ema_decay=(0, 1))


def consistency(log_a: Tensor, log_n: Tensor) -> Tensor:
    """Minus the log of the inner product of each pair's probabilities, (B,).

    `log_a`, `log_n` (B,K): log-probabilities. Summed in log space (logsumexp), so that there is a
    gradient however small the product. Source: SCAN, eq. 2, first term. Chapter: scan.
    """
    return -torch.logsumexp(log_a + log_n, dim=1)


def mean_entropy(log_p: Tensor) -> Tensor:
    """Entropy, 0 to ln K, of the mean of B predictions, from log-probabilities (B,K).

    Source: SCAN, eq. 2, second term. Chapter: scan.
    """
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))  # (K,)
    return -(log_mean.exp() * log_mean).sum()


def scan_loss(anchors: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """Disagreement with the neighbours minus the entropy of the anchors' mean prediction.

    `anchors`, `neighbors` (B,K): logits. A scalar, at least ``-entropy_weight * ln K``.
    Source: SCAN, eq. 2. Chapter: scan.
    """
    log_a, log_n = anchors.log_softmax(1), neighbors.log_softmax(1)
    return consistency(log_a, log_n).mean() - entropy_weight * mean_entropy(log_a)


def self_label_loss(
    weak: Tensor, strong: Tensor, threshold: float = 0.99, balance: bool = True
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of strong views to the confident labels of weak ones, and who is confident.

    `weak`, `strong` (B,K): logits of the same images. Returns the loss, a scalar, and a mask (B,).
    With `balance` it is the mean over the classes present of the class's mean cross-entropy.
    Nobody confident: 0, with a graph, so that a step can be taken.
    Source: SCAN section 2.3. Chapter: scan.
    """
    confidence, label = weak.detach().softmax(1).max(1)  # (B,) (B,)
    mask = confidence > threshold
    size = (nn.functional.one_hot(label, weak.shape[1]) * mask[:, None]).sum(0)  # (K,)
    weight = mask / size[label].clamp(min=1) if balance else mask.float()
    each = nn.functional.cross_entropy(strong, label, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=1), mask


@torch.no_grad()
def head_losses(log_p: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """The SCAN loss of each head over all images and all their neighbours, (H,). No labels.

    `log_p` (N,H,K): log-probabilities, `neighbors` (N,k). Sums the listed pairs only: N x N
    similarities are never held. Source: SCAN section 3.1. Chapter: scan.
    """
    columns = [torch.logsumexp(log_p + log_p[j], dim=2).mean(0) for j in neighbors.T]  # k x (H,)
    entropy = torch.stack([mean_entropy(head) for head in log_p.unbind(1)])  # (H,)
    return -torch.stack(columns).mean(0) - entropy_weight * entropy


def head(width: int, config: Config) -> nn.Sequential:
    """One linear head, features (B,width) to logits (B,K)."""
    norm = nn.BatchNorm1d if config.normalize else nn.Identity
    return nn.Sequential(norm(width, affine=False), nn.Linear(width, config.n_clusters))


class Scan(Objective):
    """Step 3: an encoder and linear heads that agree with their neighbours."""

    best: Tensor
    neighbors: Tensor

    def __init__(self, encoder: nn.Module, images: Tensor, neighbors: Tensor, config: Config):
        super().__init__()
        self.config, self.images = config, images
        self.encoder = encoder.requires_grad_(not config.freeze_encoder)
        width: int = encoder.out_dim  # type: ignore[assignment]
        self.heads = nn.ModuleList(head(width, config) for _ in range(config.heads))
        self.register_buffer("neighbors", neighbors)  # (N,k)
        self.register_buffer("best", torch.tensor(0))  # the head that predicts

    def before_epoch(self, epoch: int) -> None:
        """A frozen encoder stays in eval mode."""
        self.encoder.train(not self.config.freeze_encoder)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The SCAN loss of images and one neighbour each, summed over heads."""
        view, weight = self.config.scan_view, self.config.entropy_weight
        j = draw(self.neighbors, i, self.config.official_neighbors)
        z = self.encoder(torch.cat([view(x), view(unit(self.images[j]))]))  # (2B,D)
        logits = torch.stack([head(z).float() for head in self.heads], 1)  # (2B,H,K)
        anchors, others = (all_gather_rows(y).unbind(1) for y in logits.chunk(2))  # H x (B,K)
        losses = torch.stack([scan_loss(a, n, weight) for a, n in zip(anchors, others)])  # (H,)
        h = torch.stack([mean_entropy(a.log_softmax(1)) for a in anchors]).mean()
        return {"loss": losses.sum(), "consistency": losses.mean() + weight * h, "entropy": h}

    def log_proba(self, x: Tensor) -> Tensor:
        """Log-probabilities (B,H,K) of all heads."""
        z = self.encoder(x)
        return torch.stack([head(z).float().log_softmax(1) for head in self.heads], 1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, by the chosen head."""
        return self.log_proba(x)[:, self.best].exp()

    def select(self) -> None:
        """Step 4: the head with the lowest loss on the training images is the one that predicts."""
        log_p = extract(self.log_proba, self.images)
        self.best.copy_(head_losses(log_p, self.neighbors, self.config.entropy_weight).argmin())


class SelfLabel(Objective):
    """Step 5: the network learns strong views from its own confident answers on weak ones."""

    def __init__(self, encoder: nn.Module, head: nn.Module, config: Config):
        super().__init__()
        self.config, self.encoder, self.head = config, encoder.requires_grad_(True), head
        shadow = copy.deepcopy(self.live()).requires_grad_(False)
        self.shadow = shadow if config.ema != "off" else None

    def live(self) -> nn.Sequential:
        """The network that is trained, images to logits (B,K)."""
        return nn.Sequential(self.encoder, self.head)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Loss; "confident" is the share of images that taught, "empty" that of idle steps."""
        config, live = self.config, self.live()
        labeller = self.shadow if self.shadow and config.ema == "teacher" else live
        with torch.no_grad():
            weak = all_gather_rows(labeller(config.weak(x)).float())
        strong = all_gather_rows(live(config.strong(x)).float())
        loss, mask = self_label_loss(weak, strong, config.threshold, config.balance)
        return {"loss": loss, "confident": mask.float().mean(), "empty": (~mask.any()).float()}

    def after_step(self) -> None:
        """Move the average; the official one then replaces the network, BatchNorm included."""
        if self.shadow:
            official = self.config.ema == "official"
            ema(self.shadow, self.live(), self.config.ema_decay, buffers=not official)
            if official:
                self.live().load_state_dict(self.shadow.state_dict())

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K)."""
        return self.live()(x).float().softmax(1)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> SelfLabel:
    """What `fit` returns, with fresh weights, for images like `images` (N,C,H,W)."""
    pretext = encoder or simclr.model(images, config.pretext)
    trunk = copy.deepcopy(getattr(pretext, "encoder", pretext)).to(images.device)
    top = head(trunk.out_dim, config).to(images.device)  # type: ignore[arg-type]
    return SelfLabel(trunk, top, config)


def fit(
    images: Tensor,
    config: Config,
    *,
    encoder: nn.Module | None = None,
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> SelfLabel:
    """Cluster images uint8 (N,C,H,W) without labels: the paper's Algorithm 1.

    `encoder`: a trained pretext, a `simclr.SimCLR` (mined in its embedding) or any module with
    `out_dim` (mined in its features); a copy is trained. Chapter: scan.
    """
    check_fit(images, config, run_dir, encoder)
    if not 1 <= config.n_neighbors < len(images):
        raise ValueError(f"n_neighbors must be 1 to {len(images) - 1}; got {config.n_neighbors}")
    with seeded(config.seed):
        if encoder is None:  # 1. pretext
            first = replace(config.pretext, seed=config.seed)
            inner = run_dir and Path(run_dir) / "pretext"
            encoder = simclr.fit(images, first, monitor=monitor, run_dir=inner)
        pretext = copy.deepcopy(encoder).to(images.device)

        embed = getattr(pretext, "embed", pretext)  # 2. mining
        trunk = getattr(pretext, "encoder", pretext)
        frozen = config.freeze_encoder and config.scan_view == View()  # every look is the same
        seen = features(trunk, images, cache=run_dir).to(images.device) if frozen else images
        z = seen if frozen and embed is trunk else extract(embed, images)
        neighbors = mine(z, config.n_neighbors)

        # 3. clustering
        scan = Scan(identity(trunk) if frozen else trunk, seen, neighbors, config)
        train(scan, seen, config.scan, stage="scan", monitor=monitor, run_dir=run_dir)
        scan.select()  # 4. the head with the lowest loss

        fitted = SelfLabel(trunk, scan.heads[int(scan.best)], config)  # 5. self-labelling
        train(fitted, images, config.selflabel, stage="selflabel", monitor=monitor, run_dir=run_dir)
    return fitted.eval()


_FAST = TrainConfig(12, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine")
_S, _M = simclr.PROFILES["quick-shapes"], simclr.PROFILES["gpu-mnist"]
_FROZEN = Config(heads=10, normalize=True, freeze_encoder=True, scan_view=View(),
    pretext=simclr.PROFILES["photos"], scan=replace(_FAST, epochs=50),
    selflabel=with_epochs(_FAST, 0))  # fmt: skip
_QUICK = Config(
    heads=10,
    normalize=True,
    threshold=0.9,
    scan_view=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    pretext=simclr.PROFILES["quick"],
    scan=_FAST,
    selflabel=replace(_FAST, epochs=6, lr=1e-3),
)
PROFILES = {
    "smoke": with_epochs(replace(_QUICK, heads=2, pretext=simclr.PROFILES["smoke"]), 1),
    "quick": _QUICK,
    "quick-shapes": replace(_QUICK, n_clusters=6, scan_view=_S.view, strong=_S.view, pretext=_S),
    "photos": _FROZEN,
    "frozen": _FROZEN,  # with an encoder, which then is the pretext
    "gpu": Config(pretext=simclr.PROFILES["gpu"], selflabel=replace(Config.selflabel, epochs=100)),
    "gpu-mnist": replace(with_epochs(_QUICK, 2), scan_view=_M.view, pretext=_M,
        strong=replace(_M.view, rotate=20, translate=0.12, erase=8)),
    "paper": Config(),
}  # fmt: skip
