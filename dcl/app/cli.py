"""Cluster your own images, or vectors, from the command line.

    dcl fit --data ./photos --out runs/photos       the method and the number of clusters chosen
    dcl fit scan --data ./photos --clusters 20 --out runs/photos
    dcl predict runs/photos ./new-photos            which cluster is a new image in?
    dcl export runs/photos --to sorted              a folder of links for each cluster
    dcl report runs/photos                          write the report again
    dcl refine runs/photos --out runs/refined       honest confidences, from a finished run
    dcl ensemble runs/a runs/b --out runs/both      one clustering of several, and where to look
    dcl evaluate runs/photos --labels labels.csv    against labels that you have after all
    dcl resume runs/photos                          after an interruption
    dcl choose-k ./photos                           how many clusters?
    dcl list                                        the methods
    dcl encoders dinov2                             pretrained networks, by a word in their names
    dcl fit dec --data vectors.npy --clusters 10 --out runs/v

vectors.npy holds floats (N,d); a .npy file may also hold images, such as uint8 (N,H,W,C).
`dcl COMMAND --help` explains a command, `dcl fit METHOD --help` every setting of a method. On
several GPUs: torchrun --nproc-per-node 4 -m dcl fit ...

Exit codes: 0 done; 2 the request cannot be carried out, and the message says why; 3 done, but a
warning light is on in the report; 130 interrupted, `dcl resume` continues. Under torchrun 3 becomes
0, and every other failure 1.
"""

import os
import sys
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path

from tyro.conf import Positional

import dcl
from dcl import methods
from dcl.app import assignments, run
from dcl.app.choose import choose
from dcl.app.cli_encoders import encoders
from dcl.app.cli_ensemble import ensemble
from dcl.app.cli_export import export_folders
from dcl.app.cli_fit import (
    IMPOSSIBLE,
    INTERRUPTED,
    OK,
    WARNING,
    fit,
    follow,
    peek,
    say,
    tell,
    warnings_in_a_line,
)
from dcl.app.cli_predict import predict
from dcl.app.cli_refine import refine
from dcl.app.clusters import shipped
from dcl.data.files import named
from dcl.recipes import recipes
from dcl.runtime import dist

# ---------------------------------------------------------------- commands


def resume(out: Positional[Path], data: str = "") -> int:
    """Continue an interrupted run after its last complete epoch.

    Args:
        out: The run folder.
        data: Where the images or vectors are now, if they were moved; checked by content, and kept.
    """
    s = run.settings(out)
    return follow(out, s.config, not s.network, lambda bar: run.resume(out, data, monitor=bar))


def report(folder: Positional[Path], data: str = "", device: str = "auto") -> int:
    """Write report.html again, from the trained network and the images.

    Args:
        folder: The run folder.
        data: Where the images or vectors are now, if they were moved; checked by content, and kept.
        device: auto, cpu, cuda.
    """
    run.rewrite(folder, data, device=device)
    return tell(folder)


def evaluate(folder: Positional[Path], labels: str) -> int:
    """ACC, NMI, ARI and purity of a run against labels, which training never saw.

    A CSV file has the columns file and label; without files, file is the row number, from 0. A
    .npy file has one label per row.

    Args:
        folder: The run folder.
        labels: A CSV file, a .npy file, or the word folders: an image's label is its folder's name.
    """
    for name, value in assignments.evaluate(folder, labels).items():
        print(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}")
    return OK


def choose_k(
    data: Positional[str],
    encoder: str = "",
    size: int = 0,
    split: str = "",
    limit: int = 0,
    most: int = 20,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """How many clusters? A sweep of k-means on fixed features, and how clear its answer is.

    Args:
        data: A folder of images, a data set's name, a .npy file, or a run folder (its features).
        encoder: A network of dcl encoders, or pixels; empty: two small ones are trained (minutes).
        size: Images are resized to this many pixels a side.
        split: Of a data set that has several: train, test, train+test.
        limit: Use at most this many images, chosen at random; 0: all.
        most: The largest number of clusters to try.
        seed: Seed of the resampling.
        device: auto, cpu, cuda.
    """
    print(choose(data, encoder, size, split, limit, most, seed, device, tell=say))
    return OK


def list_methods() -> int:
    """The methods, the recipes of each, and the trained networks in the package."""
    for name, module in methods.methods().items():
        print(f"{name:<12} {(module.__doc__ or '').splitlines()[0]}")
        print(f"{'':<12} recipes: {', '.join(recipes(name))}")
        if getattr(module.Config, "takes_vectors", False):
            print(f"{'':<12} takes vectors (N,d) as well as images")
    for name in shipped():
        print(f"trained      {name}")
    return OK


COMMANDS: dict[str, Callable[..., int]] = {
    "list": list_methods,
    "predict": predict,
    "export": export_folders,
    "report": report,
    "refine": refine,
    "ensemble": ensemble,
    "evaluate": evaluate,
    "resume": resume,
    "choose-k": choose_k,
    "encoders": encoders,
}


PATHS = ("data", "folder", "labels", "members", "names", "out", "to")
"""The arguments of commands that are paths."""


def main(args: Sequence[str] | None = None) -> int:
    """The command `dcl`; returns the exit code."""
    try:
        try:
            with warnings_in_a_line():
                return _main(list(sys.argv[1:] if args is None else args))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough; Python's flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _main(args: list[str]) -> int:
    import tyro

    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return OK if args else IMPOSSIBLE
    if args[0] == "--version":
        print(f"dcl {dcl.__version__}")
        return OK
    name, rest = args[0], args[1:]
    try:
        with dist.processes(peek(rest, "--device", "auto")), dist.first_speaks() as first:
            _named_paths(name, rest)
            if name == "fit":
                return _unless_launched(fit(rest))
            if name not in COMMANDS:
                raise ValueError(f"command must be one of fit, {', '.join(COMMANDS)}; got {name!r}")
            return _unless_launched(
                tyro.cli(COMMANDS[name], args=rest, prog=f"dcl {name}", console_outputs=first)
            )
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "run_dir" not in str(error):
            raise
        say(f"{error}")
        return IMPOSSIBLE
    except KeyboardInterrupt:
        return INTERRUPTED


def _named_paths(command: str, args: list[str]) -> None:
    """Refuse an empty text for a path, before `Path` makes the current folder of it."""
    known = signature(COMMANDS[command]).parameters if command in COMMANDS else {}
    places = (name for name, p in known.items() if p.default is p.empty)
    flag = ""
    for arg in args:
        if arg.startswith("--"):
            flag, given, value = arg.removeprefix("--").partition("=")
            if not given:
                continue  # the next one is its value
        else:
            flag, value = flag or next(places, ""), arg
        if flag in PATHS:
            named(flag, value)
        flag = ""


def _unless_launched(code: int) -> int:
    # to torchrun every code but 0 is a process that has died
    return OK if code == WARNING and dist.launched() else code
