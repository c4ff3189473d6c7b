r"""DEC and IDEC: codes of an autoencoder, sharpened towards the centres that they are nearest to.

Xie, Girshick, Farhadi: Unsupervised Deep Embedding for Clustering Analysis, ICML 2016,
arXiv 1511.06335 (DEC). Guo, Gao, Liu, Yin: Improved Deep Embedded Clustering with Local Structure
Preservation, IJCAI 2017 (IDEC), which keeps the decoder. Explained in chapter dec.

Notation: code :math:`z_i = f(x_i)`, centres :math:`\mu_j`, j = 1..K, both trained; q soft
assignment, p its target; g the decoder.

Algorithm:

1. Train an autoencoder. DEC drops its decoder, IDEC keeps it.
2. Centres: k-means on the codes, the best of 20 starts.
3. Soft assignment of every image (eq. 1 of DEC) and, from those of the **whole set**, its target
   (eq. 3), a constant for the next T steps:

   .. math:: q_{ij} \propto (1 + \lVert z_i - \mu_j \rVert^2 / \alpha)^{-(\alpha + 1)/2}
             \qquad p_{ij} \propto q_{ij}^2 / \textstyle\sum_i q_{ij}

   with rows that sum to one. Stop if fewer than .1 % of the images have changed their nearest
   centre since the last time.
4. T steps down, on batches of B,

   .. math:: \mathrm{DEC:}\; L = \frac1B \sum_{ij} p_{ij} \log \frac{p_{ij}}{q_{ij}}
             \qquad \mathrm{IDEC:}\; L_r + \gamma L,\;
             L_r = \frac{1}{B d} \sum_i \lVert x_i - g(z_i) \rVert^2

   for f, the centres and g, and again from 3.

The cluster of an image is the largest q; there is no k-means at the end.

**Differences**

- IDEC's formulas have no division by the d numbers of an image; the authors' code has it, and the
  published figures come from that code: `reading` names the three losses that are in use
- batches are drawn at random (released: in the order of the file), and momentum lives on when the
  target is refreshed (DEC's release: its solver starts anew)
- `refresh="batch"`, the target from each batch alone, is what many re-implementations do
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dcl.algorithm import check_fit
from dcl.cluster.kmeans import kmeans
from dcl.config import TrainConfig, check_config
from dcl.methods import autoencoder
from dcl.runtime.dist import all_sum
from dcl.train import Monitor, Objective, extract, seeded, train

Reading = Literal["code", "formula", "port"]


@dataclass(frozen=True)
class Config:
    """DEC on MNIST, as released; the profiles that end in -idec are IDEC."""

    takes_vectors = True

    n_clusters: int = 10
    gamma: float | None = None
    """None: DEC, without a decoder. A number: IDEC, with this weight of the KL divergence beside
    the reconstruction; .1 in the paper."""
    reading: Reading = "code"
    """What gamma weighs. code: KL summed over clusters, squared error averaged over pixels, as the
    authors' code; formula: squared error summed over pixels, as their formulas; port: KL averaged
    over clusters too, as a PyTorch port does, by `kl_div`'s default."""
    refresh: Literal["set", "batch"] = "set"
    """What the target is computed from; batch: each batch for itself, in every step."""
    interval: int = 160
    """T, steps from one look at the whole set to the next: an epoch here."""
    tolerance: float = 0.001
    """Training ends when a smaller share of the images changed cluster; 0: it never does."""
    alpha: float = 1.0
    """Degrees of freedom of Student's t distribution."""
    starts: int = 20
    """Starts of k-means, of which the best gives the centres."""
    pretext: autoencoder.Config = autoencoder.Config()
    """Its seed is replaced by `seed`. Unused with an encoder handed in."""
    train: TrainConfig = TrainConfig(epochs=125, batch_size=256, lr=0.01)
    """At most so many times T steps: the ports stop at 20,000 steps."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, interval=1, tolerance=(0, 1), starts=1)
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0; got {self.alpha}")
        if self.gamma is not None and not self.gamma > 0:
            raise ValueError(f"gamma must be None (DEC) or above 0 (IDEC); got {self.gamma}")


def student_t(z: Tensor, mu: Tensor, alpha: float = 1.0) -> Tensor:
    """Soft assignment q (B,K), rows summing to 1, of codes z (B,D) to centres mu (K,D).

    Source: DEC, eq. 1. Chapter: dec.
    """
    square = (z[:, None] - mu).square().sum(2)  # (B,K)
    q = (1 + square / alpha) ** (-(alpha + 1) / 2)
    return q / q.sum(1, keepdim=True)


def target_distribution(q: Tensor, mass: Tensor | None = None) -> Tensor:
    """Target p (N,K), rows summing to 1: q (N,K) squared, over the `mass` (K,) of each cluster.

    mass: the column sums of q where q is not all there is. A cluster without any mass gets none.
    Source: DEC, eq. 3. Chapter: dec.
    """
    mass = q.sum(0) if mass is None else mass
    p = q.square() / mass.clamp(min=1e-30)
    return p / p.sum(1, keepdim=True)


def kl_loss(p: Tensor, q: Tensor, reading: Reading = "code") -> Tensor:
    """Divergence of q from its target p, both (B,K): mean over images of the sum over clusters.

    reading "port" divides by K too. Source: DEC, eq. 2. Chapter: dec.
    """
    kl = torch.xlogy(p, p) - torch.xlogy(p, q)  # (B,K), 0 where p is 0
    return kl.mean() if reading == "port" else kl.sum(1).mean()


def reconstruction_loss(x: Tensor, drawn: Tensor, reading: Reading = "code") -> Tensor:
    """Squared error of what the decoder has drawn, both (B,d): mean over images and pixels.

    reading "formula" sums over the pixels. Source: IDEC, eq. 5. Chapter: dec.
    """
    each = (x - drawn).square()
    return each.sum(1).mean() if reading == "formula" else each.mean()


def label_change(before: Tensor, now: Tensor) -> Tensor:
    """Share of the labels (N,) that differ, a scalar in [0,1]."""
    return (before != now).float().mean()


class DEC(Objective):
    """Codes and centres, trained towards their own sharpened assignment of these very images."""

    transient = ("target", "labels", "changed")
    target: Tensor
    labels: Tensor
    changed: Tensor

    def __init__(self, images: Any, config: Config, encoder: nn.Module):
        super().__init__()
        self.images, self.config, self.encoder = images, config, encoder
        if isinstance(encoder, autoencoder.Autoencoder):
            self.encoder = encoder.encoder
            if config.gamma is not None:
                self.decoder, self.scale = encoder.decoder, encoder.scale
        elif config.gamma is not None:
            raise ValueError("encoder must be an Autoencoder for IDEC: it needs a decoder")
        n, k, width = len(images), config.n_clusters, int(self.encoder.out_dim)  # type: ignore[arg-type]
        self.centres = nn.Parameter(torch.zeros(k, width))
        self.register_buffer("target", torch.zeros(n, k))
        self.register_buffer("labels", torch.full((n,), -1))
        self.register_buffer("changed", torch.ones(()))
        self.to(images.device)

    def before_epoch(self, epoch: int) -> None:
        """Step 2 at first, and step 3."""
        if not epoch:
            codes = extract(self.embed, self.images)
            found = kmeans(codes, self.config.n_clusters, n_init=self.config.starts)
            self.centres.data.copy_(found.centroids)
        q = extract(self.predict_proba, self.images)  # (N,K)
        self.target.copy_(target_distribution(q))
        self.changed.copy_(label_change(self.labels, q.argmax(1)))
        self.labels.copy_(q.argmax(1))

    def finished(self) -> bool:
        """Whether too few labels have changed since the last refresh to go on."""
        return bool(self.changed < self.config.tolerance)

    def length(self, n: int) -> int:
        """T batches: an epoch lasts from one refresh to the next."""
        return self.config.interval * self.config.train.batch_size

    def order(self, n: int) -> Tensor:
        """As many permutations of the set as T batches need."""
        length = self.length(n)
        return torch.cat([torch.randperm(n) for _ in range(-(-length // n))])[:length]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 4; "changed" is the share of labels that the last refresh found changed."""
        c = self.config
        z = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            q = student_t(z.float(), self.centres, c.alpha)
            if c.refresh == "set":
                p = self.target[i]
            else:
                p = target_distribution(q.detach(), all_sum(q.detach().sum(0)))
            kl = kl_loss(p, q, c.reading)
        if c.gamma is None:
            return {"loss": kl, "changed": self.changed}
        drawn = self.decoder(z).float()
        error = reconstruction_loss(self.scale(x).flatten(1), drawn, c.reading)
        found = {"kl": kl, "reconstruction": error, "changed": self.changed}
        return {"loss": error + c.gamma * kl, **found}

    def embed(self, x: Tensor) -> Tensor:
        """Codes (B,D) float32 of images or vectors x: what is clustered."""
        return self.encoder(x).float()

    def predict_proba(self, x: Tensor) -> Tensor:
        """Soft assignment q (B,K) of images or vectors x."""
        return student_t(self.embed(x), self.centres, self.config.alpha)


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> DEC:
    """What `fit` trains on these very images (N,C,H,W) or vectors (N,d), with fresh weights."""
    if encoder is None:
        encoder = autoencoder.model(images, config.pretext)
    return DEC(images, config, copy.deepcopy(encoder))


