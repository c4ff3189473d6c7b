"""Kill runs, damage what they wrote, fill their disk: nothing is lost.

python tests/survive.py [--kills 30] [--seed 0] [--short] [--json FILE]

Every trial runs in a process of its own, forked from this one before torch has started a thread.
"""

import argparse
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a fork takes no threads along


from dcl import train as loop
from dcl.config import with_epochs
from dcl.data import load
from dcl.methods import method, methods
from dcl.recipes import recipe
from dcl.runtime import checkpoint
from dcl.train import predict
from smoke import same

METHODS = sorted(methods())
SLOW_TO_IMPORT = ("torch._dynamo", "torch.utils.serialization.config")
for name in SLOW_TO_IMPORT:
    importlib.import_module(name)  # once, here, and not in every copy of this process
EPOCHS = 4
POINTS = ("half written", "written", "between the names", "renamed")
IMAGES = load("digits").subset(300).images


def four_epochs(stem):
    """The smoke recipe, four epochs a stage."""
    return with_epochs(recipe(stem, "smoke"), EPOCHS)


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
    objective = method(stem).fit(IMAGES, four_epochs(stem), run_dir=run)
    save(out, objective.state_dict() | {"clusters": predict(objective, IMAGES)})


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
    """Kill runs of the methods in turn, up to three times each, until the plan is done.

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


def epochs(path):
    return len(checkpoint.load(path)["history"])


def corruption(root, whole, every=True):
    """Damage a checkpoint of an uninterrupted run and train on: the one before is used."""
    resumed = equal = 0
    for stem in METHODS:
        files = sorted(p for p in (root / stem).rglob("*.pt") if ".previous" not in p.name)
        for file in files if every else files[-1:]:
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
    return row("gone on from damage, equal", resumed, equal, "to the bit")


# ---------------------------------------------------------------- a full disk


def full_disk(root, whole):
    """A disk that fills up: the error says what and where, the earlier checkpoints are whole.

    Here it is a limit on the size of a file, which needs no rights and takes some bytes first.
    """
    stem, run, out = METHODS[0], root / "disk" / "run", root / "disk.result"
    fresh = loop._resume, checkpoint.save

    def limit(n):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))

    def fills_up():
        places = []

        def two_only(path, state):
            places.append(path)
            limit(1000 if len(state["history"]) == 3 else resource.RLIM_INFINITY)
            fresh[1](path, state)

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        checkpoint.save = two_only
        try:
            fit(stem, run, out)
        except OSError as e:
            text = str(e)
        else:
            raise AssertionError("the disk did not fill up")
        place = places[-1]
        assert "could not write" in text and str(place) in text, text
        assert not list(run.rglob(".*.partial"))
        assert epochs(place) == 2 and epochs(checkpoint.previous(place)) == 1
        limit(resource.RLIM_INFINITY)
        loop._resume, checkpoint.save = fresh
        fit(stem, run, out)

    run.parent.mkdir()
    text = outcome(fills_up)
    good = text == "ok" and same(checkpoint.load(out), whole[stem][0])
    return row("full disk survived, equal", 1, int(good), text)


# ---------------------------------------------------------------- all


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="fewer damaged files")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = references(root)
        print("uninterrupted:", ", ".join(f"{k} {s:.1f} s" for k, (_, s) in whole.items()))
        rows = kills(options.kills, options.seed, root, whole)
        rows += [corruption(root, whole, not options.short), full_disk(root, whole)]
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
