"""A run folder has one configuration and one writer, and a write is whole or not at all."""

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn

from dcl.config import TrainConfig
from dcl.objective import Objective
from dcl.runtime import checkpoint, dist
from dcl.runtime.files import write_atomic
from dcl.train import train


@dataclass(frozen=True)
class Config:
    n_clusters: int = 10
    train: TrainConfig = field(default_factory=TrainConfig)
    scale: tuple[float, float] = (0.2, 1.0)


def state(k):
    """The state of epoch k of a run that does nothing."""
    return {"a": torch.full((1000,), float(k)), "history": [{"epoch": k}]}


def epoch(found):
    return found["history"][0]["epoch"]


def signed(payload):
    """A file with a right header around anything."""
    head = f"dcl checkpoint 1 sha256 {sha256(payload).hexdigest()} bytes {len(payload)}\n"
    return head.encode() + payload


@pytest.fixture
def path(tmp_path):
    """A checkpoint of epoch 1 with epoch 0 before it."""
    path = tmp_path / "scan.pt"
    checkpoint.save(path, state(0))
    checkpoint.save(path, state(1))
    return path


# ---------------------------------------------------------------- configuration


def test_a_folder_is_claimed_once(tmp_path):
    checkpoint.claim(tmp_path / "run", Config(), "abc")
    checkpoint.claim(tmp_path / "run", Config(), "abc")
    other = replace(Config(), train=TrainConfig(lr=0.2))
    with pytest.raises(ValueError, match=r"train\.lr: there 0\.1, now 0\.2"):
        checkpoint.claim(tmp_path / "run", other, "abc")
    with pytest.raises(ValueError, match=r"checksum: there 'abc', now 'abd'"):
        checkpoint.claim(tmp_path / "run", Config(), "abd")


@pytest.mark.parametrize(
    "bad",
    [b"", b"{", b"[1]", b"null", b'{"config": {}}', b'{"config": 1, "data": {}}', b"\xff\xfe",
     b"[" * 100_000, pickle.dumps({"config": {}, "data": {}})],
)  # fmt: skip
def test_a_damaged_configuration_is_named_and_left_alone(tmp_path, bad):
    (tmp_path / "config.json").write_bytes(bad)
    with pytest.raises(ValueError, match=r"config\.json' is damaged.*are unknown"):
        checkpoint.claim(tmp_path, Config(), "abc")
    assert (tmp_path / "config.json").read_bytes() == bad


def test_a_stage_stays_in_the_folder(tmp_path):
    assert checkpoint.place(tmp_path, "scan-2_b") == tmp_path / "scan-2_b.pt"
    for bad in ("../x", "/x", "a/b", "..", "", "a.previous", "a\0", "a\n", "a\\b"):
        with pytest.raises(ValueError, match="stage must be made of letters"):
            checkpoint.place(tmp_path, bad)


# ---------------------------------------------------------------- writes


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    match = r"could not write [\d,]+ bytes to .*state.pt': No space"
    with pytest.raises(OSError, match=match) as raised:
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert raised.value.errno == errno.ENOSPC
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["state.pt"]


def test_the_one_before_is_kept(path):
    assert epoch(checkpoint.load(path)) == 1
    path.unlink()
    with pytest.warns(UserWarning, match=r"No such file.*scan\.pt'; '.*previous\.pt' is used"):
        assert epoch(checkpoint.load(path)) == 0


