r"""DAC: the network labels the pairs that it is confident about, and trains on more and more.

Chang, Wang, Meng, Xiang, Pan: Deep Adaptive Image Clustering, ICCV 2017. Chapter: dac.

Notation: :math:`p_i` the softmax of image i over K clusters, :math:`l_i = p_i / \lVert p_i \rVert`
its label features, :math:`g_{ij} = l_i \cdot l_j \in [0, 1]` the similarity of a pair,
:math:`\tilde g_{ij}` that of its augmented views; :math:`\lambda` how far training has come.

Algorithm, from random weights; for every epoch t:

1. The band of the undecided, :math:`u = 0.95 - \lambda` and :math:`l = 0.455 + 0.1 \lambda`.
   Stop when it has closed, :math:`u \le l`.
2. For every batch, with the network as it is: pair labels from the images themselves,
   :math:`r_{ij} = 1` where :math:`g_{ij} \ge u`, 0 where :math:`g_{ij} < l`; the pairs between
   are left out, :math:`v_{ij} = 0`.
3. Step down

   .. math:: \frac{1}{\sum v_{ij}} \sum_{ij} -v_{ij} \left[ r_{ij} \log \tilde g_{ij}
             + (1 - r_{ij}) \log (1 - \tilde g_{ij}) \right]

4. The paper's objective has a second part, u - l, whose derivative by :math:`\lambda` is -1.1; so
   :math:`\lambda` rises by :math:`1.1 \eta`, once an epoch. With :math:`\eta = 0.009` the band
   closes after 46.

The cluster of an image is the largest of its label features. There is no pretext and no k-means.

**Differences**

- from the paper: the pair labels come from the batch that is trained on, not from a larger block;
  the sum is divided by the number of pairs that count
- BatchNorm trains with the statistics of the batch; released: predicts with them, too, so that a
  cluster depends on the batch. Here `settle` measures those of the whole training set at the end
- `n_init` trainings may be made, of which the loss of the last epoch chooses one (paper: one)
- the released code is of a variant, DAC*, which the chapter has: one threshold, so that every pair
  counts, on MNIST the squared error for the cross-entropy, for photographs a further loss
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.algorithm import Run, algorithm
from dcl.cluster.pairwise import pair_loss
from dcl.config import TrainConfig, check_config
from dcl.nets import convnets
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_gather_rows, own_rows
from dcl.train import settle, train
from dcl.views import View


@dataclass(frozen=True)
class Config:
    """The paper's for MNIST, with the batches of the released code."""

    gone: ClassVar = {"all_pairs": False}
    advice: ClassVar = {
        "collapse": "Raise until, to .71 at least.",
        "dead clusters": "An until of .71 ends training before clusters merge.",
    }

    seed: int = 0
    n_clusters: int = 10
    width: int = 64  #: maps of the first stage of convolutions; the next has twice as many
    depth: int = 3  #: convolutions of a stage
    stages: int = 2
    eta: float = 0.009  #: how fast the band closes: after .45 / (1.1 eta) epochs, rounded up
    until: float = 0.0
    """Training also ends when the upper threshold falls to this. Below .707 an image torn between
    two clusters is alike to both of them, and they grow together."""
    n_init: int = 1  #: trainings, of which that with the lowest loss in its last epoch is kept
    view: View = View(rotate=10, translate=0.1, zoom=(0.95, 1.05))
    """What is trained on; labels come from the images as they are."""
    train: TrainConfig = TrainConfig(epochs=46, batch_size=128, optimizer="rmsprop", lr=1e-3)

    def __post_init__(self) -> None:
        check_config(self, "eta", width=1, depth=1, stages=1, n_init=1)


def thresholds(step: float) -> tuple[float, float]:
    r"""Upper and lower end of the band, :math:`.95 - \lambda` and :math:`.455 + .1 \lambda`."""
    return 0.95 - step, 0.455 + 0.1 * step


def label_features(p: Tensor) -> Tensor:
    """Probabilities (B,K) with length 1: the paper's exp(v - max v) over its length."""
    return F.normalize(p, dim=1)


def band_labels(g: Tensor, upper: float, lower: float) -> tuple[Tensor, Tensor]:
    """Labels and selection, both (A,B) of 0 and 1, of similarities g (A,B).

    Alike from `upper` on, not alike below `lower`, not selected between. Source: DAC, its
    selection of pairs. Chapter: dac.
    """
    alike = g >= upper
    return alike.float(), (alike | (g < lower)).float()


class DAC(Objective):
    """Label features that learn from the pairs of which they are sure."""

    def __init__(self, images: Tensor, config: Config, encoder: Encoder | None = None):
        super().__init__()
        self.config, k = config, config.n_clusters
        if encoder is None:
            encoder = convnets.all_conv(images, k, config.width, config.depth, config.stages)
        self.encoder = encoder
        self.upper, self.lower = thresholds(0.0)
        features = self.encoder.out_dim
        layers: list[nn.Module] = []
        for a in ([] if features == k else [features]) + [k, k]:
            layers += [nn.Linear(a, k), nn.BatchNorm1d(k), nn.ReLU()]
            if a == k:
                nn.init.eye_(layers[-3].weight)  # type: ignore[arg-type]
                nn.init.zeros_(layers[-3].bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(*layers)
        self.to(images.device)

    def before_epoch(self, epoch: int) -> None:
        """Step 4: narrow the band."""
        self.upper, self.lower = thresholds(1.1 * self.config.eta * epoch)

    def finished(self) -> bool:
        """Whether the band has closed, or the upper threshold is as low as it may be."""
        return self.upper <= max(self.lower, self.config.until)

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Step 3; also logs the share of pairs "selected", of these "alike", and the thresholds."""
        with torch.no_grad():
            clean = all_gather_rows(self.embed(x))
        moved = self.embed(self.config.view(x))
        everybody, own = all_gather_rows(moved), own_rows(x)
        with torch.autocast(x.device.type, enabled=False):
            alike, selected = self.pair_labels(clean @ clean.T)  # (B,B)
            weights = selected / selected.mean()  # of all: the mean of every process's rows is 1
            loss = pair_loss(moved, everybody, alike[own], weights[own])
        found = {"selected": selected.mean(), "alike": (alike * selected).sum() / selected.sum()}
        for name in "upper", "lower":
            found[name] = torch.full((), getattr(self, name), device=x.device)
        return {"loss": loss, **found}

    def pair_labels(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Step 2: labels and selection, both (B,B) of 0 and 1, of similarities g (B,B)."""
        return band_labels(g, self.upper, self.lower)

    def embed(self, x: Tensor) -> Tensor:
        """Label features (B,K) of images x, of length 1: what is clustered."""
        return label_features(self.predict_proba(x))

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x."""
        return self.head(self.encoder(x)).float().softmax(1)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> DAC:
    """Cluster images uint8 (N,C,H,W) without labels, from random weights or a copy of `encoder`.

    An `encoder` has `out_dim`; its features get a dense layer to K. With `n_init` above 1 the
    stages are called start1, start2, ... Chapter: dac.
    """
    best, lowest = DAC(images, config, copy.deepcopy(encoder)), math.inf
    for n in range(config.n_init):
        dac = DAC(images, config, copy.deepcopy(encoder)) if n else best
        stage = f"start{n + 1}" if config.n_init > 1 else "train"
        history = train(dac, images, config.train, stage=stage, **run)
        if history and history[-1]["loss"] < lowest:
            best, lowest = dac, history[-1]["loss"]
    settle(nn.Sequential(best.encoder, best.head), images, 512)
    return best


model = DAC  # what `fit` returns, with fresh weights
