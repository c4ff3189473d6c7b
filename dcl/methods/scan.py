r"""SCAN: semantic clustering by adopting nearest neighbours.

Paper: Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool, *SCAN: Learning to Classify
Images without Labels*, ECCV 2020, arXiv 2005.12320. Explained in chapter 04-scan.

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

Differences
-----------
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
- with several processes the mean prediction is that of the own process
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.augment import DIGIT_VIEW, SCAN_STRONG, View
from dcl.methods import simclr
from dcl.neighbors import nearest
from dcl.optim import TrainConfig, ema
from dcl.train import Monitor, Objective, check_fit, extract, seeded, train

_ADAM = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-4}


@dataclass(frozen=True)
class Config:
    """The paper's settings for CIFAR-10; batches and epochs as in the released configuration."""

    n_clusters: int = 10
    """May exceed the number of classes (over-clustering)."""
    n_neighbors: int = 20
    """k, neighbours mined for each image."""
    heads: int = 1
    """Linear heads trained side by side (the paper's ImageNet: 10)."""
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
    scan: TrainConfig = TrainConfig(epochs=50, batch_size=128, **_ADAM)
    selflabel: TrainConfig = TrainConfig(epochs=200, batch_size=1000, **_ADAM)
    """0 epochs: no self-labelling."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1; got {self.heads}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1; got {self.threshold}")
        if self.ema not in ("off", "teacher", "official"):
            raise ValueError(f"ema must be off, teacher or official; got {self.ema!r}")


# ---------------------------------------------------------------- losses


def consistency(log_a: Tensor, log_n: Tensor) -> Tensor:
    """-log <p_a, p_n> of each pair, (B,), from log-probabilities (B,K).

    In log space: the sum over clusters of p_a p_n is the exp of a logsumexp, and its log has a
    gradient however small the product is. Source: SCAN, eq. 2, first term. Chapter: 04-scan.
    """
    return -torch.logsumexp(log_a + log_n, dim=1)


def mean_entropy(log_p: Tensor) -> Tensor:
    """Entropy, 0 to ln K, of the mean of B predictions, from log-probabilities (B,K).

    Source: SCAN, eq. 2, second term. Chapter: 04-scan.
    """
    log_mean = torch.logsumexp(log_p, dim=0) - torch.tensor(len(log_p)).log()  # (K,)
    return -(log_mean.exp() * log_mean).sum()


def scan_loss(anchors: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """Agreement with the neighbours minus the entropy of the anchors' mean prediction; a scalar.

    `anchors`, `neighbors` (B,K): logits. Bounded below by ``-entropy_weight * ln K``.
    Source: SCAN, eq. 2. Chapter: 04-scan.
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
    Source: SCAN section 2.3 and Algorithm 1. Chapter: 04-scan.
    """
    confidence, label = weak.detach().softmax(1).max(1)  # (B,) (B,)
    mask = confidence > threshold
    size = label[mask].bincount(minlength=weak.shape[1])  # (K,)
    weight = mask / size[label].clamp(min=1) if balance else mask.float()
    each = F.cross_entropy(strong, label, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=1), mask


# ---------------------------------------------------------------- mining, selection, prototypes


def mine(embed, images: Tensor, k: int) -> Tensor:
    """The k nearest images of each, (N,k) int64, without itself, by cosine of `embed`.

    Source: SCAN section 2.1. Chapter: 04-scan.
    """
    if not 1 <= k < len(images):
        raise ValueError(
            f"n_neighbors must be between 1 and the number of images less 1, {len(images) - 1}; "
            f"got {k}"
        )
    z = extract(embed, images)
    found = nearest(z, z, k + 1)  # (N,k+1)
    own = found == torch.arange(len(z), device=found.device)[:, None]
    # among identical images the own row may stand anywhere, or be missing: then the last one goes
    own[:, -1] |= ~own.any(1)
    return found[~own].view(len(z), k)


def neighbor_purity(neighbors: Tensor, labels: Tensor) -> float:
    """Share of mined neighbours (N,k) with the image's own label (N,): a diagnostic, 0 to 1."""
    labels = labels.to(neighbors.device)
    return (labels[neighbors] == labels[:, None]).float().mean().item()


