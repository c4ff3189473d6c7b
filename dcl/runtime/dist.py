"""Several processes that train together: ranks, sums and rows of all, one BatchNorm.

Every process runs the same program on its share of a batch, or of the whole data set, and only
process 0 writes and prints. In a single process every function here returns its argument. The
page *Many GPUs* gives the cost of each step.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
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
    """Number of processes that train together; 1 without torchrun."""
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
    """Sum of x over all processes, same shape and dtype; gradients are summed likewise.

    Every process must call it, with the same shape. Chapter: swav.
    """
    return _AllSum.apply(x) if _many() else x


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, one process after the other: (b,...) -> (B,...).

    The numbers of rows may differ. Gradients, summed over the losses of all processes, return to
    the process a row came from, so a loss of the whole batch is written as on one process.
    """
    if not _many():
        return x
    counts = torch.zeros(world_size(), dtype=torch.int64, device=x.device)
    counts[rank()] = len(x)
    td.all_reduce(counts)
    before, total = int(counts[: rank()].sum()), int(counts.sum())
    whole = x.new_zeros(total, *x.shape[1:])
    whole[before : before + len(x)] = x
    return all_sum(whole)


def own_rows(x: Tensor) -> Tensor:
    """The indices (b,) int64 of this process's rows of x (b,...) in `all_gather_rows(x)`."""
    here = torch.arange(len(x), device=x.device)
    if not _many():
        return here
    owner = all_gather_rows(torch.full_like(here, rank()))
    return here + (owner == rank()).int().argmax()  # a mask would make the GPU wait


def shard(rows: Tensor) -> Tensor:
    """This process's part of `rows` (N,...); `all_gather_rows` puts the parts together again."""
    return rows.tensor_split(world_size())[rank()]


@torch.no_grad()
def broadcast_module(module: torch.nn.Module) -> None:
    """Give every process the parameters and buffers of process 0.

    They should already be equal, but are not where rounding differs between machines.
    """
    if _many():
        for t in (*module.parameters(), *module.buffers()):
            td.broadcast(t.data, 0)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    # torch's SyncBatchNorm does this on GPUs only
    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and _many()):
            return super().forward(x)
        across = [0, *range(2, x.ndim)]
        view = (1, -1) + (1,) * (x.ndim - 2)
        z = x.float()
        n = all_sum(z.new_tensor([z.numel() / z.shape[1]]))
        mean = all_sum(z.sum(across)) / n
        z = z - mean.view(view)
        var = all_sum((z * z).sum(across)) / n
        if self.track_running_stats and self.running_mean is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None and self.running_var is not None
                self.num_batches_tracked += 1
                rate = self.momentum or 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(var * n / (n - 1), rate)
        z = z * (var + self.eps).rsqrt().view(view)
        if self.affine:
            z = z * self.weight.view(view) + self.bias.view(view)
        return z.to(x.dtype)


def sync_batchnorm(module: torch.nn.Module) -> None:
    """Prepare a module, in place, for training by all processes: BatchNorm over the whole batch."""
    if _many():
        for m in module.modules():
            if isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                # exchange the class, not the layer: objectives hold references to these layers
                m.__class__ = _BatchNorm  # type: ignore[assignment]
        broadcast_module(module)


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, in one exchange after the backward pass.

    A parameter without a gradient must have none in any process. (DistributedDataParallel overlaps
    part of the exchange with the backward pass, but must know which parameters a step will use,
    and objectives freeze and unfreeze them.)
    """
    if not _many():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.float().flatten() for g in gradients])
    td.all_reduce(flat)
    parts = flat.div_(world_size()).split([g.numel() for g in gradients])
    for g, part in zip(gradients, parts, strict=True):
        g.copy_(part.view_as(g))


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def first_speaks() -> Iterator[bool]:
    """Only process 0 prints inside the block; yields whether this is process 0."""
    if not rank():
        yield True
        return
    with open(os.devnull, "w") as nobody, redirect_stdout(nobody):
        yield False


@contextmanager
def processes(device: str = "auto") -> Iterator[None]:
    """Join the processes that torchrun started, for the duration of the block.

    Does nothing without torchrun. `device` cpu: gloo alone; else NCCL for tensors on GPUs, and the
    GPU of this process's local rank becomes the current one.
    """
    if not launched() or td.is_initialized():
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo too: `dcl resume` of a run that started on the CPU stays there
    td.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        td.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Process 0 runs the block before the others: it downloads, they find the files."""
    if rank():
        td.barrier()
    yield
    if _many() and rank() == 0:
        td.barrier()


@torch.no_grad()
def all_max(x: Tensor) -> Tensor:
    """Elementwise maximum of x over all processes, same shape and dtype; no gradient."""
    if not _many():
        return x.detach()
    y = x.detach().clone(memory_format=torch.contiguous_format)
    td.all_reduce(y, op=td.ReduceOp.MAX)
    return y
