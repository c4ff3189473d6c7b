"""One visible loop: `train(objective, images, config)`, and passes over a set without training."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dcl.config import TrainConfig
from dcl.data.memmap import forget
from dcl.objective import Monitor, Objective
from dcl.optim import learning_rate, make_optimizer
from dcl.runtime import checkpoint, dist
from dcl.runtime.device import autocast, memory_kept
from dcl.runtime.randomness import random_state, seeded, set_random_state

History = list[dict[str, Any]]


def own_draws(epoch: int) -> AbstractContextManager:
    """Random numbers of this process alone; outside the block all processes draw the same."""
    if dist.world_size() == 1:
        return nullcontext()
    with torch.random.fork_rng():
        common = int(torch.randint(2**62, ()))
    return seeded(common + epoch * dist.world_size() + dist.rank())


def batches(images: Any, rows: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, i) for consecutive runs of `rows`: x as `unit(images[i])`, i int64 (B,).

    The one place that knows how images are stored: anything with `len` and
    integer-array indexing that returns uint8 (B,C,H,W), or vectors.
    """
    for n, i in enumerate(rows.split(batch_size)):
        x = images[i]
        if n * x.nbytes % 2**26 < x.nbytes:  # every 64 MB, and what lies around them
            forget(images)
        yield unit(x), i.to(x.device)


