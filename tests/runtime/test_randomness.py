import random

import numpy as np
import pytest
import torch

from dcl.runtime import checkpoint, dist
from dcl.runtime.randomness import random_state, seeded, set_random_state


def draws():
    return [torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(),
            np.random.randn()]  # fmt: skip


def test_every_random_state_goes_back_also_through_a_file(tmp_path):
    random.gauss(0, 1), np.random.randn()  # both keep the second of a pair for later
    checkpoint.save(tmp_path / "a.pt", {"random": random_state()})
    first = draws()
    set_random_state(checkpoint.load(tmp_path / "a.pt")["random"])
    assert draws() == first
    assert draws() != first


@pytest.mark.parametrize(
    ("world", "shared", "expected"),
    [(1, True, "ab"), (2, True, "aa"), (1, False, "ab"), (2, False, "ab")],
)
def test_each_gpu_gets_its_state_and_on_resuming_that_of_the_first(
    monkeypatch, world, shared, expected
):
    """Three GPUs are in the checkpoint and two are here."""
    given = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda own, k: given.update({k: own}))
    monkeypatch.setattr(dist, "world_size", lambda: world)
    set_random_state({**random_state(), "cuda": ["a", "b", "c"]}, shared=shared)
    assert given == dict(enumerate(expected))


def test_what_is_drawn_inside_comes_from_the_seed_and_the_callers_state_goes_back():
    before = random_state()
    with seeded(3):
        inside = draws()[0]
        with seeded(4):
            draws()
        after = torch.rand(2)
    with seeded(3):
        assert draws()[0] == inside and torch.equal(torch.rand(2), after)
    first = draws()
    set_random_state(before)
    assert draws() == first