def test_at_every_instant_there_is_a_whole_one(path, monkeypatch):
    """Looked at before and after each change to the folder that `save` makes."""
    seen = []

    def watched(change):
        def look_then_change(*arguments, **named):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seen.append(epoch(checkpoint.load(path)))
                result = change(*arguments, **named)
                seen.append(epoch(checkpoint.load(path)))
            return result

        return look_then_change

    for name in ("replace", "unlink", "fsync", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    checkpoint.save(path, state(2))
    assert seen == sorted(seen) and set(seen) == {1, 2}
    assert seen.index(2) > 4  # the file was written and synchronised before it got its name


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(path):
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint.save(path, state(2))
    assert epoch(checkpoint.load(path)) == 2
    path.unlink()
    with pytest.warns(UserWarning):
        assert epoch(checkpoint.load(path)) == 0


def test_what_dead_processes_left_is_removed_with_the_next_claim(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".scan.pt.{dead.pid}.partial"
    left.write_bytes(b"half")
    living = tmp_path / f".scan.pt.{os.getppid()}.partial"
    living.write_bytes(b"half")
    mine = tmp_path / "my.1.partial"
    mine.write_bytes(b"a file of the user's")
    checkpoint.claim(tmp_path, Config(), "abc")
    assert not left.exists() and living.exists() and mine.exists()


# ---------------------------------------------------------------- damage


def test_the_header_by_hand(path):
    head, payload = path.read_bytes().split(b"\n", 1)
    assert head.decode() == (
        f"dcl checkpoint 1 sha256 {sha256(payload).hexdigest()} bytes {len(payload)}"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: b[:-1], r"it has [\d,]+ of [\d,]+ bytes"),
        (lambda b: b + b"x", r"it has [\d,]+ of [\d,]+ bytes"),
        (lambda b: b"", "no checkpoint header"),
        (lambda b: b[:50], "no checkpoint header"),
        (lambda b: bytes(len(b)), "no checkpoint header"),
        (lambda b: b[:2000] + bytes([b[2000] ^ 1]) + b[2001:], "checksum does not match"),
        (lambda b: b[:30] + (b"0" if b[30:31] == b"1" else b"1") + b[31:], "checksum does not"),
    ],
)
def test_damage_is_named_and_the_one_before_is_used(path, change, text):
    path.write_bytes(change(path.read_bytes()))
    match = rf"scan\.pt' is damaged: .*{text}.*scan\.previous\.pt' is used"
    with pytest.warns(UserWarning, match=match):
        assert epoch(checkpoint.load(path)) == 0


def test_no_cut_and_no_flipped_bit_passes(path):
    data, draw = path.read_bytes(), random.Random(0)
    header = data.index(b"\n") + 1
    bad = [data[:n] for n in (*range(header + 2), *range(header + 2, len(data), 97))]
    for k in range(400):  # half of them in the header, which is small
        at = draw.randrange(8 * (header if k % 2 else len(data)))
        bad.append(data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :])
    for damaged in bad:
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"scan\.pt' is damaged.*previous\.pt' is used"):
            assert epoch(checkpoint.load(path)) == 0


def test_both_damaged_names_both_and_says_what_to_do(path):
    before = checkpoint.previous(path)
    path.write_bytes(path.read_bytes()[:-5])
    before.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"scan\.pt' is damaged.*scan\.previous\.pt' is damaged.*remove both"
    ):
        checkpoint.load(path)
    before.unlink()
    with pytest.raises(ValueError, match=r"scan\.pt' is damaged.*No such file.*previous\.pt'"):
        checkpoint.load(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        checkpoint.load(path)


# ---------------------------------------------------------------- foreign files


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_loading_runs_no_code(path, monkeypatch, how):
    monkeypatch.chdir(path.parent)
    checkpoint.previous(path).unlink()
    if how == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=how == "torch")
    bare = path.read_bytes()
    with pytest.raises(ValueError, match=r"scan\.pt' is damaged"):
        checkpoint.load(path)
    path.write_bytes(signed(bare))
    with pytest.raises(ValueError, match=r"(?s)scan\.pt' was not written by dcl.*was not run") as e:
        checkpoint.load(path)
    assert "weights_only" not in str(e.value)  # no advice to run it after all
    checkpoint.claim(path.parent, Config(), "abc")
    checkpoint.save(path, state(3))
    assert not (path.parent / "owned").exists()
    assert epoch(checkpoint.load(path)) == 3


def test_a_signed_file_with_code_stops_the_run_although_there_is_one_before(path, monkeypatch):
    """Damage has no right checksum: somebody made this one, and should be noticed."""
    monkeypatch.chdir(path.parent)
    torch.save({"a": Evil()}, path)
    path.write_bytes(signed(path.read_bytes()))
    with pytest.raises(ValueError, match="was not written by dcl"):
        checkpoint.load(path)
    assert not (path.parent / "owned").exists()