def fit(
    images: Tensor,
    config: Config,
    *,
    encoder: nn.Module | None = None,
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> DEC:
    """Cluster images uint8 (N,C,H,W), or vectors float32 (N,d), without labels.

    `encoder`: a fitted `autoencoder.Autoencoder` or, for DEC, any trained module with `out_dim`,
    instead of the pretext; a copy is trained. Chapter: dec.
    """
    check_fit(images, config, run_dir, encoder)
    with seeded(config.seed):
        if encoder is None:  # step 1
            inner = Path(run_dir) / "pretext" if run_dir else None
            recipe = replace(config.pretext, seed=config.seed)
            encoder = autoencoder.fit(images, recipe, monitor=monitor, run_dir=inner)
        objective = model(images, config, encoder)
        train(objective, images, config.train, monitor=monitor, run_dir=run_dir)  # steps 2 to 4
    return objective


def idec(recipe: Config) -> Config:
    """The recipe with IDEC's loss, and the optimiser that the paper has for MNIST."""
    return replace(recipe, gamma=0.1, train=replace(recipe.train, optimizer="adam", lr=1e-3))


_A = autoencoder.PROFILES
_QUICK = Config(
    interval=30, tolerance=0.003, pretext=_A["quick"], train=replace(Config.train, epochs=60)
)
_SMOKE = replace(_QUICK, interval=5, pretext=_A["smoke"],
    train=replace(_QUICK.train, epochs=4, batch_size=64))  # fmt: skip
_LONG = Config(interval=140, train=replace(Config.train, epochs=143))
_BASE = {
    "smoke": _SMOKE,
    "quick": _QUICK,
    "photos": replace(_QUICK, tolerance=0.001, pretext=_A["photos"]),
    "gpu": replace(_LONG, pretext=_A["gpu"]),
    "gpu-mnist": replace(_LONG, pretext=_A["gpu-mnist"], train=replace(Config.train, epochs=64)),
}
PROFILES = {
    **_BASE,
    **{f"{name}-idec": idec(recipe) for name, recipe in _BASE.items()},
    "paper": Config(),
    "paper-idec": idec(_LONG),
}
"""DEC by its name, IDEC with -idec behind it."""
