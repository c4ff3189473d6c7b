"""File systems that lack locks, flushing or renaming: one warning, and the work is done."""

import errno
import os
import warnings

import pytest
import torch

from dcl.app.cli import OK, WARNING, main
from dcl.data import memmap
from dcl.runtime import checkpoint
from photos import fit, photos_in

fcntl = pytest.importorskip("fcntl")


def refuse(monkeypatch, call, number):
    """Make a system call answer as a file system that lacks it."""
    module, name = call.split(".")
    module = {"fcntl": fcntl, "os": os}[module]
    real = getattr(module, name)

    def answer(first, *more):
        if name != "flock" or more[0] != fcntl.LOCK_UN:
            raise OSError(number, os.strerror(number))
        return real(first, *more)

    monkeypatch.setattr(module, name, answer)


POOR = [
    ("fcntl.flock", errno.ENOLCK),
    ("fcntl.flock", errno.EOPNOTSUPP),
    ("fcntl.flock", errno.EINVAL),
    ("os.fsync", errno.EINVAL),
    ("os.fsync", errno.EBADF),
    ("os.replace", errno.EXDEV),
    ("os.replace", errno.EBUSY),
]


@pytest.mark.parametrize(("call", "number"), POOR)
def test_a_run_is_kept_with_one_warning(call, number, tmp_path, monkeypatch):
    refuse(monkeypatch, call, number)
    with pytest.warns(UserWarning) as said, checkpoint.lock(tmp_path), checkpoint.lock(tmp_path):
        checkpoint.claim(tmp_path, {}, "0")
        for k in range(3):
            checkpoint.save(tmp_path / "pretext" / "a.pt", {"k": torch.tensor(k)})
    assert len(said) == 1 and f"file system of {str(tmp_path)!r}" in str(said[0].message)
    assert os.strerror(number) in str(said[0].message)
    assert int(checkpoint.load(tmp_path / "pretext" / "a.pt")["k"]) == 2
    assert not [*tmp_path.rglob("*.partial")] and (tmp_path / "config.json").exists()


def test_the_command_runs_without_locks_or_flushing(tmp_path, monkeypatch, capfd):
    (tmp_path / "photos").mkdir()
    photos, out = photos_in(tmp_path / "photos"), tmp_path / "run"
    refuse(monkeypatch, "fcntl.flock", errno.ENOLCK)
    refuse(monkeypatch, "os.fsync", errno.EINVAL)
    assert fit(photos, out, "--size", "16", "--epochs", "1") in (OK, WARNING)
    assert main(["resume", str(out)]) in (OK, WARNING)
    assert main(["report", str(out)]) in (OK, WARNING)
    assert capfd.readouterr().err.count("warning: the file system of") == 1


@pytest.mark.parametrize("call", ["fcntl.flock", "os.fsync"])
def test_decoded_images_are_kept_too(call, tmp_path, monkeypatch):
    refuse(monkeypatch, call, errno.EOPNOTSUPP)
    block = torch.ones(4, 3, 2, 2, dtype=torch.uint8).numpy()
    blocks = (b for b in [(block, {})])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, _ = memmap.stored(tmp_path, "key", block.nbytes, (3, 2, 2), blocks)
    assert kept.shape == (4, 3, 2, 2) and (kept == 1).all()


@pytest.mark.parametrize(("call", "number"), [("fcntl.flock", errno.EIO), ("os.fsync", errno.EIO)])
def test_a_disk_that_fails_is_still_an_error(call, number, tmp_path, monkeypatch):
    refuse(monkeypatch, call, number)
    with pytest.raises(OSError, match=os.strerror(number)), checkpoint.lock(tmp_path):
        pass