@pytest.mark.parametrize("name", ["pretext", "scan.pt", "log.jsonl", ".lock", ".pid"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (run / name).symlink_to(outside / "new")
    (run / "inside").symlink_to(run / "config.json")
    with pytest.raises(ValueError, match=rf"{name}' is a link to .*new', which is outside"):
        checkpoint.claim(run, Config(), "abc")
    assert not list(outside.iterdir())
    (run / name).unlink()
    checkpoint.claim(run, Config(), "abc")


@pytest.mark.parametrize("name", ["run", "run/pretext"])
def test_a_folder_may_be_a_link_to_another_disk(tmp_path, name):
    scratch, run = tmp_path / "scratch", tmp_path / name
    run.parent.mkdir(exist_ok=True)
    run.symlink_to(scratch)
    with pytest.raises(ValueError, match=f"run_dir must be a folder .*; '{run}' is not but a link"):
        checkpoint.claim(run, Config(), "abc")
    scratch.mkdir()
    with checkpoint.lock(tmp_path / "run"):
        checkpoint.claim(run, Config(), "abc")
    assert run.is_symlink() and (scratch / "config.json").exists()
    with pytest.raises(ValueError, match="holds a run with other parameters"):
        checkpoint.claim(scratch, Config(), "def")


def test_links_in_the_place_of_files_are_replaced_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    path = tmp_path / "run" / "scan.pt"
    path.parent.mkdir()
    for link in (path, checkpoint.previous(path), path.parent / f".scan.pt.{os.getpid()}.partial"):
        link.symlink_to(outside)
    checkpoint.save(path, state(0))
    assert outside.read_bytes() == b"mine"
    assert epoch(checkpoint.load(path)) == 0 and not path.is_symlink()


# ---------------------------------------------------------------- one writer

HOLD = """
import sys, time
from dcl.runtime import checkpoint
with checkpoint.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    run = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        for enter in (lambda: checkpoint.lock(run).__enter__(),
                      lambda: checkpoint.claim(run, Config(), "abc")):  # fmt: skip
            with pytest.raises(RuntimeError, match=rf"run' is in use .* \({other.pid}\)"):
                enter()
        assert not (run / "config.json").exists()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with checkpoint.lock(run), checkpoint.lock(str(run)):  # again, inside itself
        checkpoint.claim(run, Config(), "abc")
    assert json.loads((run / "config.json").read_text())["data"] == {"checksum": "abc"}


def test_the_lock_is_held_until_the_outermost_block_ends(tmp_path):
    ask = "import sys, filelock; filelock.FileLock(sys.argv[1], timeout=0).acquire()"
    command = [sys.executable, "-c", ask, tmp_path / ".lock"]
    with pytest.raises(KeyError), checkpoint.lock(tmp_path):
        with checkpoint.lock(tmp_path):
            pass
        assert subprocess.run(command, capture_output=True).returncode
        raise KeyError
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_under_torchrun_the_first_process_locks_and_writes_the_others_compare(
    tmp_path, monkeypatch
):
    with checkpoint.lock(tmp_path):
        checkpoint.claim(tmp_path, Config(), "abc")
    monkeypatch.setattr(dist, "rank", lambda: 1)
    checkpoint.claim(tmp_path / "new", Config(), "abc")
    assert not (tmp_path / "new").exists()
    checkpoint.claim(tmp_path, Config(), "abc")
    with pytest.raises(ValueError, match="checksum: there 'abc', now 'abd'"):
        checkpoint.claim(tmp_path, Config(), "abd")


# ---------------------------------------------------------------- random state


def draws():
    return [torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(),
            np.random.randn()]  # fmt: skip


class Noisy(Objective):
    """Its forward pass draws from every generator, as an encoder from outside may."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x, i):
        noise = random.random() + np.random.randn() + torch.rand(())
        return {"loss": (x.mean() + noise - self.w).square()}


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_run_that_draws_from_every_generator_goes_on_to_the_bit(tmp_path, stop):
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    config = TrainConfig(epochs=4, batch_size=4, lr=0.01)

    def interrupt(stage, epoch, objective, losses):
        if epoch == stop:
            raise KeyboardInterrupt

    def run(seed, **options):
        for generator in (torch.manual_seed, random.seed, np.random.seed):
            generator(seed)
        objective = Noisy()
        history = train(objective, images, config, **options)
        return objective.w.item(), [row["loss"] for row in history], draws()

    whole = run(0)
    with pytest.raises(KeyboardInterrupt):
        run(0, run_dir=tmp_path, monitor=interrupt)
    assert run(99, run_dir=tmp_path) == whole


def test_a_file_never_takes_the_place_of_a_pipe_or_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        OSError, match="could not write 1 bytes to .*pipe': it exists and is not a file"
    ):
        write_atomic(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo() and [*tmp_path.iterdir()] == [tmp_path / "pipe"]
