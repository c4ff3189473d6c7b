"""Run a chapter so that its numbers can be trusted: checked, kept, resumed, run once.

python book/record.py scan -p profile gpu -p dataset mnist -p seed 1
    --runs DIR    where the run folders are (default: runs)
    --again       empty the run folder and start over
    --publish     a finished run: copy its result to book/results and, for seed 0 and up to 1 MB,
                  its network to dcl/weights; `python book/notebooks.py results` writes the tables

papermill runs the chapter; the run folder, runs/scan-mnist-gpu-seed1, then holds

    notebook.ipynb    the executed chapter (unfinished.ipynb until it is complete)
    metrics.jsonl     a line per epoch, written during training (LSD-C's pretext: in pretext/)
    manifest.json     command, revision, parameters, data, versions, machine, seconds, memory, state
    results/          the files that the chapter wrote at its end, one per method
    *.pt, pretext/    checkpoints; those of a second method, such as IDEC in dec, are in idec/
    model.safetensors the trained network, once published

After an interruption the same command resumes; a finished run is not run again. Exit codes: 0 done,
1 the chapter failed, 2 refused before any work, 130 interrupted from the keyboard.
"""

import argparse
import ast
import json
import shlex
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dcl import methods
from dcl.app.clusters import WEIGHTS, Clusters, fitted, sha256
from dcl.app.monitors import read_log
from dcl.config import unflat
from dcl.data import load
from dcl.notebook import results
from dcl.notebook.chapter import check_parameters, run_name
from dcl.runtime import checkpoint
from dcl.runtime.device import pick_device
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import machine, versions
from dcl.train import predict
from notebooks import CHAPTERS, ROOT, read, tags

Parameters = dict[str, Any]
Manifest = dict[str, Any]
OWN = {"run_dir": "--runs names the folder above it", "results_dir": "it is in the run folder"}
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
SMALL = 2**20  # bytes of a network that travels with the book
BEAT = 5.0  # seconds between two entries of the time so far

# ---------------------------------------------------------------- the request


def chapters() -> list[str]:
    """The chapters that record a result: those of the methods."""
    return [name for name in methods.methods() if (CHAPTERS / f"{name}.ipynb").exists()]


def defaults(chapter: str) -> Parameters:
    """The parameters of a chapter and their default values, from its cell."""
    (cell,) = [c for c in read(CHAPTERS / f"{chapter}.ipynb").cells if "parameters" in tags(c)]
    lines = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in lines}  # type: ignore[attr-defined]


def parameters(chapter: str, given: list[tuple[str, str]]) -> Parameters:
    """All parameters of a run. ValueError or TypeError for an invalid name or value."""
    found = defaults(chapter)
    for name, text in given:
        if name in OWN:
            raise ValueError(f"{name} is set by this command ({OWN[name]}); got {text!r}")
        if name not in found:
            known = ", ".join(key for key in found if key not in OWN)
            raise ValueError(f"{name} is not a parameter of {chapter}; its parameters are {known}")
        whole = isinstance(found[name], int) and text.lstrip("-").isdigit()
        found[name] = int(text) if whole else text
    check_parameters(found)
    kind, _, place = found["dataset"].partition(":")
    if kind == "folder" and not Path(place).expanduser().is_dir():
        raise ValueError(f"dataset must name an existing folder; got {found['dataset']!r}")
    return found


def command(chapter: str, values: Parameters) -> str:
    """The command for this run: profile, seed, and what differs from the chapter's defaults."""
    own, always = defaults(chapter), ("profile", "seed")
    told = {k: v for k, v in values.items() if k in always or (k not in OWN and v != own[k])}
    words = [f"-p {name} {shlex.quote(str(value))}" for name, value in told.items()]
    return " ".join(["python book/record.py", chapter, *words])


# ---------------------------------------------------------------- the run


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a run folder, {} before the first attempt."""
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove its folder") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest; its seconds are the total of all attempts."""
    manifest["seconds"] = round(sum(a["seconds"] for a in manifest["attempts"]), 1)
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


@contextmanager
def only_one(folder: Path, patience: float = 20.0):
    """Be the only run in a folder: RuntimeError while another command uses it.

    The kernel of a killed command ends a second after it, so wait for that.
    """
    checkpoint.folder(folder)
    lock = FileLock(folder / ".record.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"run folder {str(folder)!r} is in use by another command") from None
    try:
        end = time.monotonic() + patience
        for place in (folder, *(path for path in folder.glob("*/") if path.name != "results")):
            while place.exists():
                try:
                    with checkpoint.lock(place):
                        break
                except RuntimeError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)
        yield
    finally:
        lock.release()


