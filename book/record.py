"""Run a chapter so that its numbers can be trusted: checked, kept, resumed, run once.

python book/record.py scan -p profile gpu -p dataset mnist -p seed 1
    --runs DIR    where the run folders are (default: runs)
    --again       empty the run folder and start over
    --publish     a finished run: copy its result to book/results and, for seed 0 and up to 1 MB,
                  its network to dcl/weights; `python book/notebooks.py results` writes the tables

papermill runs the chapter; its run folder, runs/scan-mnist-gpu-seed1, is that of `dcl fit`
(dcl/app/run.py) and works with `dcl predict`, `report` and `evaluate`. It also holds

    notebook.ipynb    the executed chapter (unfinished.ipynb until it is complete)
    manifest.json     state, command, parameters, and start, revision and end of each attempt
    results/          what the chapter recorded at its end, one file per method

A pretext of its own (LSD-C, DEC) is a run in pretext/, a second method such as IDEC one in idec/.
After an interruption the same command resumes; a finished run is not run again. Exit codes: 0 done,
1 the chapter failed, 2 refused before any work, 130 interrupted from the keyboard.
"""

import argparse
import ast
import json
import shlex
import shutil
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from dcl import methods
from dcl.app import run as runs
from dcl.app.clusters import WEIGHTS, sha256
from dcl.app.monitors import read_log
from dcl.app.pretexts import stored
from dcl.app.source import Source
from dcl.data import load
from dcl.notebook import results
from dcl.notebook.parameters import check_parameters, run_name
from dcl.runtime import checkpoint
from dcl.runtime.device import pick_device
from dcl.runtime.files import locked, write_atomic
from dcl.runtime.versions import versions
from dcl.train import predict
from notebooks import CHAPTERS, ROOT, read, tags

Parameters = dict[str, Any]
Manifest = dict[str, Any]
OWN = {"run_dir": "--runs names the folder above it", "results_dir": "it is in the run folder"}
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
SMALL = 2**20  # bytes of a network that travels with the book

# ---------------------------------------------------------------- the request


def chapters() -> list[str]:
    """The chapters that record a result: those that explain a method."""
    return sorted({methods.chapter_of(name) for name in methods.methods()})


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
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


@contextmanager
def only_one(folder: Path, patience: float = 20.0):
    """Be the only run in a folder: RuntimeError while another command uses it.

    The kernel of a killed command ends a second after it, so wait for that.
    """
    checkpoint.folder(folder)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".record.lock", timeout=0))
            for lock in folder.rglob(".lock"):
                with locked(lock, timeout=patience):
                    pass
        except Timeout:
            raise RuntimeError(f"{folder} is in use by another command") from None
        yield


def epochs(folder: Path) -> int:
    """The number of epochs in the logs of a run."""
    return sum(len(read_log(place)) for place in folder.rglob("log.jsonl"))


def recorded(folder: Path) -> dict[Path, results.Result]:
    """What the chapter recorded in a run folder, by file."""
    paths = sorted((folder / "results").glob("*.json"))
    return {path: json.loads(path.read_bytes()) for path in paths}


def home(folder: Path, manifest: Manifest, result: results.Result) -> Path:
    """The run folder of a result's method: a second one's, such as IDEC's in dec, is inside."""
    return folder if result["method"] == manifest["chapter"] else folder / result["method"]


def images_of(result: results.Result, values: Parameters) -> str:
    """The name by which a result's images are loaded; that of a folder leaves its path out."""
    return values["dataset"] if values["dataset"].startswith("folder:") else result["data"]


def run(chapter: str, values: Parameters, folder: Path) -> None:
    """Run the chapter in its folder, or resume there, and complete the folder.

    Raises papermill's PapermillExecutionError when a cell fails.
    """
    import papermill

    attempt = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": versions()["revision"],
        "ended": "killed",  # until it ends otherwise
    }
    values = {**values, "run_dir": str(folder), "results_dir": str(folder / "results")}
    manifest = {
        "state": "started",
        "command": command(chapter, values),
        "chapter": chapter,
        "parameters": values,
        "attempts": [*manifest_of(folder).get("attempts", []), attempt],
    }
    write(folder, manifest)
    part = folder / "unfinished.ipynb"
    try:
        papermill.execute_notebook(
            CHAPTERS / f"{chapter}.ipynb",
            part,
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=300,
            extra_arguments=["--IPKernelApp.log_level=40"],  # stderr is for errors
        )
        complete(folder, manifest)
        part.replace(folder / "notebook.ipynb")
        manifest["state"] = attempt["ended"] = "finished"
    except BaseException as error:
        manifest["state"] = "failed"
        attempt["ended"] = f"{type(error).__name__}: {getattr(error, 'evalue', error)}"
        raise
    finally:
        write(folder, manifest)


