"""Ladder networks, M side by side: encoders, each with a decoder that removes noise from layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcl.objective import Encoder


def combinator(z: Tensor, u: Tensor, a: Tensor) -> Tensor:
    r"""An estimate of clean activations from noisy ones z (B,...) and what is known above, u.

    :math:`(z - m)\,v + m` with :math:`m = a_1 \sigma(a_2 u + a_3) + a_4 u + a_5`, v the same of
    :math:`a_6` to :math:`a_{10}`; a (10,...), learned: a Gaussian's mean where v is its share of
    the variance. Source: Rasmus et al. 2015. Chapter: kingdra.
    """
    m, v = (b[0] * torch.sigmoid(b[1] * u + b[2]) + b[3] * u + b[4] for b in (a[:5], a[5:]))
    return (z - m) * v + m


class Ladders(Encoder):
    """M ladder networks on `inputs` of x, flat (B,d), side by side: layers of `dims`, K logits.

    Each has weights of its own and sees noise of its own. One batched product serves a layer of all
    of them, and one BatchNorm, which treats each of its features alone anyway. `inputs` is frozen.
    Sources: Rasmus et al. 2015; Gupta et al. 2020. Chapter: kingdra.
    """

    def __init__(
        self, inputs: nn.Module, d: int, dims: Sequence[int], k: int, models: int, noise: float
    ):
        super().__init__()
        self.inputs, self.models, self.noise = inputs.requires_grad_(False), models, noise
        self.out_dim = models * dims[-1]
        widths = [d, *dims, k]
        pairs = list(zip(widths, widths[1:]))
        self.up = nn.ParameterList(_glorot(models, a, b) for a, b in pairs)
        self.down = nn.ParameterList(_glorot(models, b, a) for a, b in pairs)
        self.shift = nn.ParameterList(torch.zeros(models, w) for w in dims)
        self.mix = nn.ParameterList(torch.zeros(10, models, w) for w in widths)
        for a in self.mix:
            a.data[[1, 6]] = 1.0
        self.clean, self.noisy = _norms(models, dims), _norms(models, dims)
        self.above = _norms(models, widths)

    def train(self, mode: bool = True) -> "Ladders":
        """As for every module, but `inputs` stay in evaluation mode."""
        super().train(mode)
        self.inputs.eval()
        return self

    def encode(self, x: Tensor, noisy: bool = False) -> list[Tensor]:
        """Activations of every layer from the inputs to the logits: (B,M,w) each.

        Hidden ones are normalised, and neither shifted nor rectified. noisy: all but the logits
        have Gaussian noise added, in what is returned and in what the next layer sees.
        """
        with torch.no_grad():
            h = self.disturb(self.inputs(x).flatten(1)[:, None].expand(-1, self.models, -1), noisy)
        z = [h]
        for w, norm, shift in zip(self.up, self.noisy if noisy else self.clean, self.shift):
            z.append(self.disturb(_each(norm, _linear(h, w)), noisy))
            h = F.relu(z[-1] + shift)
        return [*z, _linear(h, self.up[-1])]

    def disturb(self, z: Tensor, noisy: bool) -> Tensor:
        """Activations z (B,M,w), with noise or as they are."""
        return z + self.noise * torch.randn_like(z) if noisy else z

    def decode(self, noisy: Sequence[Tensor]) -> list[Tensor]:
        """Estimates of the clean activations, shaped like the noisy ones, from the logits down."""
        u, found = noisy[-1], [torch.empty(0)] * len(noisy)
        for level in reversed(range(len(noisy))):
            if level < len(self.down):
                u = _linear(found[level + 1], self.down[level])
            found[level] = combinator(noisy[level], _each(self.above[level], u), self.mix[level])
        return found

    def error(self, noisy: Sequence[Tensor], clean: Sequence[Tensor], w: Sequence[float]) -> Tensor:
        """Mean squared errors of what is decoded, summed over layers with weights w: (M,)."""
        pairs = zip(self.decode(noisy), clean, strict=True)
        errors = [F.mse_loss(a, b, reduction="none").mean((0, 2)) for a, b in pairs]
        return torch.stack([v * e for v, e in zip(w, errors, strict=True)]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,M*w) of images or vectors x: the last hidden layer of every network."""
        return F.relu(self.encode(x)[-2] + self.shift[-1]).flatten(1)


def _glorot(models: int, a: int, b: int) -> Tensor:
    return torch.randn(models, a, b) * math.sqrt(2 / (a + b))


def _norms(models: int, widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm1d(models * w, eps=1e-10, affine=False) for w in widths)


def _each(norm: nn.Module, z: Tensor) -> Tensor:
    """BatchNorm of every feature of every network: (B,M,w)."""
    return norm(z.flatten(1)).view_as(z)


def _linear(h: Tensor, w: Tensor) -> Tensor:
    """Activations h (B,M,a) through matrices w (M,a,b): (B,M,b)."""
    return torch.bmm(h.transpose(0, 1), w).transpose(0, 1)
