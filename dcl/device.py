"""Where a run computes, and in which arithmetic."""

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The GPU when there is one, for "auto". Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device must be auto, cpu or a GPU that is here; got {name!r}") from e
    return device


def autocast(device: torch.device, precision: str) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """The arithmetic of a run: an autocast context and the gradient scaler that belongs to it."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        precision = "bfloat16" if fast else "float16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, precision)
    enabled = dtype != torch.float32
    context = torch.autocast(device.type, dtype if enabled else None, enabled=enabled)
    return context, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
