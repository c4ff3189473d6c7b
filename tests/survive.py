"""Kill runs, damage what they wrote, hand them bad files: nothing is lost, nothing is run.

python tests/survive.py [--kills 30] [--flips 200] [--seed 0] [--json FILE]

Every trial runs in a process of its own, forked from this one before torch has started a thread.
"""

import argparse
import ctypes
import importlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork takes no threads along

import torch

from dcl import checkpoint
from dcl import train as loop
from dcl.data import load
from dcl.optim import with_epochs
from dcl.train import predict

METHODS = ("deepcluster", "lsdc", "swav", "scan")
SLOW_TO_IMPORT = ("torch._dynamo", "torch.utils.serialization.config")
for name in (*SLOW_TO_IMPORT, *(f"dcl.methods.{stem}" for stem in METHODS)):
    importlib.import_module(name)  # once, here, and not in every copy of this process
EPOCHS = 4
POINTS = ("half written", "written", "between the names", "renamed")
IMAGES = load("digits").subset(300).images


def recipe(stem):
    """The smoke profile, four epochs a stage; of SCAN the form with a moving average."""
    smoke = with_epochs(importlib.import_module(f"dcl.methods.{stem}").PROFILES["smoke"], EPOCHS)
    return replace(smoke, ema="teacher", threshold=0.3) if stem == "scan" else smoke


# ---------------------------------------------------------------- processes


def fork(function, *arguments):
    """Start `function(*arguments)` in a copy of this process; returns the copy's number."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid):
    """How the copy ended: 0, its error code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(function, *arguments):
    """What a copy of this process says of `function(*arguments)`: "ok", or the error."""
    read, write = os.pipe()

    def tell():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(*arguments)
                text = "ok"
            except Exception as e:
                text = f"{type(e).__name__}: {e}"
        os.write(write, text.encode()[:4000])

    pid = fork(tell)
    os.close(write)
    with open(read, "rb") as f:
        text = f.read().decode()
    code = ended(pid)
    return text if code == 0 else f"{text} (ended with {code})"


