"""A run folder belongs to one configuration, and a write is whole or not at all."""

import os
from dataclasses import dataclass, field, replace

import pytest
import torch

from dcl import checkpoint
from dcl.optim import TrainConfig


@dataclass(frozen=True)
class Config:
    n_clusters: int = 10
    train: TrainConfig = field(default_factory=TrainConfig)
    scale: tuple[float, float] = (0.2, 1.0)


def test_flat_names_every_setting():
    flat = checkpoint.flat(Config())
    assert flat["n_clusters"] == 10
    assert flat["train.lr"] == 0.1
    assert flat["scale"] == [0.2, 1.0]


def test_a_folder_is_claimed_once(tmp_path):
    checkpoint.claim(tmp_path / "run", Config(), "abc")
    checkpoint.claim(tmp_path / "run", Config(), "abc")
    other = replace(Config(), train=TrainConfig(lr=0.2))
    with pytest.raises(ValueError, match=r"train\.lr: there 0\.1, now 0\.2"):
        checkpoint.claim(tmp_path / "run", other, "abc")
    with pytest.raises(ValueError, match=r"checksum: there 'abc', now 'abd'"):
        checkpoint.claim(tmp_path / "run", Config(), "abd")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(fd):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["state.pt"]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        checkpoint.load("evil.pt")
    assert not (tmp_path / "owned").exists()


def test_random_state_goes_back():
    state = checkpoint.random_state()
    first = torch.rand(2)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.rand(2), first)
