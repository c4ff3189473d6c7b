r"""RUC: a finished clustering is taken for noisy labels, and two networks learn from it with care.

Park et al.: Improving Unsupervised Image Clustering With Robust Learning, CVPR 2021. Chapter ruc.

Algorithm, from labels :math:`y` with confidences, SCAN's or `dcl.nets.labelled.Labelled`:

1. *clean* are images with a confidence of .99 or more, with the label of most of their nearest
   neighbours (by *metric*), or with both (*hybrid*)
2. two networks begin with the clustering's encoder and new heads; in an epoch the first is trained
   on all images, then the second. The other one is its peer
3. targets t of two weak views of an image, s sharpening: of the unclean s(the mean of both
   networks' answers to both); of the clean :math:`s((1 - w) y + w\, p_{\text{peer}})`, w the
   peer's confidence, scaled to [0, 1] over the set
4. *MixMatch*: mix every view with a random other one, and their targets; answers are p, and q
   those to strong views. Step down :math:`L_x + u L_u + L_s`, means over clean, unclean, clean:

   .. math:: L_x = -\sum_k t_k \ln p_k, \quad L_u = \tfrac1K \sum_k (p_k - t_k)^2, \quad
             L_s = -(1 - \epsilon) \ln q_y - \tfrac{\epsilon}{K-1} \sum_{k \ne y} \ln q_k
5. an unclean image of which the trained network is sure becomes clean, with its label, for good

The clusters keep the numbers of the given labels. Both networks answer: their logits are summed.

**Differences**

- if less than `share` of the images is confident, the surest `share` of each cluster is clean; a
  batch without clean images has no loss of them (released: NaN). No label of a class is used
- a network sees all views in one pass, and its peer does; several processes mix their own images
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dcl.algorithm import Run, algorithm, pretrain
from dcl.cluster.mixmatch import mean_where, mix, sharpen, smoothed, soft_cross_entropy
from dcl.cluster.noisy import NoisyLabels
from dcl.config import TrainConfig, check_config
from dcl.methods import scan, simclr
from dcl.nets.convnets import linear_head
from dcl.nets.labelled import Labelled
from dcl.objective import Objective
from dcl.runtime.dist import all_gather_rows
from dcl.train import extract, train
from dcl.views import View


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10."""

    n_clusters: int = 10  #: K
    sampling: Literal["confidence", "metric", "hybrid"] = "hybrid"
    threshold: float = 0.99  #: confidence from which on an image is clean
    share: float = 0.5  #: of each cluster, clean if the threshold leaves less of the set: ours
    n_neighbors: int = 100  #: that vote by metric, the image itself among them
    mix: float = 4.0  #: of Beta(mix, mix), from which shares are drawn; 0: nothing is mixed
    guess_weight: float = 25.0  #: u at the end of training; it starts with a tenth and grows
    promote: float = 0.99  #: confidence from which on an unclean image becomes clean
    smoothing: float = 0.5  #: epsilon
    peer: bool = True  #: False: one network, its own peer
    normalize: bool = False  #: BatchNorm before each head: ours, for schedules of hundreds of steps
    weak: View = View(scale=(0.2, 1), flip=0.5)
    strong: View = View(scale=(0.2, 1), flip=0.5, randaugment=2, erase=16)
    base: scan.Config = scan.Config()  #: with `n_clusters` and `seed` for its own; unused if given
    train: TrainConfig = TrainConfig(
        200, 250, lr=0.01, nesterov=True, weight_decay=5e-4, schedule="cosine"
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, n_neighbors=2, mix=0, guess_weight=0, share=(0, 1), smoothing=(0, 1))

    @property
    def pretext(self) -> simclr.Config:
        """The base's."""
        return self.base.pretext

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: all of them vote."""
        return {"n_neighbors": n}


def ruc_loss(
    mixed: Tensor, target: Tensor, strong: Tensor, goal: Tensor, clean: Tensor, weight: float
) -> dict[str, Tensor]:
    """Step 4: logits and targets (2B,K) of mixed views, logits and smoothed labels (B,K).

    clean (B,): a mask of the images, whose two views are rows b and b + B; weight: u.
    """
    sure, square = clean.repeat(2), (mixed.softmax(1) - target).square().mean(1)
    x = mean_where(soft_cross_entropy(mixed, target), sure)
    u, smooth = mean_where(square, ~sure), mean_where(soft_cross_entropy(strong, goal), clean)
    return {"loss": x + weight * u + smooth, "mixed": x, "guess": u, "smooth": smooth}


class RUC(Objective):
    """Two networks that teach each other, and the labels."""

    transient = ("known.labels", "known.clean", "known.confidence")

    def __init__(self, images: Tensor, config: Config, encoder: nn.Module | None = None):
        super().__init__()
        start: Any = simclr.model(images, config.pretext) if encoder is None else encoder
        self.config, self.encoder = config, getattr(start, "encoder", start)
        self.others = nn.ModuleList(copy.deepcopy(self.encoder) for _ in range(config.peer))
        heads = [linear_head(self.encoder, config.n_clusters, config.normalize) for _ in "AB"]
        self.heads = nn.ModuleList(heads[: 1 + config.peer])
        self.known = NoisyLabels(len(images), len(self.heads))
        self.steps = len(images) // config.train.batch_size  # of one network, in an epoch
        self.requires_grad_(True).to(images.device)

    def logits(self, a: int, x: Tensor) -> Tensor:
        """Logits (B,K) of images x by network a."""
        return self.heads[a]([self.encoder, *self.others][a](x)).float()

    def length(self, n: int) -> int:
        """Whole batches for one network, then for the other."""
        return len(self.heads) * self.steps * self.config.train.batch_size

    def order(self, n: int) -> Tensor:
        """A permutation for each network."""
        each = self.steps * self.config.train.batch_size
        return torch.cat([torch.randperm(n)[:each] for _ in self.heads])

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Losses of the network whose turn it is, and the share of clean images."""
        c, known, steps = self.config, self.known, self.steps
        a, time = self.step // steps % len(self.heads), self.epoch + self.step % steps / steps
        b, views = len(self.heads) - 1 - a, torch.cat([x, c.weak(x), c.weak(x)])
        with torch.no_grad():
            own, peer = (self.logits(n, views).softmax(1).unflatten(0, (3, -1)) for n in (a, b))
        t = sharpen(known.targets(i, own, peer, b)).repeat(2, 1)
        z, t = mix(views[len(x) :], t, c.mix)
        y = self.logits(a, torch.cat([z, c.strong(x)])).chunk(3)
        each = torch.stack([*y, *t.chunk(2), own[0]], 1)  # (b,6,K)
        y1, y2, y3, t1, t2, p = all_gather_rows(each).unbind(1)
        self.latest = a, (rows := all_gather_rows(i)), p.detach()
        u = c.guess_weight * min(max(time / c.train.epochs, 0.1), 1)
        goal = smoothed(known.labels[rows], c.n_clusters, c.smoothing)
        found = ruc_loss(torch.cat([y1, y2]), torch.cat([t1, t2]), y3, goal, known.clean[rows], u)
        return {**found, "clean": known.clean.float().mean()}

    def after_step(self) -> None:
        """Step 5."""
        self.known.learn(*self.latest, self.config.promote)

    def predict_proba(self, x: Tensor) -> Tensor:
        """Probabilities (B,K) of the summed logits: the normed product of both answers."""
        return torch.stack([self.logits(a, x) for a in range(len(self.heads))]).sum(0).softmax(1)

    def chances(self) -> dict[str, float]:
        """Cross-entropies are ln K for a network that knows nothing."""
        return dict.fromkeys(("mixed", "smooth"), math.log(self.config.n_clusters))


@algorithm
def fit(images: Tensor, config: Config, encoder: Any, run: Run) -> RUC:
    """Cluster images uint8 (N,C,H,W); `encoder`: a `Labelled`, or as in SCAN, which runs first."""
    c, base, folder = config, encoder, run["run_dir"]
    if not isinstance(base, Labelled):
        pretext = pretrain(simclr, images, c, run, encoder)
        own = replace(c.base, n_clusters=c.n_clusters, seed=c.seed)
        place = folder and Path(folder) / "base"
        found = scan.fit(images, own, encoder=pretext, monitor=run["monitor"], run_dir=place)
        sure, label = extract(found.predict_proba, images).max(1)
        base = Labelled(found.encoder, label, sure, pretext)
    base.check(len(images), c.n_clusters)
    ruc = RUC(images, c, base)
    clean = base.clean(images, c.sampling, c.threshold, c.share, c.n_neighbors)
    ruc.known.start(base.labels, clean)
    train(ruc, images, c.train, **run)
    return ruc


model = RUC  # what `fit` returns, with fresh weights
