"""The device of a run, its precision, and the memory that its process keeps."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEEP, USUAL = (1 << 30, 1 << 30), (1 << 25, 1 << 26)  # glibc's limits for blocks and for the top
_open = 0  # contexts of `memory_kept`


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The named device; "auto": the GPU if there is one. Raises ValueError for a missing device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device must be auto, cpu or an available GPU; got {name!r}") from e
    return device


def autocast(device: torch.device, precision: str) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """The precision of a run: an autocast context and the gradient scaler that goes with it."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bfloat16" if fast else "float16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, precision)
    enabled = dtype != torch.float32
    context = torch.autocast(device.type, dtype if enabled else None, enabled=enabled)
    return context, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within it, memory that a step frees on a CPU stays with the process for the next step.

    By default glibc maps every large block anew and returns it when it is freed; the system then
    clears each page again, for each layer of each step: up to two fifths of the CPU time of a
    small network. At the end all free memory returns to the system. Contexts may be nested. Does
    nothing with another C library.
    """
    global _open
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "malloc_trim"):
        yield
        return
    _open += 1
    _limits(libc, KEEP)
    try:
        yield
    finally:
        _open -= 1
        if not _open:
            _limits(libc, USUAL)
            libc.malloc_trim(0)


def _limits(libc: ctypes.CDLL, limits: tuple[int, int]) -> None:
    for name, value in zip((-3, -1), limits, strict=True):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc.mallopt(name, value)
