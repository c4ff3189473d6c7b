"""Sets larger than memory: the file holds what memory would, is found again, and never half."""

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcl.data import folder, load, memmap
from dcl.train import batches

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")
N = 150  # several blocks


@pytest.fixture
def photos(tmp_path):
    """Files 000 ... 149, every tenth unreadable; the others are of one colour, their number."""
    top = tmp_path / "photos"
    top.mkdir()
    for k in range(N):
        if k % 10 == 9:
            (top / f"{k:03d}.png").write_text("damaged")
        else:
            Image.new("RGB", (6, 4), (k, 0, 255 - k)).save(top / f"{k:03d}.png")
    (top / "empty.png").write_bytes(b"")
    return top


def read(photos, **options):
    """The set by way of the cache, in `root` beside it."""
    options = {"size": 4, "cache_bytes": 1000, "root": photos.parent / "root"} | options
    return load(f"folder:{photos}", **options)


def kept(photos):
    return sorted(p.name for p in (photos.parent / "root" / "cache").iterdir())


def data_file(photos):
    (path,) = (photos.parent / "root" / "cache").glob("*.images")
    return path


@pytest.fixture
def undecodable(monkeypatch):
    """After `undecodable()` every attempt to decode is an error."""

    def forbid():
        monkeypatch.setattr(folder, "decode", lambda *_: pytest.fail("decoded again"))

    return forbid


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and (a.files, a.skipped, a.classes) == (b.files, b.skipped, b.classes)
        and a.checksum == b.checksum  # of images and labels
    )


def test_the_file_holds_what_memory_would(photos, undecodable):
    plain = read(photos, cache_bytes=None)
    assert not (photos.parent / "root").exists()  # small sets leave nothing behind
    first = read(photos)
    assert first.images.shape == (135, 3, 4, 4) and first.images.dtype == torch.uint8
    assert first.images[:, 0, 1, 2].tolist() == [k for k in range(N) if k % 10 != 9]
    assert len(first.skipped) == 16 and first.skipped[-1] == ("empty.png", "empty file")
    assert same(first, plain)
    assert data_file(photos).stat().st_size == 135 * 48
    undecodable()
    assert same(read(photos), plain)
    part = read(photos).subset(20)
    assert part.images[:, 0, 0, 0].tolist() == [int(file[:3]) for file in part.files]


def test_labels_and_splits_come_back_too(tmp_path, undecodable):
    top = tmp_path / "photos"
    for split in ("train", "test"):
        for name in ("b", "a"):
            (top / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (len(split), 0, 0)).save(top / split / name / "1.png")
    (top / "test/a/0.png").write_text("damaged")
    first = read(top, split="train+test", cache_bytes=1)
    undecodable()
    again = read(top, split="train+test", cache_bytes=1)
    assert same(again, first) and again.labels.tolist() == [0, 1, 0, 1]
    assert again.images[:, 0, 0, 0].tolist() == [5, 5, 4, 4]
    assert [file for file, _ in again.skipped] == ["test/a/0.png"]


def test_the_budget_decides(photos, monkeypatch):
    pixels = N * 48  # what all would take, could all be read; the empty one is known not to
    root = photos.parent / "root"
    read(photos, cache_bytes=pixels)
    monkeypatch.setenv("DCL_CACHE_BYTES", str(pixels))
    read(photos, cache_bytes=None)
    monkeypatch.setenv("DCL_CACHE_BYTES", str(pixels - 1))
    read(photos, cache_bytes=pixels)  # the argument comes first
    assert not root.exists()
    read(photos, cache_bytes=None)
    assert data_file(photos)
    for text in ("1e9", "-1", "1 GB"):
        monkeypatch.setenv("DCL_CACHE_BYTES", text)
        with pytest.raises(ValueError, match=f"DCL_CACHE_BYTES must be a whole .*got '{text}'"):
            read(photos, cache_bytes=None)
    with pytest.raises(ValueError, match="cache_bytes must be a whole number.*got -1"):
        read(photos, cache_bytes=-1)
    monkeypatch.setenv("DCL_CACHE_BYTES", "")
    assert memmap.budget() == 2**30 and memmap.budget(0) == 0