@torch.no_grad()
def head_losses(log_p: Tensor, neighbors: Tensor, entropy_weight: float = 5.0) -> Tensor:
    """The SCAN loss of each head over all images and all their neighbours, (H,).

    `log_p` (N,H,K): log-probabilities, `neighbors` (N,k). One neighbour column at a time: N x N
    similarities are never held. No labels. Source: SCAN section 3.1. Chapter: 04-scan.
    """
    columns = [torch.logsumexp(log_p + log_p[j], dim=2).mean(0) for j in neighbors.T]  # k x (H,)
    entropy = torch.stack([mean_entropy(head) for head in log_p.unbind(1)])  # (H,)
    return -torch.stack(columns).mean(0) - entropy_weight * entropy


@torch.no_grad()
def prototypes(features: Tensor, probabilities: Tensor, share: float = 0.1) -> Tensor:
    """One image per cluster, (K,) int64: the member nearest to the mean of the confident ones.

    `features` (N,D), `probabilities` (N,K). The confident are the `share` of the cluster with the
    highest probability, at least one; -1 for a cluster without members. Source: SCAN section 3.4.
    """
    z = F.normalize(features.float(), dim=1)
    confidence, cluster = probabilities.max(1)
    chosen = []
    for k in range(probabilities.shape[1]):
        members = (cluster == k).nonzero()[:, 0]
        if not len(members):
            chosen.append(-1)
            continue
        order = confidence[members].argsort(descending=True)
        sure = members[order[: max(1, round(share * len(members)))]]
        chosen.append(int(sure[(z[sure] @ z[sure].mean(0)).argmax()]))
    return torch.tensor(chosen)


# ---------------------------------------------------------------- objectives


class Scan(Objective):
    """Step 3: an encoder and linear heads that agree with their neighbours."""

    best: Tensor
    neighbors: Tensor

    def __init__(self, encoder: nn.Module, images: Tensor, neighbors: Tensor, config: Config):
        super().__init__()
        self.config, self.images, self.encoder = config, images, encoder
        width: int = encoder.out_dim  # type: ignore[assignment]
        self.heads = nn.ModuleList(
            nn.Linear(width, config.n_clusters) for _ in range(config.heads)
        )
        self.register_buffer("neighbors", neighbors)  # (N,k)
        self.register_buffer("best", torch.tensor(0))  # the head that predicts
        encoder.requires_grad_(not config.freeze_encoder)

    def train(self, mode: bool = True) -> "Scan":
        """A frozen encoder stays in eval mode."""
        super().train(mode)
        self.encoder.train(mode and not self.config.freeze_encoder)
        return self

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The SCAN loss of images and one neighbour each, summed over heads."""
        k = self.neighbors.shape[1]
        column = torch.randint(k + self.config.official_neighbors, i.shape, device=i.device)
        candidates = torch.cat([self.neighbors[i], i[:, None]], 1)  # (B,k+1), the own row is last
        j = candidates.gather(1, column[:, None])[:, 0]
        view = self.config.scan_view
        n = self.images[j].float().div_(255)
        z = self.encoder(torch.cat([view(x), view(n)]))
        pairs = [head(z).float().log_softmax(1).chunk(2) for head in self.heads]
        agree = torch.stack([consistency(a, n).mean() for a, n in pairs])  # (H,)
        entropy = torch.stack([mean_entropy(a) for a, _ in pairs])
        loss = (agree - self.config.entropy_weight * entropy).sum()
        return {"loss": loss, "consistency": agree.mean(), "entropy": entropy.mean()}

    def log_proba(self, x: Tensor) -> Tensor:
        """Log-probabilities (B,H,K) of all heads."""
        z = self.encoder(x)
        return torch.stack([head(z).float().log_softmax(1) for head in self.heads], 1)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of the chosen head."""
        return self.log_proba(x)[:, self.best].exp()

    def predict(self, x: Tensor) -> Tensor:
        """Cluster (B,) of images x."""
        return self.predict_proba(x).argmax(1)

    def select(self) -> Tensor:
        """Step 4: make the head with the lowest loss on the training images the one that predicts."""
        log_p = extract(self.log_proba, self.images)
        losses = head_losses(log_p, self.neighbors, self.config.entropy_weight)
        self.best.copy_(losses.argmin())
        return losses


