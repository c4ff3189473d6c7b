import json
import subprocess
import sys

import pytest

from dcl.runtime.device import pick_device


def test_a_device_that_is_not_there():
    assert pick_device("cpu").type == "cpu"
    for name in ("warp", "cuda:97"):
        with pytest.raises(ValueError, match=f"device must be .*{name}"):
            pick_device(name)


BLOCKS = """
import json, resource, torch
from dcl.runtime.device import memory_kept

def cleared():  # pages that the system had to clear for a block of 64 MB, five times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():  # MB
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

found = {"plain": cleared(), "before": resident()}
with memory_kept():
    for _ in range(4):  # until the blocks lie well on the heap
        cleared()
    found["kept"] = cleared()
    with memory_kept():
        found["nested"] = cleared()
    found["after nested"] = cleared()
    found["free"] = resident()
found["given back"] = resident()
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_stays_with_the_process_for_the_next_step():
    """In a process of its own: what other tests left on the heap would decide."""
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True)
    found = json.loads(done.stdout)
    if found["plain"] < 5000:
        pytest.skip("the system hands out larger pages, or the C library keeps them anyway")
    for when in ("kept", "nested", "after nested"):
        assert found[when] < found["plain"] / 20, when
    assert found["free"] > found["before"] + 60, "free, and with the process"
    assert found["given back"] < found["before"] + 30
