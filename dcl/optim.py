"""Optimisers and learning-rate schedules: SGD, Adam, RMSprop, LARC, LARS, warm-up and cosine."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcl.config import TrainConfig


class LARC(torch.optim.SGD):
    """SGD whose step is scaled, per tensor, by the ratio of weight norm to gradient norm.

    For a parameter p with gradient g the step direction is ``a * (g + wd * p)`` with
    ``a = trust * |p| / (|g| + wd * |p| + eps)``; a tensor with a zero weight or gradient
    norm takes the plain step. This is the ``clip=False`` form that SwAV trains with (LARS).

    Source: You, Gitman, Ginsburg 2017, eq. 6. Chapter: swav.
    """

    def __init__(self, params: Iterable, *, trust: float = 0.001, eps: float = 1e-8, **sgd: Any):
        super().__init__(params, **sgd)
        self.trust, self.eps = trust, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Scale every gradient, then take the SGD step without its own weight decay."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, wd in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            if not (params := [p for p in group["params"] if p.grad is not None]):
                continue
            for p, g in zip(params, self.scaled(params, wd), strict=True):
                p.grad = g
        loss = super().step(closure)
        for group, wd in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = wd
        return loss

    def scaled(self, params: list[Any], wd: float) -> Sequence[Tensor]:
        """The step direction of each parameter."""
        # all tensors at once, and torch.where instead of `if`: a kernel or, worse, a host read
        # per tensor would make the GPU wait
        grads = [p.grad for p in params]
        p_norm = torch.stack(torch._foreach_norm(params))
        g_norm = torch.stack(torch._foreach_norm(grads))
        ratio = self.trust * p_norm / (g_norm + wd * p_norm + self.eps)
        ratio = ratio.where(p_norm != 0, 1.0).where(g_norm != 0, 0.0)
        steps = torch._foreach_add(grads, torch._foreach_mul(params, wd))
        torch._foreach_mul_(steps, ratio.unbind())
        return steps


class LARS(LARC):
    """LARC that leaves biases and BatchNorm alone, as Barlow Twins trains.

    A parameter of two or more axes has the direction ``a * (g + wd * p)`` with
    ``a = trust * |p| / |g + wd * p|``, or 1 if either norm is zero. One with a single axis takes
    plain SGD steps, without weight decay.

    Source: You, Gitman, Ginsburg 2017; exclusions: Zbontar et al. 2021. Chapter: barlowtwins.
    """

    def scaled(self, params: list[Any], wd: float) -> Sequence[Tensor]:
        """The step direction of each parameter."""
        if not (large := [p for p in params if p.ndim > 1]):
            return [p.grad for p in params]
        steps = torch._foreach_add([p.grad for p in large], torch._foreach_mul(large, wd))
        p_norm = torch.stack(torch._foreach_norm(large))
        s_norm = torch.stack(torch._foreach_norm(steps))
        ratio = (self.trust * p_norm / s_norm).where((p_norm != 0) & (s_norm != 0), 1.0)
        torch._foreach_mul_(steps, ratio.unbind())
        scaled = iter(steps)
        return [next(scaled) if p.ndim > 1 else p.grad for p in params]


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `config` over parameter groups; a group may override any setting."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, alpha=0.9, **settings)
    weights = [p for g in groups for p in g["params"]]
    large = sum(p.numel() for p in weights) > 300_000
    if config.optimizer not in ("larc", "lars") and (large or all(p.is_cuda for p in weights)):
        # one kernel: on a GPU float16 needs no host read, on a CPU Adam takes a quarter of the
        # time; small networks gain nothing, and without it repeat their recorded numbers exactly
        settings["fused"] = True
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, **settings)
    make = {"larc": LARC, "lars": LARS}.get(config.optimizer, torch.optim.SGD)
    return make(groups, momentum=config.momentum, nesterov=config.nesterov, **settings)


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a function of the optimiser step, counted from 0.

    Linear warm-up from `warmup_lr`, then constant, or cosine to `final_lr`, which changes every
    optimiser step, or the step schedule, which changes between epochs. Chapter: swav.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    total = max(config.epochs * steps_per_epoch, warmup + 1)

    def lr(step: int) -> float:
        if step < warmup:
            return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup
        if config.schedule == "cosine":
            progress = (step - warmup) / (total - warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * progress))
            return config.final_lr + (config.lr - config.final_lr) * cosine
        if config.schedule == "step":
            epoch = step // steps_per_epoch
            return config.lr * config.gamma ** sum(epoch >= m for m in config.milestones)
        return config.lr

    return lr


def ramp_up(epoch: int, length: int = 100, height: float = 5.0) -> float:
    """Weight of a consistency loss, from height * exp(-5) at 0 to `height` at `length`.

    Source: Laine and Aila 2017; LSD-C section 3.3. Chapter: lsdc.
    """
    return height * math.exp(-5 * (1 - min(epoch, length) / length) ** 2)


@torch.no_grad()
def ema(
    target: torch.nn.Module, source: torch.nn.Module, decay: float, *, buffers: bool = True
) -> None:
    """Move `target` towards `source`: t <- decay * t + (1 - decay) * s; buffers are copied.

    Buffers are BatchNorm's statistics. Without `buffers` the target keeps its own, for one that
    sees batches itself, as MoCo's key encoder does (He et al. 2020, eq. 2).
    Source: Tarvainen and Valpola 2017 (mean teacher). Chapters: scan and pcl.
    """
    torch._foreach_lerp_([*target.parameters()], [*source.parameters()], 1 - decay)
    if buffers:
        for t, s in zip(target.buffers(), source.buffers(), strict=True):
            t.copy_(s)
