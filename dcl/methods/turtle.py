r"""TURTLE: the labels of frozen features that linear classifiers learn best are a clustering.

Gadetsky, Jiang, Brbić: Let Go of Your Labels with Unsupervised Transfer, ICML 2024. Explained in
chapter photographs.

Notation: S spaces, the features of as many frozen networks side by side, z those of one; in each a
task encoder, a linear layer of normalised weights with softmax, whose probabilities over K clusters
are :math:`p_s`; their mean :math:`\tau`, the labels; H the entropy.

Algorithm: compute the features of all images; then, an outer step:

1. draw a batch, and label it: :math:`\tau = \frac1S \sum_s p_s` (its cluster: the largest)
2. in every space fit a new linear classifier, :math:`q_s`, to these labels, by M steps of Adam: too
   few to learn anything but what is easy
3. change the task encoders by one step of Adam down

   .. math:: \sum_s -\overline{\tau \cdot \log q_s} - \gamma \sum_s H(\overline{p_s})

   where :math:`q_s` is a constant: the labels move to what a classifier has learned of them, and
   the entropy of the mean answer keeps all clusters in use, equally large

**Differences** from the released code

- features are centred, and a space is divided by one number, such that columns have a mean square
  of 1 (released: as they are): as steps of Adam have one size, nothing moves if rows are short
- a batch is that of all processes; clusters are those of the images trained on (released: others)
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from dcl.algorithm import Run, algorithm, frozen, untrained
from dcl.config import TrainConfig, check_config
from dcl.methods import simclr
from dcl.nets.convnets import identity
from dcl.objective import Encoder, Objective
from dcl.runtime.dist import all_sum
from dcl.train import train


@dataclass(frozen=True)
class Config:
    """The released settings."""

    advice: ClassVar = dict.fromkeys(("collapse", "dead clusters"), "Raise entropy_weight.")
    takes_vectors = True

    n_clusters: int = 10  #: K
    spaces: tuple[int, ...] = ()  #: columns of each space; (): as the encoder says, or one space
    inner_steps: int = 10  #: M
    inner_lr: float = 1e-3  #: of the classifiers' Adam
    warm_start: bool = False  #: classifiers and their Adam go on from step to step
    entropy_weight: float = 10.0  #: gamma; less for clusters of different sizes
    steps: int = 50  #: outer steps of an epoch; every batch is drawn from all images
    pretext: simclr.Config = simclr.Config()  #: with `seed` for its own; unused with an encoder
    train: TrainConfig = TrainConfig(120, 10_000, "adam", 1e-3)  #: 6,000 outer steps
    seed: int = 0

    def __post_init__(self) -> None:
        check_config(self, inner_steps=1, inner_lr=0, entropy_weight=0, steps=1)


def turtle_loss(p: Tensor, log_q: Tensor, entropy_weight: float = 10.0) -> dict[str, Tensor]:
    """Step 3, of task encoders' probabilities and classifiers' log-probabilities, (B,S,K) each.

    "cross_entropy" and "entropy" are means over spaces; the batch is that of all processes.
    """
    labels = p.mean(1, keepdim=True)  # tau
    cross = -(labels * log_q.detach()).sum(2).mean(0)  # (S,)
    mean = all_sum(p.sum(0)) / all_sum(torch.full((), float(len(p)), device=p.device))  # (S,K)
    entropy = -(mean * mean.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(1)
    loss = cross.sum() - entropy_weight * entropy.sum()
    return {"loss": loss, "cross_entropy": cross.mean(), "entropy": entropy.mean()}


@torch.no_grad()
def fit_linear(z: Tensor, tau: Tensor, state: Tensor, steps: int, lr: float, taken: int) -> Tensor:
    """Step 2: a linear classifier after `steps` of Adam down its cross-entropy to soft labels.

    z (B,d), last column 1; labels tau (B,K); state (3,K,d): weights, the last a bias, and Adam's
    means of gradients and of their squares after `taken` steps. Returns the new state.
    """
    w, m, v = state.unbind()
    wanted = tau.T.contiguous()  # (K,B): a softmax over rows takes a fraction of the time
    n = all_sum(torch.full((), float(len(z)), device=z.device))
    for t in range(taken + 1, taken + steps + 1):
        g = all_sum(((w @ z.T).softmax(0) - wanted) @ z) / n  # (K,d)
        m, v = torch.lerp(m, g, 0.1), torch.lerp(v, g * g, 0.001)
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return torch.stack([w, m, v])


class Turtle(Objective):
    """A frozen encoder, and a task encoder for each space of its features."""

    def __init__(self, encoder: Encoder, config: Config):
        super().__init__()
        self.config, self.encoder, d = config, encoder.requires_grad_(False), encoder.out_dim
        self.spaces = config.spaces or tuple(getattr(encoder, "widths", ())) or (d,)
        if sum(self.spaces) != d or min(self.spaces) < 1:
            raise ValueError(f"spaces must be parts of the {d} features; got {self.spaces}")
        self.columns, k = [n + 1 for n in self.spaces], config.n_clusters  # one for a bias
        self.tasks = nn.ModuleList(weight_norm(nn.Linear(n, k)) for n in self.spaces)
        self.mean, self.scale = nn.Buffer(torch.zeros(d)), nn.Buffer(torch.ones(d))
        self.starts = nn.Buffer(torch.zeros(config.steps, k, sum(self.columns)), persistent=False)
        self.fitted = nn.Buffer(torch.zeros(3, k, sum(self.columns)))  # and their Adam

    def measure(self, z: Tensor) -> None:
        """Set the center and scale of features (N,d)."""
        self.mean.copy_(z.mean(0))
        for one, scale in zip((z - self.mean).split(self.spaces, 1), self.scale.split(self.spaces)):
            scale.copy_(one.square().mean().sqrt().clamp(min=1e-12))

    def length(self, n: int) -> int:
        """So many batches."""
        return self.config.steps * self.config.train.batch_size

    def order(self, n: int) -> Tensor:
        """No image twice in a batch; another batch may have it again."""
        batch = self.config.train.batch_size
        return torch.cat([torch.randperm(n)[:batch] for _ in range(self.config.steps)])

    def before_epoch(self, epoch: int) -> None:
        """Draw where classifiers start, as PyTorch does, alike in all processes."""
        for start, n in zip(self.starts.split(self.columns, 2), self.spaces):
            start.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n))

    def forward(self, x: Tensor, i: Tensor) -> dict[str, Tensor]:
        """An outer step."""
        c, warm = self.config, self.config.warm_start and self.step > 0
        if not warm:
            self.fitted.zero_()[0] = self.starts[self.step % c.steps]
        with torch.autocast(x.device.type, enabled=False):
            p, logits = self.answers(parts := self.parts(x)), []
            tau, taken = p.detach().mean(1), c.inner_steps * self.step * warm
            for z, state in zip(parts, self.fitted.split(self.columns, 2)):
                z = F.pad(z, (0, 1), value=1.0)
                state.copy_(fit_linear(z, tau, state, c.inner_steps, c.inner_lr, taken))
                logits.append(z @ state[0].T)
            return turtle_loss(p, torch.stack(logits, 1).log_softmax(2), c.entropy_weight)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The features (B,n) of images or vectors x in each space, centred and scaled."""
        return ((self.encoder(x).float() - self.mean) / self.scale).split(self.spaces, 1)

    def answers(self, parts: tuple[Tensor, ...]) -> Tensor:
        """What the task encoders say of these, probabilities (B,S,K)."""
        return torch.stack([task(z) for task, z in zip(self.tasks, parts)], 1).softmax(2)

    def predict_proba(self, x: Tensor) -> Tensor:
        """The labels tau (B,K) of images or vectors x."""
        return self.answers(self.parts(x)).mean(1)

    def chances(self) -> dict[str, float]:
        """Both terms are ln K when every answer is uniform."""
        return dict.fromkeys(("cross_entropy", "entropy"), math.log(self.config.n_clusters))


def model(images: Tensor, config: Config, encoder: nn.Module | None = None) -> Turtle:
    """What `fit` returns, with fresh weights, for images (N,C,H,W) or vectors (N,d)."""
    pretext = untrained(simclr, images, config, encoder)
    return Turtle(getattr(pretext, "encoder", pretext), config).to(images.device)


@algorithm
def fit(images: Tensor, config: Config, encoder: Encoder | None, run: Run) -> Turtle:
    """Cluster images uint8 (N,C,H,W) or vectors (N,d), with an encoder that stays as it is."""
    trunk, z = frozen(simclr, images, config, run, encoder)
    turtle = Turtle(trunk, config).to(images.device)
    turtle.measure(z)
    turtle.encoder = identity(z.shape[1])
    train(turtle, z, config.train, **run)
    turtle.encoder = trunk
    return turtle.eval()