def add(path, content):
    path.write_bytes(path.read_bytes() + content)


@pytest.mark.parametrize(
    "change",
    [
        lambda photos: os.utime(photos / "000.png", (1, 1)),
        lambda photos: add(photos / "000.png", b"x"),
        lambda photos: (photos / "000.png").rename(photos / "zzz.png"),
        lambda photos: (photos / "000.png").unlink(),
        lambda photos: Image.new("RGB", (4, 4), (7, 7, 7)).save(photos / "001a.png"),
        lambda photos: (photos / "009.png").write_bytes((photos / "008.png").read_bytes()),
    ],
)
def test_what_changed_is_decoded_again(photos, change):
    read(photos)
    change(photos)
    assert same(read(photos), read(photos, cache_bytes=None))
    assert len([name for name in kept(photos) if name.endswith(".images")]) == 2


def test_size_and_version_belong_to_the_key(photos, monkeypatch):
    for size, shape in ((4, (4, 4)), (8, (8, 8)), (None, (4, 6))):
        assert read(photos, size=size).images.shape[2:] == shape
    monkeypatch.setattr(memmap, "VERSION", memmap.VERSION + 1)
    read(photos)
    assert len([name for name in kept(photos) if name.endswith(".images")]) == 4


def flip(path):
    content = bytearray(path.read_bytes())
    content[3000] ^= 4
    path.write_bytes(content)


def notes(text):
    return lambda path: path.with_suffix(".json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 135 * 48 - 1),
        flip,
        notes(""),
        notes("[]"),
        notes("{}"),
        notes('{"shape": [1, 3, 4, 4], "crc32": 0, "reasons": {}}'),
        notes('{"shape": "x", "crc32": 0, "reasons": {"a": ""}}'),
        lambda path: path.with_suffix(".json").unlink(),  # stopped between the two renames
    ],
)
def test_damage_is_recognised_and_repaired(photos, damage, recwarn):
    expected = read(photos).images.clone()
    damage(data_file(photos))
    whole = data_file(photos).with_suffix(".json").exists()
    assert torch.equal(read(photos).images, expected)
    said = {str(w.message).partition(" is ")[2] for w in recwarn.list}
    assert said == ({"damaged: the images are decoded again"} if whole else set())
    recwarn.clear()
    assert torch.equal(read(photos).images, expected) and not recwarn.list  # repaired


def test_nothing_writes_through(photos):
    data = read(photos)
    before = data_file(photos).read_bytes()
    data.images.zero_()
    assert not data.images.any() and data_file(photos).read_bytes() == before
    assert read(photos).images.any()


class Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.room -= memoryview(content).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(content)


@pytest.mark.parametrize("room", [0, 4000])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(photos, room, monkeypatch):
    real = type(photos).open

    def opened(path, *mode, **options):
        file = real(path, *mode, **options)
        return Full(file, room) if str(path).endswith("images.partial") else file

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(type(photos), "open", opened)
        with pytest.raises(OSError, match="0.0 MiB, cannot be kept in .*No space left.*DCL_DATA"):
            read(photos)
    assert kept(photos) in ([], ["lock"])
    assert threading.active_count() == before  # the decoders have gone home
    assert len(read(photos)) == 135


def test_a_place_without_room_is_told_before_any_work(photos, undecodable, monkeypatch):
    undecodable()
    with monkeypatch.context() as patch:
        patch.setattr(memmap.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 7199}))
        with pytest.raises(OSError, match="only 0.0 MiB are free") as caught:
            read(photos)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="cannot be kept in .*root=, or raise cache_bytes"):
        read(photos, root=photos / "000.png")