@contextmanager
def attempt(folder: Path, manifest: Manifest):
    """Count the seconds of an attempt, writing them to disk every few so that they survive a kill.

    Inside the block only the clock's thread writes the manifest.
    """
    mine: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": versions()["revision"],
        "seconds": 0.0,
        "ended": "killed",  # until the attempt ends otherwise
    }
    manifest["attempts"].append(mine)
    began, over = time.perf_counter(), threading.Event()

    def beat() -> None:
        while True:
            mine["seconds"] = round(time.perf_counter() - began, 1)
            write(folder, manifest)
            if over.wait(BEAT):
                return

    clock = threading.Thread(target=beat, daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()
        mine["seconds"] = round(time.perf_counter() - began, 1)


def epochs(folder: Path) -> int:
    """The number of epochs in the logs of a run."""
    return sum(len(read_log(place)) for place in folder.rglob("metrics.jsonl"))


def run(chapter: str, values: Parameters, folder: Path) -> Manifest:
    """Run the chapter in its folder, or resume there, and return the manifest.

    Raises papermill's PapermillExecutionError when a cell fails.
    """
    import papermill

    manifest = manifest_of(folder) or {"attempts": []}
    values = {**values, "run_dir": str(folder), "results_dir": str(folder / "results")}
    manifest |= {
        "state": "started",
        "command": command(chapter, values),
        "chapter": chapter,
        "parameters": values,
        "revision": versions()["revision"].removesuffix("-dirty"),
        "dirty": versions()["revision"].endswith("-dirty"),
        "versions": versions(),
        "machine": machine("cpu"),
    }
    part = folder / "unfinished.ipynb"
    ended = "finished"
    try:
        with attempt(folder, manifest):
            papermill.execute_notebook(
                CHAPTERS / f"{chapter}.ipynb",
                part,
                parameters=values,
                kernel_name="python3",
                progress_bar=False,
                start_timeout=300,
                extra_arguments=["--IPKernelApp.log_level=40"],  # stderr is for errors
            )
        part.replace(folder / "notebook.ipynb")
    except BaseException as error:
        ended = f"{type(error).__name__}: {getattr(error, 'evalue', error)}"
        raise
    finally:
        manifest["attempts"][-1]["ended"] = ended
        manifest["state"] = "finished" if ended == "finished" else "failed"
        manifest |= found(folder)
        write(folder, manifest)
    return manifest


def found(folder: Path) -> Manifest:
    """A run folder's data, epochs and, at the end, results, for the manifest."""
    about: Manifest = {"epochs": epochs(folder)}
    if (folder / "config.json").exists():
        about["data"] = json.loads((folder / "config.json").read_bytes())["data"]
    about["results"] = {}
    for path in sorted((folder / "results").glob("*.json")):
        result = json.loads(path.read_bytes())
        about["results"][path.name] = {"training seconds": result["seconds"]}
        keys = ("data", "split", "images", "checksum", "files", "training")
        about["data"] = {k: result[k] for k in keys}
        about["machine"] = result["machine"]  # with the peaks of memory, of process and GPU
    return about


# ---------------------------------------------------------------- into the book


def into_the_book(folder: Path, recorded: Path, weights: Path) -> list[Path]:
    """Copy the result of a finished run, and its network if it is small; returns the files.

    The network is rebuilt from the checkpoints and must reproduce the clusters that the chapter
    stored. Raises ValueError if it does not, if there is no result, or if `recorded` holds one of
    another configuration.
    """
    manifest = manifest_of(folder)
    if manifest.get("state") != "finished" or not manifest.get("results"):
        raise ValueError(f"run folder {str(folder)!r} must hold a finished run with a result")
    names = sorted(path.name for path in (folder / "results").glob("*.json"))
    return [path for name in names for path in _published(folder, name, recorded, weights)]


def _published(folder: Path, name: str, recorded: Path, weights: Path) -> list[Path]:
    manifest = manifest_of(folder)
    result, values = json.loads((folder / "results" / name).read_bytes()), manifest["parameters"]
    if values["dataset"].startswith("folder:"):  # the path is private
        values = {**values, "dataset": f"folder:{result['data']}"}
    network = _network(folder, manifest, result)
    about = {"bytes": network.stat().st_size, "sha256": sha256(network)}
    result |= {
        "command": command(manifest["chapter"], values),
        "attempts": len(manifest["attempts"]),
        "weights": about,
    }
    made = [results.put(result, recorded / name)]
    if about["bytes"] <= SMALL and result["seed"] == 0:  # one of each is enough
        weights.mkdir(exist_ok=True)
        made.append(weights / f"{made[0].stem}.safetensors")
        shutil.copyfile(network, made[1])
    return made


def _network(folder: Path, manifest: Manifest, result: results.Result) -> Path:
    """Write the trained network of a run into its folder."""
    values, method = manifest["parameters"], manifest["chapter"]
    name = values["dataset"] if values["dataset"].startswith("folder:") else result["data"]
    trained, _, scored = result["split"].partition(" -> ")
    place = pick_device(values["device"])
    # all of it, or the subset that the chapter drew
    train_set = load(name, trained).subset(result["training"]["images"]).to(place)
    config = unflat(methods.method(method).Config, result["config"])
    if result["method"] != method:  # a second method, such as idec in the chapter dec, has a
        pretext, folder = folder / "pretext", folder / result["method"]  # folder of its own in the
        if pretext.exists() and not (folder / "pretext").exists():  # run's, and the same pretext
            shutil.copytree(pretext, folder / "pretext", ignore=shutil.ignore_patterns(".lock"))
    # all epochs are in the checkpoints, so none is trained again
    model = methods.method(method).fit(train_set.images, config, run_dir=folder)
    clusters, _ = fitted(model, method, train_set.images)
    path = folder / "model.safetensors"
    clusters.save(path, data=result["data"], split=trained, checksum=train_set.checksum)
    again = Clusters.load(path)
    again.model.to(place)
    data = load(name, scored).to(place) if scored else train_set
    same = predict(again.model, data.images).tolist()
    if "clusters" in result and same != result["clusters"]:
        raise ValueError(f"{path} must give the recorded clusters; it gives others")
    return path


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chapter", help="such as scan")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--publish", action="store_true")
    asked = parser.parse_args(arguments)
    try:
        chapter = Path(asked.chapter).stem
        if chapter not in chapters():
            known = ", ".join(chapters())
            raise ValueError(f"chapter must be one that records, {known}; got {asked.chapter!r}")
        values = parameters(chapter, [tuple(pair) for pair in asked.p])
        folder = asked.runs / run_name(chapter, values)
        with only_one(folder):
            code = _run(chapter, values, folder, asked.again)
            if code == DONE and asked.publish:
                for path in into_the_book(folder, results.COMMITTED, WEIGHTS):
                    print(f"wrote {path.relative_to(ROOT)}, {path.stat().st_size / 1024:.0f} KiB")
            return code
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"record: {error}", file=sys.stderr)
        return REFUSED