def complete(folder: Path, manifest: Manifest) -> None:
    """Add what `dcl fit` leaves behind: the trained network, assignments, report.

    All epochs are in the checkpoints, so none is trained again.
    """
    values = manifest["parameters"]
    for result in recorded(folder).values():
        place = home(folder, manifest, result)
        if place != folder and (folder / "pretext").exists():  # it began with the same pretext
            with suppress(FileExistsError):
                (place / "pretext").symlink_to(Path("..", "pretext"))
        trained = result["split"].partition(" -> ")[0]
        # all of it, or the subset that the chapter drew
        source = Source(images_of(result, values), trained, limit=result["training"]["images"])
        s, data = runs.settings(place), source.load()
        began = None  # with the pretext in the package, unless there is one in the folder
        if hasattr(s.config, "pretext") and not (place / "pretext").exists():
            began = stored(data.images, replace(s.config.pretext, seed=s.config.seed))
        device = values["device"]
        runs.fit(s.method, data, s.config, place, source=source, encoder=began or "", device=device)


# ---------------------------------------------------------------- into the book


def into_the_book(folder: Path, into: Path, weights: Path) -> list[Path]:
    """Copy the result of a finished run, and its network if it is small; returns the files.

    The network must reproduce the clusters that the chapter stored. Raises ValueError if it does
    not, if there is no result, or if `into` holds one of another configuration.
    """
    manifest = manifest_of(folder)
    if manifest.get("state") != "finished" or not recorded(folder):
        raise ValueError(f"run folder {str(folder)!r} must hold a finished run with a result")
    made = []
    for path, result in recorded(folder).items():
        network = home(folder, manifest, result) / "model.safetensors"
        _check(network.parent, result, manifest["parameters"])
        values = manifest["parameters"]
        if values["dataset"].startswith("folder:"):  # the path is private
            values = {**values, "dataset": f"folder:{result['data']}"}
        about = {"bytes": network.stat().st_size, "sha256": sha256(network)}
        result |= {
            "command": command(manifest["chapter"], values),
            "attempts": len(manifest["attempts"]),
            "weights": about,
        }
        made.append(results.put(result, into / path.name))
        if about["bytes"] <= SMALL and result["seed"] == 0:  # one of each is enough
            weights.mkdir(exist_ok=True)
            made.append(weights / f"{path.stem}.safetensors")
            shutil.copyfile(network, made[-1])
    return made


def _check(place: Path, result: results.Result, values: Parameters) -> None:
    scored = result["split"].partition(" -> ")[2]
    clusters = runs.clusters(place, device=values["device"])
    data = load(images_of(result, values), scored) if scored else runs.settings(place).load()
    found = predict(clusters.model, data.to(pick_device(values["device"])).images).tolist()
    if "clusters" in result and found != result["clusters"]:
        raise ValueError(f"{place} must give the recorded clusters; it gives others")


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
    if manifest_of(folder).get("state") == "finished":
        print(f"{folder} is finished; --again runs it again: {_line(folder)}")
        return DONE
    if there := epochs(folder):
        print(f"{folder} resumes after {there} epochs", flush=True)
    else:
        print(f"{folder} starts; it logs each epoch to log.jsonl", flush=True)
    try:
        run(chapter, values, folder)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except PapermillExecutionError as error:
        print(f"{chapter} failed: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The notebook so far is {folder / 'unfinished.ipynb'}", file=sys.stderr)
        return FAILED
    print(f"{folder} is finished: {_line(folder)}")
    return DONE


def _line(folder: Path) -> str:
    lines = [
        f"{row['method']} {' '.join(f'{k} {v:.3f}' for k, v in row['metrics'].items())}"
        f" in {row['seconds']:.0f} s"
        for row in recorded(folder).values()
    ]
    return "; ".join(lines) or "no labels, so no result"


if __name__ == "__main__":
    sys.exit(main())