def fit(stem, run, out, aim=None):
    """Train in `run`, going on from what is there; writes weights and clusters to `out`.

    `<run>/journal` tells what was saved and where each stage began, one line each.
    """
    if aim:
        aim_at(*aim)
    journal = os.open(run.with_suffix(".journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    resume, save = loop._resume, checkpoint.save

    def noted_resume(path, *rest):
        history = resume(path, *rest)
        os.write(journal, f"begin {path.relative_to(run)} {len(history)}\n".encode())
        return history

    def noted_save(path, state):
        save(path, state)
        place, n = path.relative_to(run), len(state["history"])
        os.write(journal, f"saved {place} {n}\n".encode())

    loop._resume, checkpoint.save = noted_resume, noted_save
    method = importlib.import_module(f"dcl.methods.{stem}")
    objective = method.fit(IMAGES, recipe(stem), run_dir=run)
    save(out, {"weights": objective.state_dict(), "clusters": predict(objective, IMAGES)})


def aim_at(point, nth):
    """This process will kill itself at a point of its nth checkpoint."""
    write, count = checkpoint.write_atomic, itertools.count(1)
    fsync, rename = os.fsync, os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def deadly_fsync(handle):
        if point == "half written":
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)
        if point == "written":
            die()

    def deadly_rename(source, target):
        rename(source, target)
        first = ".previous" in Path(target).name
        if (point == "between the names") == first and point != "written":
            die()

    def armed_write(path, *parts, **more):
        if Path(path).suffix == ".pt" and next(count) == nth:
            os.replace = deadly_rename
            if point in ("half written", "written"):
                os.fsync = deadly_fsync
        write(path, *parts, **more)

    checkpoint.write_atomic = armed_write


def same(a, b):
    """Two results are equal to the bit."""
    keys = a["weights"].keys()
    return (
        keys == b["weights"].keys()
        and torch.equal(a["clusters"], b["clusters"])
        and all(
            torch.equal(x, y) if torch.is_tensor(x) else x == y
            for x, y in ((a["weights"][k], b["weights"][k]) for k in keys)
        )
    )


def row(name, tried, good, note=""):
    return {"what": name, "tried": tried, "good": good, "note": note}


# ---------------------------------------------------------------- uninterrupted


def references(root):
    """{method: (result of an uninterrupted run, its seconds)}; its folders stay in `root`."""
    found = {}
    for stem in METHODS:
        start = time.perf_counter()
        assert ended(fork(fit, stem, root / stem, root / f"{stem}.result")) == 0
        found[stem] = checkpoint.load(root / f"{stem}.result"), time.perf_counter() - start
    return found


# ---------------------------------------------------------------- kills


def progress(journal):
    """The last number of epochs saved of each stage, and the lines."""
    lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
    return {place: int(n) for word, place, n in lines if word == "saved"}, lines


def lost(lines):
    """Saved epochs that a later start did not find: there must be none."""
    saved, bad = Counter(), 0
    for word, place, n in lines:
        bad += max(0, saved[place] - int(n))
        saved[place] = max(saved[place], int(n)) if word == "saved" else saved[place]
    return bad


def kills(number, seed, root, whole):
    """Kill runs of the four methods in turn, up to three times each, until the plan is done.

    The plan: `number` kills at random moments, and a few at each point inside a write.
    """
    draw = random.Random(seed)
    plan = ["random"] * number + [*POINTS] * max(1, number // 10)
    draw.shuffle(plan)
    died, equal, epochs_lost, runs = Counter(), 0, 0, 0
    stages = {stem: len(progress(root / f"{stem}.journal")[0]) * EPOCHS for stem in METHODS}
    for trial, stem in enumerate(itertools.cycle(METHODS)):
        if not plan:
            break
        run, out = root / f"kill-{trial}", root / f"kill-{trial}.result"
        for attempt in range(100):
            aim = plan.pop() if plan and attempt < max(1, min(3, number // 4)) else None
            done = sum(progress(run.with_suffix(".journal"))[0].values())
            nth = draw.randint(1, max(1, stages[stem] - done))
            pid = fork(fit, stem, run, out, (aim, nth) if aim in POINTS else None)
            if aim == "random":
                time.sleep(draw.uniform(0, whole[stem][1] * (1 - done / stages[stem])))
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            if code == -signal.SIGKILL:
                died[aim] += 1
                continue
            if aim:  # it was faster than the kill, or never came to that point
                plan.insert(0, aim)
            if code:
                print(f"{stem}, trial {trial}: the run ended with {code}")
            break
        runs += 1
        equal += out.exists() and same(checkpoint.load(out), whole[stem][0])
        epochs_lost += lost(progress(run.with_suffix(".journal"))[1])
    n = sum(died.values())
    inside = ", ".join(f"{point} {died[point]}" for point in POINTS)
    return [
        row("kill -9, gone on from", n, n if equal == runs else 0,
            f"at random moments {died['random']}, inside a write: {inside}"),
        row("these runs equal to the bit", runs, equal, "weights and assignments"),
        row("saved epochs lost", epochs_lost, epochs_lost, "must be 0"),
    ]  # fmt: skip


# ---------------------------------------------------------------- damage


def damages(data, flips, draw):
    """(what, damaged bytes): cut at several lengths, longer, overwritten, single bits flipped."""
    n = len(data)
    header = data.index(b"\n") + 1
    for length in sorted({0, 1, header - 1, header, header + 1, n // 4, n // 2, n - 4096, n - 1}):
        yield f"cut to {length}", data[:length]
    yield "longer", data + b"\0"
    yield "zeros from the middle on", data[: n // 2] + bytes(n - n // 2)
    for k in range(flips):
        # a fifth of them in the header, which is small and would seldom be hit
        at = draw.randrange(8 * (header if k % 5 == 0 else n))
        byte = data[at // 8] ^ 1 << at % 8
        yield f"bit {at}", data[: at // 8] + bytes([byte]) + data[at // 8 + 1 :]


def epochs(path):
    return len(checkpoint.load(path)["history"])


def corruption(flips, seed, root, whole, every=True):
    """Damage each checkpoint of the uninterrupted runs: named, and the one before is used."""
    draw = random.Random(seed)
    tried, caught, both, refused, resumed, equal = 0, 0, 0, 0, 0, 0
    for stem in METHODS:
        files = sorted(p for p in (root / stem).rglob("*.pt") if ".previous" not in p.name)
        for file in files:
            data, before = file.read_bytes(), checkpoint.previous(file).read_bytes()
            for what, bad in damages(data, flips, draw):
                file.write_bytes(bad)
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    ok = epochs(file) == EPOCHS - 1
                ok &= any("is damaged" in str(w.message) and str(file) in str(w.message)
                          and str(checkpoint.previous(file)) in str(w.message)
                          for w in told)  # fmt: skip
                tried, caught = tried + 1, caught + ok
                if not ok:
                    print(f"{stem}/{file.name}, {what}: not caught")
            for _, bad in itertools.islice(damages(before, 4, draw), 0, None, 5):
                file.write_bytes(data[: len(data) // 3])
                checkpoint.previous(file).write_bytes(bad)
                try:
                    epochs(file)
                except ValueError as e:
                    names = str(file) in str(e) and str(checkpoint.previous(file)) in str(e)
                    refused += names and "remove both" in str(e)
                both += 1
            file.write_bytes(data)
            checkpoint.previous(file).write_bytes(before)
        for file in files if every else files[-1:]:  # and train on from the damaged folder
            for cut in (True, False) if every else (True,):
                run = root / f"damaged-{stem}-{file.stem}-{cut}"
                shutil.copytree(root / stem, run)
                mine = run / file.relative_to(root / stem)
                data = bytearray(mine.read_bytes())
                data[len(data) // 2] ^= 16
                mine.write_bytes(data[: len(data) // 2] if cut else data)
                out = root / f"{run.name}.result"
                text = outcome(fit, stem, run, out)
                resumed += 1
                equal += text == "ok" and same(checkpoint.load(out), whole[stem][0])
    return [
        row("damaged checkpoints recognised", tried, caught, "named, the one before used"),
        row("both damaged, refused", both, refused, "both named, what to do said"),
        row("gone on from damage, equal", resumed, equal, "to the bit"),
    ]


# ---------------------------------------------------------------- bad files


class Call:
    """Pickles as a call of `function`: unpickling it with code allowed would run it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark):
    """{what: bytes} that make the file `mark` when their code is run."""
    code = f"open({str(mark)!r}, 'w').close()"
    calls = {
        "os.system": Call(os.system, f"touch {mark}"),
        "exec": Call(exec, code),
        "eval": Call(eval, code),
        "mkdir": Call(os.mkdir, str(mark)),
        "Popen": Call(subprocess.Popen, ["touch", str(mark)]),
        "runpy": Call(importlib.import_module, "antigravity"),
        "torch.load": Call(torch.load, io.BytesIO(pickle.dumps(Call(exec, code)))),
    }
    found = {}
    for name, call in calls.items():
        state = {"objective": call, "optimizer": {}, "history": []}
        for form in ("zip", "old", "pickle"):
            if form != "pickle" and name == "torch.load":
                continue  # holds a stream, which only plain pickle takes
            buffer = io.BytesIO()
            try:
                if form == "pickle":
                    pickle.dump(state, buffer, protocol=2)
                else:
                    torch.save(state, buffer, _use_new_zipfile_serialization=form == "zip")
            except TypeError:
                continue
            found[f"{name}, {form}"] = buffer.getvalue()
    return found


def signed(payload):
    head = f"dcl checkpoint 1 sha256 {sha256(payload).hexdigest()} bytes {len(payload)}\n"
    return head.encode() + payload


def foreign():
    """{what: bytes} of files that are no checkpoint of this run, with right headers."""
    found = {}
    for name, value in {"a list": [1, 2], "a tensor": torch.ones(3), "no keys": {}}.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        found[name] = signed(buffer.getvalue())
    found["nothing"] = signed(b"")
    found["text"] = signed(b"hello")
    return found


def security(root, every=True):
    """Bad files in a run folder: an error that names them, no code run, nothing written outside."""
    good, tried, wrong = root / "swav", Counter(), []
    mark, outside = root / "mark", root / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")

    def attempt(kind, what, change, *expected):
        run = root / f"bad-{sum(tried.values())}"
        shutil.copytree(good, run)
        change(run)
        text = outcome(fit, "swav", run, root / "bad.result")
        tried[kind] += 1
        clean = not mark.exists() and [p.name for p in outside.iterdir()] == ["mine"]
        if not clean or text == "ok" or not all(e in text for e in expected):
            wrong.append(kind)
            print(f"{kind}, {what}: {text}{'' if clean else ', and something was written'}")
        shutil.rmtree(run)

    def only(name, data):
        def change(run):
            (run / "train.previous.pt").unlink()
            (run / name).write_bytes(data)
            if name != "train.pt":
                (run / "train.pt").unlink()

        return change

    for what, data in itertools.islice(payloads(mark).items(), 0, None, 1 if every else 6):
        for name in ("train.pt", "train.previous.pt"):
            attempt("pickle", f"{what} as {name}", only(name, data), name, "is damaged")
            attempt("pickle, signed", f"{what} as {name}", only(name, signed(data)), name, "code")
        attempt("configuration", what, lambda run, data=data: (run / "config.json").write_bytes(
            data), "config.json", "is damaged")  # fmt: skip
    for what, data in foreign().items():
        attempt("foreign", what, only("train.pt", data))
    attempt("foreign", "of another method", lambda run: shutil.copy(
        root / "deepcluster" / "train.pt", run / "train.pt"))  # fmt: skip
    for what in (b"", b"{}", b"[" * 10**5, b"\xff", b'{"config": [], "data": {}}'):
        attempt("configuration", repr(what[:30]), lambda run, what=what: (
            run / "config.json").write_bytes(what), "config.json", "is damaged")  # fmt: skip
    for name in ("pretext", "log.jsonl", "train.pt", ".lock", ".pid", f".x.{os.getpid()}.partial"):

        def link(run, name=name):
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(outside / "new")

        attempt("link out of the folder", name, link, name, "is a link to")
    for stage in ("../out", str(root / "out"), "a/b", ".."):
        tried["stage name"] += 1
        try:
            checkpoint.place(root, stage)
            wrong.append("stage name")
        except ValueError:
            pass
    n = sum(tried.values())
    return [
        row("bad files and names refused", n, n - len(wrong),
            ", ".join(f"{kind} {k}" for kind, k in tried.items()) + "; no code run"),
        two_writers(root),
    ]  # fmt: skip


def two_writers(root):
    """A second writer is refused by the first one's number; killed, the first leaves no lock."""
    run = root / "locked"
    read, write = os.pipe()

    def hold():
        with checkpoint.lock(run):
            os.write(write, b"x")
            time.sleep(60)

    def enter():
        with checkpoint.lock(run):
            pass

    pid = fork(hold)
    os.read(read, 1)
    refused = [outcome(enter), outcome(fit, "swav", run, root / "locked.result")]
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    good = sum(f"locked' is being written by another process ({pid})" in text for text in refused)
    return row("second writers refused", 3, good + (outcome(enter) == "ok"),
               "the process is named; after its kill -9 the lock is free")  # fmt: skip


# ---------------------------------------------------------------- a full disk


def on_a_small_disk(folder, size):
    """Mount a disk of `size` bytes on `folder`, seen by this process alone."""
    system = ctypes.CDLL(None, use_errno=True)
    spaces = 0x00020000 | (0 if os.getuid() == 0 else 0x10000000)  # mounts, and users
    who = f"0 {os.getuid()} 1"
    if system.unshare(spaces):
        return False
    if spaces & 0x10000000:
        Path("/proc/self/uid_map").write_text(who)
    commands = (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)],
    )
    return all(subprocess.run(c, capture_output=True).returncode == 0 for c in commands)


def full_disk(root, whole):
    """A disk that fills up: the error says what and where, the earlier checkpoints are whole."""
    folder = root / "disk"
    run, out = folder / "run", root / "disk.result"
    size = (root / "swav" / "train.pt").stat().st_size
    folder.mkdir()

    def try_it(free):
        try:
            fit("swav", run, out)
        except OSError as e:
            text = str(e)
        else:
            raise AssertionError("the disk did not fill up")
        assert "could not write" in text and str(run / "train.pt") in text, text
        assert not list(run.glob(".*.partial"))
        assert epochs(run / "train.pt") == 2 and epochs(run / "train.previous.pt") == 1
        free()
        loop._resume, checkpoint.save = fresh
        fit("swav", run, out)

    fresh = loop._resume, checkpoint.save

    def small():
        # two checkpoints fit, the third does not any more beside them
        if not on_a_small_disk(folder, int(2.6 * size)):
            raise ResourceWarning("no disk can be mounted here")
        grow = ["mount", "-o", f"remount,size={10 * size}", str(folder)]
        try_it(lambda: subprocess.run(grow, check=True))

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        save = checkpoint.save

        def limit(n):
            resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))

        def two_only(path, state):
            limit(size // 2 if len(state["history"]) == 3 else resource.RLIM_INFINITY)
            save(path, state)

        checkpoint.save = two_only
        try_it(lambda: limit(resource.RLIM_INFINITY))

    good, notes, tried = 0, [], 0
    for name, function in (("a disk of its own", small), ("a limit on the file", limited)):
        shutil.rmtree(run, ignore_errors=True)
        run.with_suffix(".journal").unlink(missing_ok=True)
        out.unlink(missing_ok=True)
        text = outcome(function)
        if text.startswith("ResourceWarning"):
            notes.append(text.removeprefix("ResourceWarning: "))
            continue
        tried += 1
        ok = text == "ok" and same(checkpoint.load(out), whole["swav"][0])
        good += ok
        notes.append(name if ok else text)
    return row("full disks survived, equal", tried, good, "; ".join(notes))


# ---------------------------------------------------------------- all


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=200, help="bits flipped per checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="fewer damaged and bad files")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = references(root)
        print("uninterrupted:", ", ".join(f"{k} {s:.1f} s" for k, (_, s) in whole.items()))
        rows = kills(options.kills, options.seed, root, whole)
        rows += corruption(options.flips, options.seed, root, whole, not options.short)
        rows += security(root, not options.short)
        rows.append(full_disk(root, whole))
    print()
    for r in rows:
        print(f"{r['what']:<32} {r['good']:>5} of {r['tried']:>5}   {r['note']}")
    seconds = time.perf_counter() - start
    bad = [
        r
        for r in rows
        if r["good"] != r["tried"] or r["what"] == "saved epochs lost" and r["tried"]
    ]
    print(f"{'nothing lost' if not bad else 'LOST: ' + bad[0]['what']}, {seconds:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(rows))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