def test_errors_of_the_images_leave_nothing(photos):
    Image.new("RGB", (9, 9)).save(photos / "148.png")
    with pytest.raises(ValueError, match="size must be given.*000.png is 6x4, 148.png is 9x9"):
        read(photos, size=None)
    for path in photos.iterdir():
        path.write_text("damaged")
    with pytest.raises(ValueError, match="none of its 151 files can .000.png: not an image"):
        read(photos)
    assert kept(photos) in ([], ["lock"])


def test_what_a_killed_process_left_is_removed(photos):
    place = photos.parent / "root" / "cache"
    place.mkdir(parents=True)
    (place / "0123.images.partial").write_bytes(b"half")
    read(photos)
    assert not list(place.glob("*.partial"))


def count_decoding(photos, seen):
    real = folder.decode

    def decode(path, size, scale):
        with seen.get_lock():
            seen.value += 1
        return real(path, size, scale)

    folder.decode = decode
    assert len(read(photos)) == 135


def test_two_processes_decode_once(photos):
    context = multiprocessing.get_context("fork")
    seen = context.Value("i", 0)
    both = [context.Process(target=count_decoding, args=(photos, seen)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0] and seen.value == N


@linux
def test_files_longer_than_memory_can_be_mapped(tmp_path):
    """Four times memory and swap, all hole: np.memmap's mode "c" is refused this on Linux."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = [int(x.split()[1]) for x in lines if x.startswith(("MemTotal", "SwapTotal"))]
    total = 1024 * sum(kilobytes)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(4 * total)
    array = memmap._mapped(tmp_path / "long")
    assert len(array) == 4 * total and array[-1] == 0
    array[-1] = 1
    assert array[-1] == 1 and memmap._mapped(tmp_path / "long")[-1] == 0


@linux
def test_reading_costs_no_memory_of_its_own(tmp_path):
    """64 MiB of images: what the process owns grows by a few MiB, whatever it reads."""
    part = np.arange(64 * 3 * 64 * 64, dtype=np.uint32).astype(np.uint8).reshape(64, 3, 64, 64)
    blocks = ((part + np.uint8(k), {}) for k in range(84))
    images, _ = memmap.stored(tmp_path, "big", 84 * part.nbytes, (3, 64, 64), blocks)
    assert torch.equal(images[64 * 7 : 64 * 8], torch.from_numpy(part + np.uint8(7)))
    code = (
        "import sys, numpy, torch; from pathlib import Path; from dcl.data import memmap\n"
        "def own():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return sum(int(l.split()[1]) for l in lines if l.startswith(('RssAnon', 'VmSwap')))\n"
        "torch.zeros(2**20, dtype=torch.uint8).sum(); before = own()\n"
        "images, _ = memmap.stored(Path(sys.argv[1]), 'big', 0, (3, 64, 64), iter(()))\n"
        "most = max(x.numpy().max() for x in images.split(64)); print(own() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50 * 1024


@linux
def test_what_was_read_is_given_back_unless_somebody_wrote(tmp_path):
    def resident(address):
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = next(k for k, line in enumerate(lines) if line.startswith(f"{address:x}-"))
        return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])

    (tmp_path / "images").write_bytes(bytes(range(256)) * 2**15)  # 8 MiB
    images = torch.from_numpy(memmap._mapped(tmp_path / "images")).view(-1, 1, 64, 64)
    total = int(images.sum(dtype=torch.int64))
    assert resident(images.data_ptr()) == 2**13
    memmap.forget(images)
    assert resident(images.data_ptr()) == 0
    assert int(images.sum(dtype=torch.int64)) == total
    images[3] = 7
    memmap.forget(images)
    assert (images[3] == 7).all() and resident(images.data_ptr()) > 0
    memmap.forget(torch.zeros(3))
    memmap.forget([1, 2])


def test_a_pass_over_the_images_gives_them_back(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("dcl.train.forget", calls.append)
    images = torch.zeros(3000, 3, 100, 100, dtype=torch.uint8)  # 90 MB
    assert sum(len(x) for x, _ in batches(images, torch.arange(3000), 300)) == 3000
    assert len(calls) == 2 and calls[0] is images  # at the start, and after 72 MB