def _run(chapter: str, values: Parameters, folder: Path, again: bool) -> int:
    from papermill.exceptions import PapermillExecutionError

    if again:
        for entry in folder.iterdir():
            if entry.name != ".record.lock":
                linked = entry.is_symlink()  # to another disk, whose folder is kept
                shutil.rmtree(entry) if entry.is_dir() and not linked else entry.unlink()
    manifest = manifest_of(folder)
    if manifest.get("state") == "finished":
        print(f"{folder} is finished; --again runs it again: {_line(folder)}")
        return DONE
    if there := epochs(folder):
        print(f"{folder} resumes after {there} epochs", flush=True)
    else:
        print(f"{folder} starts; it logs each epoch to metrics.jsonl", flush=True)
    try:
        manifest = run(chapter, values, folder)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except PapermillExecutionError as error:
        print(f"{chapter} failed: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The notebook so far is {folder / 'unfinished.ipynb'}", file=sys.stderr)
        return FAILED
    print(f"{folder} is finished, {manifest['seconds']:.0f} s in all: {_line(folder)}")
    return DONE


def _line(folder: Path) -> str:
    rows = [json.loads(path.read_bytes()) for path in sorted((folder / "results").glob("*.json"))]
    lines = [
        " ".join([row["method"], *(f"{k} {v:.3f}" for k, v in row["metrics"].items())])
        for row in rows
    ]
    return "; ".join(lines) or "no labels, so no result"


if __name__ == "__main__":
    sys.exit(main())
