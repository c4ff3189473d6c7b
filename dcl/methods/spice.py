r"""SPICE: clusters of equal size around prototypes, then a network that trusts the reliable ones.

Niu, Shan, Wang: SPICE: Semantic Pseudo-Labeling for Image Clustering, IEEE Transactions on Image
Processing 2022, arXiv 2103.09382. Chapter spice.

Notation: z the embedding of an image, of length 1; p (M,K) a head's probabilities for M images.

Algorithm:

1. pretext (here SimCLR): its embedding is not trained any more
2. SPICE-Self: for each of several heads, on a pool of M images at a time,

   - the prototype of cluster c is the mean z of the M/2K images with the largest :math:`p_c`
   - the M/K images with the largest inner product with it get the label c
   - step down the cross-entropy of softmax(p), a softmax of a softmax, to these labels

3. keep the head with the lowest loss, and images that are reliable: p nearly 1, nearly all of
   their neighbours in the same cluster; at random as many of each cluster as the smallest has
4. FixMatch (`dcl.methods.fixmatch`): a fresh network learns these labels and, from its own
   confident answers, all images

**Differences**

- a batch of step 2 holds images, not pairs: one with two labels teaches both, one without none;
  a `view` that changes nothing: heads see embeddings, computed once; BatchNorm stands still
- the head of the last epoch; released also: epoch and head that are best by labels (CIFAR-10)
- 4. trains the pretext's network, reset or (`fresh` False, ours) not, or nothing if no image is
  reliable (released: an error)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm, pretrain, untrained
from dcl.cluster.pseudolabels import even, prototype_labels, reliable
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr
from dcl.methods.fixmatch import FixMatch
from dcl.nets.convnets import Heads, identity, mlp, reset
from dcl.nets.features import features
from dcl.objective import Embedding, Encoder, Objective
from dcl.optim import ema
from dcl.runtime.dist import all_gather_rows, rank
from dcl.train import extract, seeded, train
from dcl.views import CROP_FLIP, View


@dataclass(frozen=True)
class Config:
    """The released settings for CIFAR-10, with ResNet-18 and SimCLR."""

    n_clusters: int = 10  #: K
    projected: bool = False  #: z is the pretext's embedding (ours), not the encoder's features
    heads: int = 10  #: with two layers, trained side by side
    pool: int = 5000  #: M, images that get labels together; at most all
    share: float = 0.5  #: of the M/K images of a cluster that make its prototype
    passes: int = 8  #: over the pool, before labels are made again
    view: View = View(pad=4, flip=0.5, randaugment=4, erase=16)  #: that teaches the heads
    n_neighbors: int = 100  #: whose label makes an image reliable, itself included
    agree: float = 0.99  #: share of them that must have the image's label
    sure: float = 0.99  #: probability above which an image can be reliable
    fresh: bool = True  #: step 4 begins with new weights, not with those of pretext and head
    labelled: int = 64  #: L, reliable images in a batch of step 4, beside B of all
    threshold: float = 0.95  #: t
    weak: View = CROP_FLIP  #: gets labels, in steps 2 and 4
    strong: View = View(pad=4, flip=0.5, randaugment=3, erase=16)  #: learns them in step 4
    ema_decay: float = 0.999  #: of the average that answers
    pretext: simclr.Config = simclr.Config()  #: with `seed` for its own; unused with an encoder
    spice: TrainConfig = TrainConfig(360, 128, "adam", 5e-3)  #: step 2; an epoch is one pool
    fixmatch: TrainConfig = TrainConfig(
        7840, 448, lr=0.03, nesterov=True, weight_decay=5e-4, schedule="cosine", final_lr=0.006
    )
    """Step 4; 0 epochs: the head of step 2 answers."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, "share", heads=1, passes=1, n_neighbors=1, labelled=1, pool=2)
        check_config(self, agree=0, sure=(0, 1), threshold=(0, 1), ema_decay=(0, 1))

    # nothing but heads is trained
    takes_vectors = property(lambda self: self.view == View() and not self.fixmatch.epochs)

    def most(self, n: int) -> dict[str, int]:
        """What n images allow: an image is its own first neighbour."""
        return {"n_neighbors": n}