class SelfLabel(Objective):
    """Step 5: the network learns strong views from its own confident answers on weak ones."""

    def __init__(self, encoder: nn.Module, head: nn.Module, config: Config):
        super().__init__()
        self.config, self.encoder, self.head = config, encoder.requires_grad_(True), head
        self.shadow = None
        if config.ema != "off":
            self.shadow = copy.deepcopy(nn.Sequential(encoder, head)).requires_grad_(False)

    def logits(self, x: Tensor) -> Tensor:
        """Scores (B,K) before the softmax."""
        return self.head(self.encoder(x)).float()

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Loss; "confident" is the share of images that taught, "empty" that of idle steps."""
        labeller = self.shadow if self.config.ema == "teacher" else self.logits
        with torch.no_grad():
            weak = labeller(self.config.weak(x)).float()
        strong = self.logits(self.config.strong(x))
        loss, mask = self_label_loss(weak, strong, self.config.threshold, self.config.balance)
        return {"loss": loss, "confident": mask.float().mean(), "empty": (~mask.any()).float()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average; the official one then replaces the network, BatchNorm included."""
        if self.shadow is None:
            return
        live = nn.Sequential(self.encoder, self.head)
        if self.config.ema == "teacher":
            ema(self.shadow, live, self.config.ema_decay)
            return
        for average, weight in zip(self.shadow.parameters(), live.parameters(), strict=True):
            average.lerp_(weight, 1 - self.config.ema_decay)
        live.load_state_dict(self.shadow.state_dict())  # the shadow's statistics never move

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K)."""
        return self.logits(x).softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Cluster (B,) of images x."""
        return self.logits(x).argmax(1)


# ---------------------------------------------------------------- Algorithm 1


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
    `out_dim` (mined in its features); a copy is trained. Chapter: 04-scan.
    """
    check_fit(images, config, run_dir)
    with seeded(config.seed):
        if encoder is None:  # 1. pretext
            inner = Path(run_dir) / "pretext" if run_dir else None
            recipe = replace(config.pretext, seed=config.seed)
            encoder = simclr.fit(images, recipe, monitor=monitor, run_dir=inner)
        pretext = copy.deepcopy(encoder).to(images.device)
        contrastive = isinstance(pretext, simclr.SimCLR)

        embed = pretext.embed if contrastive else pretext
        neighbors = mine(embed, images, config.n_neighbors)  # 2. mining

        trunk = pretext.encoder if contrastive else pretext
        scan = Scan(trunk, images, neighbors, config)  # 3. clustering
        train(scan, images, config.scan, stage="scan", monitor=monitor, run_dir=run_dir)
        scan.select()  # 4. the head with the lowest loss

        model = SelfLabel(scan.encoder, scan.heads[scan.best], config)  # 5. self-labelling
        train(model, images, config.selflabel, stage="selflabel", monitor=monitor, run_dir=run_dir)
    return model.eval()


_DIGIT_STRONG = replace(DIGIT_VIEW, rotate=20, translate=0.15, shear=15, erase=5)
_FAST = {"optimizer": "adam", "schedule": "cosine"}
PROFILES = {
    "smoke": Config(
        n_neighbors=5,
        threshold=0.5,
        scan_view=DIGIT_VIEW,
        strong=_DIGIT_STRONG,
        pretext=simclr.PROFILES["smoke"],
        scan=TrainConfig(epochs=1, batch_size=64, lr=1e-3, **_FAST),
        selflabel=TrainConfig(epochs=1, batch_size=64, lr=1e-3, **_FAST),
    ),
    "quick": Config(
        scan_view=DIGIT_VIEW,
        strong=_DIGIT_STRONG,
        pretext=simclr.PROFILES["quick"],
        scan=TrainConfig(epochs=15, batch_size=128, lr=1e-3, **_FAST),
        selflabel=TrainConfig(epochs=10, batch_size=256, lr=1e-3, **_FAST),
    ),
    "gpu": Config(
        pretext=simclr.PROFILES["gpu"],
        scan=TrainConfig(epochs=30, batch_size=128, **_ADAM),
        selflabel=TrainConfig(epochs=50, batch_size=1000, **_ADAM),
    ),
    "paper": Config(),
}
