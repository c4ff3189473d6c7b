"""100,000 images of 64 px in a folder: decoded, opened again, trained on; time and memory.

2,000 different JPEGs (smooth colours with noise, quality 75), each under 50 names by hard links:
the decoder's work is that of 100,000 files, the disk's is not. The two loads run in processes of
their own, whose resident memory is measured from their start to their end: `peak` is what the
system reports (ru_maxrss), `own` the part that belongs to the process alone, `file` the part that
mirrors the file of decoded images and that the system takes back when it needs room.
"""

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import WALL, Claim, Outcome, progress, rows

DIFFERENT, NAMES, SIDE = 2000, 50, 64
LIMIT = 2.0  # GB of the process's own; what mirrors the file goes when others need the room


def photographs(folder: Path) -> None:
    """Write the JPEGs: `NAMES` folders with `DIFFERENT` files each."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in range(NAMES):
        (folder / f"{name:02d}").mkdir(parents=True)
    for k in range(DIFFERENT):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE)), np.int16)
        pixels = (smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        first = folder / "00" / f"{k:04d}.jpg"
        Image.fromarray(pixels).save(first, quality=75)
        for name in range(1, NAMES):
            os.link(first, folder / f"{name:02d}" / first.name)


def status(field: str) -> float:
    """A field of /proc/self/status in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e9


def measured(folder: Path, root: Path, train: bool) -> dict[str, float]:
    """Load the folder, and train on it if asked; seconds, and GB of memory at the most."""
    most = {"own": 0.0, "file": 0.0}
    done = threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            ended = done.wait(0.05)
            for name, field in (("own", "RssAnon"), ("file", "RssFile")):
                most[name] = max(most[name], status(field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    from dcl.data import load

    start = time.perf_counter()
    data = load(f"folder:{folder}", size=SIDE, root=root)
    found = {"images": len(data), "load, s": time.perf_counter() - start}
    if train:
        start = time.perf_counter()
        one_epoch(data.images)
        found["epoch, s"] = time.perf_counter() - start
    done.set()
    watcher.join()
    found |= {f"{name}, GB": value for name, value in most.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["peak, GB"] = peak * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {name: round(value, 3) for name, value in found.items()}


def one_epoch(images) -> None:
    """SimCLR with a small network on crops of 32 px, then the embeddings of all images."""
    from dataclasses import replace

    from dcl.methods import simclr
    from dcl.recipes import recipe
    from dcl.train import extract
    from dcl.views import View

    smoke = recipe("simclr", "smoke")
    view = View(size=32, scale=(0.2, 1.0), flip=0.5)
    batch = min(256, len(images))
    config = replace(smoke, view=view, train=replace(smoke.train, epochs=1, batch_size=batch))
    objective = simclr.fit(images, config)
    assert len(extract(objective.encoder, images)) == len(images)


def child(*arguments: str) -> dict[str, float]:
    """`measured` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def decode_all(files: list[Path]) -> int:
    """Decode some files."""
    from dcl.data.folder import decode

    return sum(len(decode(file, SIDE)) for file in files)


def pools(files: list[Path], rounds: int) -> dict[str, list[float]]:
    """Milliseconds for all files by pools of two workers, which take turns."""
    blocks = [files[k : k + 64] for k in range(0, len(files), 64)]
    times: dict[str, list[float]] = {}
    spawn = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(2) as two,
        ProcessPoolExecutor(2, mp_context=spawn) as processes,
    ):
        named: dict[str, Executor] = {"1 thread": one, "2 threads": two, "2 processes": processes}
        for pool in named.values():
            list(pool.map(decode_all, blocks))  # start them and import
        for _ in range(rounds):
            for name, pool in named.items():
                start = time.perf_counter()
                list(pool.map(decode_all, blocks))
                passed = (time.perf_counter() - start) * 1e3
                times.setdefault(name, []).append(passed)
    return times


def run(rounds: int) -> Outcome:
    """Measure both loads, and the decoding by threads and processes beside each other."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, root = Path(temporary, "photographs"), Path(temporary, "root")
        photographs(folder)
        times = pools(sorted((folder / "00").iterdir()), rounds)
        progress("first load")
        first = child(str(folder), str(root), "load")
        progress("second load, and an epoch: minutes")
        second = child(str(folder), str(root), "train")
    found = {"first load, decodes": first, "second load, opens, and an epoch": second}
    claims = []
    for name, values in found.items():
        for text, value in values.items():
            bound = LIMIT if text == "own, GB" else None
            claims.append(Claim(text, value, bound, group=name))
    rate = round(first["images"] / first["load, s"])
    claims.append(Claim("decoded and stored, images/s", rate, group="first load, decodes"))
    settings: dict[str, object] = {"files": [NAMES, DIFFERENT], "side": SIDE, "rounds": rounds}
    work = f"decode {DIFFERENT:,} images of {SIDE} px"
    return Outcome(rows(times, work), claims, settings, [], WALL)


if __name__ == "__main__":
    os.environ["DCL_CACHE_BYTES"] = "0"  # decided here, whatever the shell says
    print(json.dumps(measured(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "train")))
