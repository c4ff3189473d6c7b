"""Optimisers and learning-rate schedules: SGD, Adam, RMSprop, LARC, warm-up and cosine."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin

import torch


def check_config(config: Any, **bounds: float | tuple[float, float]) -> None:
    """Hold a configuration to its Literal fields, and named numbers to least[, below] values.

    Raises ValueError naming the field, what came and what was expected.
    """
    for f in fields(config):
        value, allowed = getattr(config, f.name), get_args(f.type)
        if get_origin(f.type) is Literal and value not in allowed:
            raise ValueError(f"{f.name} must be one of {', '.join(allowed)}; got {value!r}")
    for name, bound in bounds.items():
        least, below = bound if isinstance(bound, tuple) else (bound, math.inf)
        if not least <= (value := getattr(config, name)) < below:
            upper = "" if below == math.inf else f" and below {below}"
            raise ValueError(f"{name} must be at least {least}{upper}; got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """How one stage is optimised. Times are in epochs, the learning rate is per optimiser step."""

    epochs: int = 100
    batch_size: int = 256
    optimizer: Literal["sgd", "adam", "rmsprop", "larc"] = "sgd"
    """`momentum` is for sgd and larc. rmsprop forgets squared gradients at Keras' rate, .9."""
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    final_lr: float = 0.0
    """Where the cosine ends."""
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    """Where the linear warm-up starts."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the step schedule multiplies the learning rate by `gamma`."""
    gamma: float = 0.1
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """auto: float32 on a CPU; on a GPU bfloat16 from compute capability 8, else float16."""
    compile: bool = False
    """Make one program of the encoder's layers (torch.compile), forward and backward, for the
    steps of training; the first step of each shape waits for it, up to a minute. Heads, losses
    and views stay as they are, and so do weights, their names and what is not training."""

    def __post_init__(self) -> None:
        check_config(self, epochs=0, batch_size=2, lr=0.0, weight_decay=0.0)


def with_stages(config: Any, change: Callable[[TrainConfig], TrainConfig]) -> Any:
    """A configuration with `change` applied to every stage of training, at any depth."""
    if isinstance(config, TrainConfig):
        return change(config)
    inner = {f.name: getattr(config, f.name) for f in fields(config)}
    return replace(
        config, **{k: with_stages(v, change) for k, v in inner.items() if is_dataclass(v)}
    )


def with_epochs(config: Any, epochs: int | Callable[[int], int]) -> Any:
    """A configuration whose every stage lasts `epochs`, or `epochs(before)`, at any depth.

    A number leaves a stage of 0 epochs off. Warm-up and milestones keep their share of the
    schedule. Chapter: 05-compare.
    """

    def change(stage: TrainConfig) -> TrainConfig:
        after = epochs(stage.epochs) if callable(epochs) else epochs * (stage.epochs > 0)
        share = after / max(stage.epochs, 1)
        return replace(
            stage,
            epochs=after,
            warmup_epochs=round(stage.warmup_epochs * share),
            milestones=tuple(round(m * share) for m in stage.milestones),
        )

    return with_stages(config, change)


def with_batches(config: Any, most: int) -> Any:
    """A configuration without batches of more than `most`. Chapter: 06-your-images."""
    return with_stages(config, lambda s: replace(s, batch_size=min(s.batch_size, most)))


class LARC(torch.optim.SGD):
    """SGD whose step is scaled, per tensor, by the ratio of weight norm to gradient norm.

    For a parameter p with gradient g the step direction is ``a * (g + wd * p)`` with
    ``a = trust * |p| / (|g| + wd * |p| + eps)``; a tensor with a zero weight or gradient
    norm takes the plain step. This is the ``clip=False`` form that SwAV trains with (LARS).

    Source: You, Gitman, Ginsburg 2017, eq. 6. Chapter: 03-swav.
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
            # all tensors at once, and torch.where for `if`: a kernel or, worse, a host read for
            # each tensor would have the GPU wait
            grads = [p.grad for p in params]
            p_norm = torch.stack(torch._foreach_norm(params))
            g_norm = torch.stack(torch._foreach_norm(grads))
            ratio = self.trust * p_norm / (g_norm + wd * p_norm + self.eps)
            ratio = ratio.where(p_norm != 0, 1.0).where(g_norm != 0, 0.0)
            scaled = torch._foreach_add(grads, torch._foreach_mul(params, wd))
            torch._foreach_mul_(scaled, ratio.unbind())
            for p, g in zip(params, scaled, strict=True):
                p.grad = g
        loss = super().step(closure)
        for group, wd in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = wd
        return loss


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `config` over parameter groups; a group may override any setting."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, alpha=0.9, **settings)
    weights = [p for g in groups for p in g["params"]]
    large = sum(p.numel() for p in weights) > 300_000
    if config.optimizer != "larc" and (large or all(p.is_cuda for p in weights)):
        # one kernel: on a GPU float16 needs no host read, on a CPU Adam takes a quarter of the
        # time; small networks would not notice, and keep their recorded numbers to the bit
        settings["fused"] = True
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, **settings)
    make = LARC if config.optimizer == "larc" else torch.optim.SGD
    return make(groups, momentum=config.momentum, nesterov=config.nesterov, **settings)


def learning_rate(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a function of the optimiser step, counted from 0.

    Linear warm-up from `warmup_lr`, then constant, cosine to `final_lr`, or steps.
    Cosine is per step, steps are per epoch. Chapter: 03-swav.
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


@torch.no_grad()
def ema(
    target: torch.nn.Module, source: torch.nn.Module, decay: float, *, buffers: bool = True
) -> None:
    """Move `target` towards `source`: t <- decay * t + (1 - decay) * s.

    Buffers (BatchNorm's statistics) are copied, or left alone with `buffers=False`.
    Source: Tarvainen and Valpola 2017 (mean teacher). Chapter: 04-scan.
    """
    torch._foreach_lerp_([*target.parameters()], [*source.parameters()], 1 - decay)
    if buffers:
        for t, s in zip(target.buffers(), source.buffers(), strict=True):
            t.copy_(s)