def unit(x: Tensor) -> Tensor:
    """Images uint8 (B,C,H,W) as float in [0,1]; vectors, float (B,D), as they are."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


@memory_kept()
def train(
    objective: Objective,
    images: Tensor,
    config: TrainConfig,
    *,
    stage: str = "train",
    monitor: Monitor | None = None,
    run_dir: str | Path | None = None,
) -> History:
    """Minimise `objective` over `images` uint8 (N,C,H,W); returns one dict of mean losses an epoch.

    Vectors, float32 (N,d), may take their place. With `run_dir`, every epoch ends with a checkpoint
    in `<run_dir>/<stage>.pt`, from which a second call resumes, bit for bit on the same machine.
    Raises ValueError when a batch is larger than the set, and FloatingPointError when a loss is no
    longer finite: the checkpoint of the epoch before is kept.

    Under torchrun each process takes its share of every batch (`batch_size` counts all of them),
    and together they take the same step; every process must call this, and calls `monitor`.
    """
    world, rank = dist.world_size(), dist.rank()
    steps = objective.length(len(images)) // config.batch_size
    if config.epochs and (not steps or config.batch_size < world):
        bound = f"most the number of images, {len(images)}" if not steps else f"least {world}"
        raise ValueError(f"batch_size must be at {bound}; got {config.batch_size}")
    _make_ready(objective, images.device, config)
    optimizer = make_optimizer(objective.parameter_groups(), config)
    lr = learning_rate(config, steps)
    cast, scaler = autocast(images.device, config.precision)
    saved = checkpoint.place(run_dir, stage) if run_dir else None
    with checkpoint.lock(run_dir) if run_dir else nullcontext():
        history: History = _resume(saved, objective, optimizer, scaler) if saved else []
        for epoch in range(len(history), config.epochs):
            started = time.perf_counter()
            objective.train()
            objective.epoch = epoch
            objective.before_epoch(epoch)
            dist.broadcast_module(objective)
            if objective.finished():
                break
            rows = objective.order(len(images))[: steps * config.batch_size].to(images.device)
            own = rows.view(steps, -1)[:, rank::world]  # (steps,b): this process's part
            weight = own.shape[1] * world / config.batch_size  # 1 when the parts are equal
            total: dict[str, Tensor] = {}
            broke = torch.full((), steps, device=images.device)  # first step with a bad loss
            with own_draws(epoch):
                for step, (x, i) in enumerate(batches(images, own.flatten(), own.shape[1])):
                    objective.step = epoch * steps + step
                    for group in optimizer.param_groups:
                        group["lr"] = group.get("lr_scale", 1.0) * lr(objective.step)
                    with cast:
                        losses = objective(x, i)
                    scaler.scale(weight * losses["loss"]).backward()
                    dist.average_gradients(objective.parameters())
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    objective.after_step()
                    # sums stay on the device: reading a loss would make the GPU wait for the host
                    broke = torch.where(losses["loss"].isfinite(), broke, broke.clamp(max=step))
                    for name, value in losses.items():
                        total[name] = total.get(name, 0) + value.detach().float() * weight / world
            mean = {name: float(dist.all_sum(value)) / steps for name, value in total.items()}
            if (bad := -int(dist.all_max(-broke))) < steps:
                raise _diverged(stage, epoch, bad, steps, config.lr, saved)
            history.append({"epoch": epoch, **mean, "seconds": time.perf_counter() - started})
            try:  # the monitor first: the random numbers it draws are part of the saved state
                if monitor:
                    monitor(stage, epoch, objective, mean)
            finally:
                if saved and rank == 0:
                    _save(saved, objective, optimizer, scaler, history)
    objective.eval()
    return history


def _make_ready(objective: Objective, device: torch.device, config: TrainConfig) -> None:
    objective.to(device)
    dist.sync_batchnorm(objective)
    if config.compile:
        objective.encoder.compile(dynamic=False)  # in place: the weights keep their names


def _diverged(
    stage: str, epoch: int, step: int, steps: int, lr: float, saved: Path | None
) -> FloatingPointError:
    kept = f" The checkpoint after {epoch} epochs is in {saved}." if saved and epoch else ""
    return FloatingPointError(
        f"the loss of stage {stage!r} stopped being finite at epoch {epoch}, step {step} of "
        f"{steps}; lower lr ({lr}) or check the images.{kept}"
    )


def _save(path: Path, objective: nn.Module, optimizer: Any, scaler: Any, history: History) -> None:
    state = {
        "objective": objective.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "random": random_state(),
        "history": history,
    }
    checkpoint.save(path, state)


def _resume(path: Path, objective: nn.Module, optimizer: Any, scaler: Any) -> History:
    try:
        state = checkpoint.load(path)
    except FileNotFoundError:  # no earlier one either
        return []
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    set_random_state(state["random"], shared=True)
    return state["history"]


@memory_kept()
@torch.no_grad()
def extract(function: Callable[[Tensor], Tensor], images: Any, batch_size: int = 0) -> Tensor:
    """`function` of all images, uint8 (N,C,H,W), stacked: (N, ...).

    `function` is a module or a method of one, and sees float (B,C,H,W) in [0,1] in eval mode, or
    vectors (B,d) as they are; every submodule's mode is restored afterwards. batch_size 0: 512,
    fewer above 32 px, so that a network's feature maps fit into memory, and four times that on a
    GPU. Several processes share the work: each must call this, and gets all rows.
    """
    if not batch_size:
        pixels = math.prod(images.shape[2:])
        batch_size = min(512, max(16, 2**19 // pixels)) * (4 if images.device.type == "cuda" else 1)
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    modes = [m.training for m in modules]
    for m in modules:
        m.training = False
    compiled = any(m._compiled_call_impl for m in modules)
    # a shape that is seen once is not worth compiling for
    by_hand = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    try:
        with by_hand:
            rows = dist.shard(torch.arange(len(images), device=images.device))
            found, at = torch.empty(0), 0
            for x, i in batches(images, rows, batch_size):
                if len(y := function(x)) != len(i):
                    raise ValueError(f"function must return a row per image; returned {len(y)}")
                if not at:  # one block: thousands of small ones would fragment the heap
                    found = y.new_empty(len(rows), *y.shape[1:])
                found[at : at + len(i)] = y
                at += len(i)
        return dist.all_gather_rows(found)
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def predict(objective: Objective, images: Any) -> Tensor:
    """The cluster (N,) int64 of every image, on the CPU."""
    return extract(objective.predict, images).cpu()


@torch.no_grad()
def settle(module: nn.Module, images: Any, batch_size: int) -> None:
    """Recompute BatchNorm's running statistics as means over batches of images uint8 (N,C,H,W).

    In place. The running averages of training mix in augmented views and outdated weights; these
    see the images, and the final weights. Source: Wu and Johnson 2021, arXiv 2105.07576.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    rates = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the mean of all batches
        m.train()
    size = min(batch_size, len(images))
    rows = torch.randperm(len(images))[: len(images) // size * size].to(images.device)
    own = rows.view(-1, size)[:, dist.rank() :: dist.world_size()]
    for x, _ in batches(images, own.flatten(), own.shape[1]):
        module(x)
    for m, rate in zip(norms, rates, strict=True):
        m.momentum = rate
        m.eval()
