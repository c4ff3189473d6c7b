import resource
import sys

import pytest
import torch

from dcl.device import memory_kept, pick_device


def test_a_device_that_is_not_there():
    assert pick_device("cpu").type == "cpu"
    for name in ("warp", "cuda:97"):
        with pytest.raises(ValueError, match=f"device must be .*{name}"):
            pick_device(name)


def faults(times: int = 5) -> int:
    """Pages that the system had to clear for a block of 64 MB, taken and freed some times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_stays_with_the_process_for_the_next_step():
    if (plain := faults()) < 5000:
        pytest.skip("the system hands out larger pages, or the C library keeps them anyway")
    with memory_kept():
        faults()  # the block is taken from the system once, or until it lies well
        assert faults() < plain / 20
        with memory_kept():  # extract in a monitor of train
            assert faults() < plain / 20
        assert faults() < plain / 20
    with pytest.raises(KeyError), memory_kept():
        raise KeyError
    assert faults() > plain / 2, "afterwards everything is as it was"