def self_loss(p: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (H,) of softmax(p) to labels, p and labels (B,H,K); a mean over the labels.

    For K = 10 from 1.46, ln(1 + (K-1)/e), to 2.46, ln(e + K - 1); ln K for a uniform p. Step 2.
    """
    return -(labels * p.log_softmax(2)).sum((0, 2)) / labels.sum((0, 2)).clamp(min=1)


class Prototypes(Objective):
    """Step 2: heads on a network that stands still."""

    def __init__(self, encoder: Encoder, seen: Tensor, z: Tensor, config: Config):
        super().__init__()
        self.config, self.seen, self.z = config, seen, z
        self.encoder = encoder.requires_grad_(False)
        d, k = z.shape[1], config.n_clusters
        self.heads = Heads(mlp((d, d, k), batch_norm=False) for _ in range(config.heads))

    def proba(self, x: Tensor) -> Tensor:
        """Probabilities (B,H,K) of images x, by all heads."""
        return self.heads(self.encoder(x)).float().softmax(2)

    def labels(self, p: Tensor, z: Tensor) -> Tensor:
        """Each head's labels (M,H,K), bool, from its probabilities p (M,H,K) and z (M,d)."""
        return torch.stack([prototype_labels(z, q, self.config.share) for q in p.unbind(1)], 1)

    def before_epoch(self, epoch: int) -> None:
        """Draw a pool and label it."""
        self.encoder.eval()
        weak = self.config.view if self.seen.ndim == 2 else self.config.weak
        self.pool = torch.randperm(len(self.z))[: self.config.pool]
        rows = self.pool.to(self.z.device)
        with seeded(int(torch.randint(2**62, ())) + rank()):  # the draws of weak views
            p = extract(lambda x: self.proba(weak(x)), self.seen[rows])
        self.targets = p.new_zeros(len(self.z), *p.shape[1:])
        self.targets[rows] = self.labels(p, self.z[rows]).to(p.dtype)

    def length(self, n: int) -> int:
        """Some passes over a pool."""
        return self.config.passes * min(self.config.pool, n)

    def order(self, n: int) -> Tensor:
        """One pass after the other."""
        passes = [torch.randperm(len(self.pool)) for _ in range(self.config.passes)]
        return self.pool[torch.cat(passes)]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The loss, a mean over heads, and how many labels an image has."""
        p = all_gather_rows(self.proba(self.config.view(x)))
        labels = self.targets[all_gather_rows(i)]
        return {"loss": self_loss(p, labels).mean(), "labels": labels.sum(2).mean()}

    def chances(self) -> dict[str, float]:
        """Of a head that knows nothing."""
        return {"loss": math.log(self.config.n_clusters)}


def embedding(pretext: Any, images: Tensor, config: Config) -> Encoder:
    """The network whose output is z."""
    whole = config.projected and isinstance(pretext, Objective)
    return Embedding(pretext, images) if whole else getattr(pretext, "encoder", pretext)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> FixMatch:
    """What `fit` returns, with fresh weights, for images or vectors like these."""
    net = embedding(untrained(simclr, images, config, encoder), images, config)
    head = mlp((net.out_dim, net.out_dim, config.n_clusters), batch_norm=False)
    return FixMatch(net, head.to(images.device), images, config)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> FixMatch:
    """Cluster images uint8 (N,C,H,W), or vectors (N,d); no labels; `encoder` as in SCAN."""
    net = embedding(pretrain(simclr, images, config, run, encoder), images, config)  # 1.
    x = features(net, images, cache=run["run_dir"]).to(images.device)
    z, still = F.normalize(x, dim=1), config.view == View()
    first = Prototypes(identity(net.out_dim) if still else net, x if still else images, z, config)
    train(first, first.seen, config.spice, stage="spice", **run)  # 2.
    p = extract(first.proba, first.seen)
    best = int(self_loss(p, first.labels(p, z)).argmin())
    found = reliable(z, p[:, best], config.n_neighbors, config.agree, config.sure)  # 3.
    steps = config.fixmatch if (found >= 0).any() else replace(config.fixmatch, epochs=0)
    if config.fresh and steps.epochs:
        reset(nn.ModuleList([net, first.heads[best]]))
    spice = FixMatch(net, first.heads[best], images, config, even(found))
    train(spice, images, steps, stage="fixmatch", **run)  # 4.
    ema(spice.live(), spice.average, 0.0)
    return spice
