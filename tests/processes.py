"""Run a function in two gloo processes and hand back what each returned."""

from pathlib import Path

import torch
import torch.distributed as td
import torch.multiprocessing as mp


def _start(rank, function, arguments, size, folder):
    torch.set_num_threads(1)
    td.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    try:
        torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        td.destroy_process_group()


def in_processes(function, arguments, folder: Path, size: int = 2):
    """`function(rank, *arguments)` in `size` processes; returns their results, rank by rank."""
    mp.spawn(_start, (function, arguments, size, str(folder)), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]
