"""Rank, world size and sums over processes that gradients pass through.

Started alone, a program is its own world: every function here then returns what it was given.
"""

from typing import Any

import torch
import torch.distributed as td
from torch import Tensor


def _many() -> bool:
    return td.is_available() and td.is_initialized() and td.get_world_size() > 1


def rank() -> int:
    """Number of this process, from 0; 0 when there is only one."""
    return td.get_rank() if _many() else 0


def world_size() -> int:
    """Number of processes that train together; 1 when none was started with torchrun."""
    return td.get_world_size() if _many() else 1


class _AllSum(torch.autograd.Function):
    # y = sum_r x_r is read by every process's loss, so d(sum of all losses)/dx_r = sum over
    # processes of dloss/dy: the gradient is summed just as the value was. DDP then averages over
    # processes, which turns the sum of losses into their mean.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone(memory_format=torch.contiguous_format)
        td.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        g = grads[0].clone(memory_format=torch.contiguous_format)
        td.all_reduce(g)
        return g


def all_sum(x: Tensor) -> Tensor:
    """Sum of x over all processes, same shape and dtype; gradients are summed in the same way.

    Every process must call it, with the same shape. Chapter: 03-swav.
    """
    return _AllSum.apply(x) if _many() else x


@torch.no_grad()
def all_max(x: Tensor) -> Tensor:
    """Elementwise maximum of x over all processes, same shape and dtype; no gradient."""
    if not _many():
        return x.detach()
    y = x.detach().clone(memory_format=torch.contiguous_format)
    td.all_reduce(y, op=td.ReduceOp.MAX)
    return y
