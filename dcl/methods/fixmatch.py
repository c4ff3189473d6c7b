r"""FixMatch: learn a few labels, and strong views of everything from confident answers.

Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel: FixMatch, NeurIPS 2020, arXiv
2001.07685. The last step of SPICE, where the labels are pseudo-labels. Explained in chapter spice.

Algorithm, for L labelled images x, B images u of the whole set and a threshold t, step down

.. math:: \frac1L \sum_{l \le L} \mathrm{CE}(y_l, \mathrm{weak}(x_l)) + \frac1B \sum_{b \le B}
          [\max p(\mathrm{weak}(u_b)) > t] \, \mathrm{CE}(\arg\max p, \mathrm{strong}(u_b))

and move an average of the network, which answers in the end.

**Differences**

- the released learning rate is the first 7/16 of a cosine's half turn, here the cosine `final_lr`
- all images go through the network in one pass, so BatchNorm sees L + 2B
- with several processes a batch is that of all of them
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.cluster.pseudolabels import fixmatch_loss
from dcl.objective import Encoder, Objective
from dcl.optim import ema
from dcl.runtime.dist import all_gather_rows, rank, world_size
from dcl.train import unit


class FixMatch(Objective):
    """Network and head, and the average of both, which answers.

    labels (N,) int64: -1 for an image without one, at least one has; None: of a trained network.
    config: has n_clusters, labelled (L), threshold (t), weak, strong and ema_decay.
    """

    transient = ("labels",)

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Module,
        images: Tensor,
        config: Any,
        labels: Tensor | None = None,
    ):
        super().__init__()
        self.encoder, self.head, self.images, self.config = encoder, head, images, config
        encoder.requires_grad_(True)
        self.average = copy.deepcopy(self.live()).requires_grad_(False)
        self.labels = nn.Buffer(torch.full((len(images),), -1) if labels is None else labels)
        self.rows: Tensor = nn.Buffer(torch.arange(len(images)), persistent=False)  # that have one

    def live(self) -> nn.Sequential:
        """The network that is trained, images to logits (B,K)."""
        return nn.Sequential(self.encoder, self.head)

    def before_epoch(self, epoch: int) -> None:
        """Shuffle the labelled images."""
        rows = (self.labels >= 0).nonzero()[:, 0]
        self.rows = rows[torch.randperm(len(rows)).to(rows.device)]

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """The loss and its first part; "confident" is the share of images that taught."""
        c, first = self.config, self.step * self.config.labelled
        at = torch.arange(first + rank(), first + c.labelled, world_size(), device=x.device)
        j = self.rows[at % len(self.rows)]
        views = torch.cat([c.weak(unit(self.images[j])), c.weak(x), c.strong(x)])
        parts = self.live()(views).float().split([len(j), len(x), len(x)])
        known, weak, strong = (all_gather_rows(part) for part in parts)
        labelled = F.cross_entropy(known, all_gather_rows(self.labels[j]))
        loss, mask = fixmatch_loss(weak, strong, c.threshold)
        return {"loss": labelled + loss, "labelled": labelled, "confident": mask.float().mean()}

    def after_step(self) -> None:
        """Move the average."""
        ema(self.average, self.live(), self.config.ema_decay)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights, and biases and BatchNorm's, which do not decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        flat = {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}
        return [{"params": [p for p in trained if p.ndim > 1]}, flat]

    def predict_proba(self, x: Tensor) -> Tensor:
        """Cluster probabilities (B,K) of images x, by the average."""
        return self.average(x).float().softmax(1)

    def chances(self) -> dict[str, float]:
        """Of a network that knows nothing."""
        return {"labelled": math.log(self.config.n_clusters)}
