"""Random state: saved, restored, and set from a seed."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dcl.runtime import dist


def random_state() -> dict[str, Any]:
    """The state of every default generator: torch's on CPU and GPUs, Python's, NumPy's.

    dcl draws from torch alone; the others are for encoders and monitors from outside.
    """
    version, words, gauss = random.getstate()
    _, key, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": [version, torch.tensor(words), gauss],
        "numpy": [torch.from_numpy(np.asarray(key, np.int64)), *rest],
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any], *, shared: bool = False) -> None:
    """Restore what `random_state` returned; states of GPUs that are not available are skipped.

    `shared`: the state is that of process 0, which all processes take over.
    """
    torch.set_rng_state(state["cpu"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    key, *rest = state["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))
    cuda = state.get("cuda", [])
    for device, own in zip(range(torch.cuda.device_count()), cuda):
        # numbers that all processes share were drawn by process 0 on its GPU, the first
        torch.cuda.set_rng_state(cuda[0] if shared and dist.world_size() > 1 else own, device)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` in the block; the caller's random state is restored after it."""
    before = random_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before)
