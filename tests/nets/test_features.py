import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dcl.data import memmap
from dcl.nets import convnets
from dcl.nets.features import features, fingerprint
from dcl.nets.pretrained import Pretrained, SideBySide, architecture
from dcl.train import seeded


class Counting(nn.Module):
    """Mean colour and one learned number; counts the images that it has seen."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.norm = nn.BatchNorm1d(3)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.norm(x.mean((2, 3)) + self.shift)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def images(n=10, seed=0):
    with seeded(seed):
        return torch.randint(256, (n, 3, 16, 16)).to(torch.uint8)


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # what an earlier test of this process left open is closed at a time nobody chooses
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def test_values_by_hand(quiet):
    net, x = Counting(0.5), images()
    z = features(net, x, batch_size=3)
    expected = (x.double().mean((2, 3)) / 255 + 0.5) / (1 + 1e-5) ** 0.5  # BatchNorm in eval mode
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-6)
    assert z.dtype == torch.float32 and z.device.type == "cpu" and net.training
    assert not z.requires_grad


def test_a_second_call_reads(quiet, tmp_path):
    net = Counting()
    first = features(net, images(), cache=tmp_path / "new")
    assert net.seen == 10
    assert torch.equal(features(net, images(), cache=tmp_path / "new"), first)
    again = Counting()  # another object of the same content
    assert torch.equal(features(again, images(), cache=tmp_path / "new", batch_size=1), first)
    assert (net.seen, again.seen) == (10, 0)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_any_other_content_is_computed(quiet, tmp_path):
    features(Counting(), images(), cache=tmp_path)
    one = images()
    one[9, 2, 15, 15] ^= 1
    moved = Counting()
    moved.norm.running_mean[1] += 1
    for net, x in ((Counting(), one), (Counting(1e-7), images()), (moved, images())):
        z = features(net, x, cache=tmp_path)
        assert net.seen == len(x)
        assert torch.equal(z, features(net, x))
    assert len(list(tmp_path.iterdir())) == 4


def test_structure_counts_and_not_only_weights():
    def net(stride):
        with seeded(0):
            return nn.Sequential(nn.Conv2d(3, 4, 3, stride), nn.Flatten())

    assert fingerprint(net(1)) == fingerprint(net(1)) != fingerprint(net(2))
    linear = nn.Linear(3, 3)
    other = nn.Linear(3, 3)
    other.load_state_dict(linear.state_dict())
    assert fingerprint(linear) == fingerprint(other)
    assert fingerprint(linear) != fingerprint(other.double())

    class Named(nn.Linear):
        pass

    other = Named(3, 3)
    other.load_state_dict(linear.state_dict())
    assert fingerprint(linear) != fingerprint(other)
    half = convnets.small_cnn(1, 8).to(torch.bfloat16)  # a dtype that numpy does not have
    assert len(fingerprint(half)) == 16


def damage(data: bytes, how: str) -> bytes:
    if how == "truncated":
        return data[: len(data) // 2]
    if how == "empty":
        return b""
    at = 9 if how == "header" else len(data) - 30
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize("how", ["truncated", "empty", "header", "bit"])
def test_a_damaged_file_is_computed_again(tmp_path, how):
    net = Counting()
    z = features(net, images(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole, how))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged and is computed again"):
        assert torch.equal(features(net, images(), cache=tmp_path), z)
    assert net.seen == 20 and file.read_bytes() == whole


def test_a_file_of_another_length_is_computed_again(tmp_path):
    features(Counting(), images(12), cache=tmp_path)
    (long,) = tmp_path.iterdir()
    content = long.read_bytes()
    long.unlink()
    z = features(Counting(), images(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="12 rows"):
        assert torch.equal(features(Counting(), images(), cache=tmp_path), z)


def test_a_folder_that_can_not_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="features are not kept"):
        z = features(Counting(), images(), cache=tmp_path / "file" / "below")
    assert z.shape == (10, 3)


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    net = Counting()
    features(net, images(), cache=tmp_path)
    z = features(net, images(), cache=tmp_path)
    kept = z.clone()
    (file,) = tmp_path.iterdir()
    with open(file, "r+b") as f:
        f.write(bytes(file.stat().st_size))
    assert torch.equal(z, kept)


def test_a_set_larger_than_memory_streams(tmp_path):
    """64 MB of images in a mapped file: what is resident beside the file grows by a few blocks."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc: the resident memory cannot be read")

    def resident():
        return int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1]) / 1024

    class Watching(Counting):
        most = 0

        def forward(self, x):
            self.most = max(self.most, resident())
            return super().forward(x)

    n, shape = 1365, (3, 128, 128)
    block = np.full((5, *shape), 7, np.uint8)
    blocks = ((block, {}) for _ in range(n // 5))
    images, _ = memmap.stored(tmp_path, "k", n * block[0].size, shape, blocks)
    net, before = Watching(), resident()
    z = features(net, images, cache=tmp_path, batch_size=8)
    assert len(z) == n and net.most - before < 16, net.most - before


def test_a_folders_precision_and_parts_have_their_own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DCL_DATA", str(tmp_path))
    small, large = architecture("resnet18", 32), architecture("resnet18", 64)
    both = features(SideBySide([small, large]), images())
    kept = tmp_path / "features"
    assert both.shape == (10, 1024) and len(list(kept.iterdir())) == 2
    monkeypatch.setattr(Pretrained, "forward", lambda self, x: pytest.fail("computed again"))
    assert torch.equal(features(large, images(), cache=tmp_path / "x"), both[:, 512:])
    monkeypatch.undo()
    monkeypatch.setenv("DCL_DATA", str(tmp_path))
    large.precision = "bfloat16"
    rough = features(large, images())
    assert len(list(kept.iterdir())) == 3 and not torch.equal(rough, both[:, 512:])
    torch.testing.assert_close(rough, both[:, 512:], rtol=0.1, atol=0.1)


def test_what_half_precision_cannot_hold_is_computed_in_full():
    net = architecture("resnet18", 32)
    net.precision = "float16"
    net.network.fc = Times(1e6)
    x = images().float() / 255
    with torch.no_grad():
        assert torch.isfinite(net(x)).all() and net(x).max() > 65504
        net.precision = "float32"
        exact = net(x)
    assert torch.isfinite(exact).all()


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="uint8"):
        features(Counting(), images().float())
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        features(Counting(), images(), batch_size=0)
    with pytest.raises(ValueError, match=r"features \(10, D\); got \(10, 3, 16, 16\)"):
        features(nn.Identity(), images())
    net = Counting(float("nan"))
    with pytest.raises(ValueError, match="for 10 images, the first is row 0"):
        features(net, images(), cache=tmp_path)
    assert not list(tmp_path.iterdir())
