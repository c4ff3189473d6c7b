"""Cluster your own images from the command line.

    dcl list                                        the methods
    dcl fit scan --data ./photos --clusters 20 --out runs/photos
    dcl predict runs/photos ./new-photos            which cluster is a new image in?
    dcl report runs/photos                          the page again
    dcl evaluate runs/photos --labels labels.csv    against labels that you have after all
    dcl resume runs/photos                          after an interruption
    dcl choose-k ./photos                           how many clusters?

`dcl COMMAND --help` explains a command, `dcl fit METHOD --help` every setting of a method.
On several GPUs: torchrun --nproc-per-node 4 -m dcl fit ...

Exit codes: 0 done; 2 what was asked for cannot be done, and the message says why; 3 done, but a
warning light is on in the report; 130 interrupted, and `dcl resume` goes on.
"""

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tyro.conf import Positional

from dcl import dist, publish, run
from dcl.optim import with_batches, with_epochs
from dcl.train import Monitor, Objective, pick_device

OK, IMPOSSIBLE, WARNING, INTERRUPTED = 0, 2, 3, 130


# ---------------------------------------------------------------- monitors


class Bar:
    """A monitor that shows a line with the time left; silent when stderr is not a terminal."""

    def __init__(self, epochs: int):
        from tqdm import tqdm

        hidden = not sys.stderr.isatty() or dist.rank() > 0
        self.bar = tqdm(total=epochs, unit="epoch", disable=hidden, dynamic_ncols=True)

    def __call__(
        self, stage: str, epoch: int, objective: Objective, losses: dict[str, float]
    ) -> None:
        """One epoch on."""
        self.bar.set_description(stage)
        self.bar.set_postfix(loss=f"{losses['loss']:.3f}")
        self.bar.update()

    def skip(self, epochs: int) -> None:
        """Epochs that an earlier process has done."""
        self.bar.update(epochs)
        self.bar.unpause()

    def close(self) -> None:
        """Leave the line as it is."""
        self.bar.close()


def tensorboard(folder: Path) -> Monitor:
    """A monitor that writes each loss as a curve for TensorBoard. ValueError without it."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard must be installed for --tensorboard: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder)) if dist.rank() == 0 else None

    def write(stage: str, epoch: int, objective: Objective, losses: dict[str, float]) -> None:
        if writer:
            for name, value in losses.items():
                writer.add_scalar(f"{stage}/{name}", value, epoch)
            writer.flush()

    return write


# ---------------------------------------------------------------- commands


@dataclass
class Fit:
    """What every `dcl fit` takes, whatever the method."""

    data: str
    """A folder of images, of any depth and with files of any kind, or the name of a set."""
    out: Path
    """The run folder: settings, log, checkpoint, weights, assignments, report."""
    clusters: int = 0
    """How many clusters; 0: as many as the profile says. Unsure? dcl choose-k."""
    profile: str = "auto"
    """The recipe that the settings below start from. auto: quick for the embedded sets; frozen
    with an encoder, where the method has it; else gpu on a GPU and photos on a CPU."""
    encoder: str = ""
    """A network that already sees, such as resnet50 or resnet50:weights.pth. For a few hundred or
    thousand photographs nothing trained from scratch is good."""
    size: int = 0
    """Side in pixels to which images are brought. 0: 224 with an encoder, else 32; a named set
    keeps its own."""
    split: str = ""
    """Part of a set that has parts: train, test, train+test."""
    limit: int = 0
    """So many images at most, chosen at random; 0: all."""
    epochs: int = 0
    """Epochs of every stage; 0: as the profile says."""
    seed: int = 0
    """The same seed on the same machine gives the same clusters."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    tensorboard: bool = False
    """Also write curves for TensorBoard into the run folder."""


def fit(args: Sequence[str]) -> int:
    """Cluster images: dcl fit METHOD --data ./photos --clusters 20 --out runs/photos."""
    known = publish.methods()
    if not args or args[0] in ("-h", "--help"):
        print(fit.__doc__, f"\nMETHOD is one of {', '.join(known)}; dcl list tells them apart,")
        print("dcl fit METHOD --help shows every setting.")
        return OK if args else IMPOSSIBLE
    name, rest = args[0], [*args[1:]]
    module = publish.method(name)
    profile = _peek(rest, "--profile", "auto")
    if profile == "auto":
        place = pick_device(_peek(rest, "--device", "auto")).type
        encoder = bool(_peek(rest, "--encoder"))
        profile = run.profile(module, _peek(rest, "--data"), encoder, place)
    if profile not in module.PROFILES:
        raise ValueError(f"profile must be one of {', '.join(module.PROFILES)}; got {profile!r}")
    asked, config = _settings(name, module, profile, rest)
    said = {"n_clusters": asked.clusters, "seed": asked.seed}
    config = replace(config, **{k: v for k, v in said.items() if v})
    if asked.epochs:
        config = with_epochs(config, asked.epochs)
    folder = Path(asked.data).expanduser().is_dir()
    size = asked.size or (0 if not folder else 224 if asked.encoder else 32)
    source = run.Source(asked.data, asked.split, size, asked.limit)
    data = source.load()
    if len(data) < max(2, config.n_clusters):
        raise ValueError(
            f"data must have at least as many images as clusters, {config.n_clusters}; "
            f"got {len(data)}"
        )
    config = with_batches(config, len(data))
    board = tensorboard(asked.out / "tensorboard") if asked.tensorboard else None
    _say(f"{name}, profile {profile}")
    return _follow(
        asked.out,
        config,
        not asked.encoder,
        lambda bar: run.fit(
            name,
            data,
            config,
            asked.out,
            source=source,
            encoder=asked.encoder,
            device=asked.device,
            monitor=run.all_of(bar, board),
        ),
    )


def _peek(args: Sequence[str], flag: str, default: str = "") -> str:
    """The value of a flag that decides about the defaults of the others."""
    found = default
    for arg, after in zip(args, [*args[1:], default]):
        if arg.startswith(flag + "="):
            found = arg.removeprefix(flag + "=")
        elif arg == flag:
            found = after
    return found


def _settings(name: str, module: Any, profile: str, args: Sequence[str]) -> tuple[Fit, Any]:
    """The common arguments, and the method's Config with what the command line changes."""
    import tyro

    config = module.PROFILES[profile]
    settings = ("config", module.Config, field(default_factory=lambda: config))
    whole = make_dataclass("Fit", [settings], bases=(Fit,), kw_only=True)
    title = (module.__doc__ or "").split("\n")[0]
    text = f"{title}\n\nSettings of the method begin with --config; shown is profile {profile!r}."
    # a pretext that may be of two kinds (RotNet or SimCLR) keeps the kind that the profile has
    keep = (tyro.conf.AvoidSubcommands,)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate subcommand name")
        found: Any = tyro.cli(
            whole, args=args, prog=f"dcl fit {name}", description=text, config=keep
        )
    return found, found.config


def resume(out: Positional[Path]) -> int:
    """Go on with an interrupted run, where its last whole epoch ended.

    Args:
        out: The run folder.
    """
    s = run.settings(out)
    return _follow(out, s.config, not s.encoder, lambda bar: run.resume(out, monitor=bar))


def _follow(out: Path, config: Any, pretext: bool, work: Callable[[Bar], object]) -> int:
    bar = Bar(run.epochs_of(config, pretext))
    bar.skip(len(run.read_log(out / "log.jsonl")))
    try:
        work(bar)
    except KeyboardInterrupt:
        bar.close()
        _say(f"interrupted; this goes on: dcl resume {out}")
        return INTERRUPTED
    finally:
        bar.close()
    return _tell(out)


def _tell(out: Path) -> int:
    """The sizes of the clusters and the warning lights, from what the run has left."""
    if dist.rank():
        return OK
    rows = run.read_csv(out / "assignments.csv", "cluster")
    sizes = torch.tensor([int(c) for (c,) in rows]).bincount(
        minlength=run.settings(out).config.n_clusters
    )
    print(f"{len(rows)} images in {int((sizes > 0).sum())} of {len(sizes)} clusters; "
          f"sizes {' '.join(map(str, sizes.sort(descending=True).values.tolist()))}")  # fmt: skip
    skipped = out / "skipped.csv"
    if skipped.exists():
        print(f"{len(run.read_csv(skipped, 'file'))} files could not be read: {skipped}")
    lights = json.loads((out / "health.json").read_text())["warnings"]
    for warning in lights:
        print(f"warning: {warning}")
    print(f"look at {out / 'report.html'}")
    return WARNING if lights else OK


def predict(
    folder: Positional[Path],
    data: Positional[str],
    out: Path | None = None,
    split: str = "",
    device: str = "auto",
) -> int:
    """The clusters of new images, as CSV: file, cluster, confidence, distance to the prototype.

    A large distance together with a low confidence means: like nothing in the training.

    Args:
        folder: The run folder.
        data: A folder of images, or the name of a set.
        out: A file to write; else the lines go to the standard output.
        split: Part of a set that has parts.
        device: auto, cpu, cuda.
    """
    clusters = run.clusters(folder, device=device)
    source = run.settings(folder).source
    new = run.Source(data, split, clusters.shape[1] if source.size else 0).load()
    found = clusters.assign(new.images.to(pick_device(device)))
    for file, reason in new.skipped or ():
        _say(f"skipped {file}: {reason}")
    lines = run.table(run.names(new), found)
    if out:
        run.checkpoint.write_atomic(out, lines)
    else:
        sys.stdout.buffer.write(lines)
        sys.stdout.flush()
    return OK


def report(folder: Positional[Path], device: str = "auto") -> int:
    """Make report.html again, from the trained network and the images.

    Args:
        folder: The run folder.
        device: auto, cpu, cuda.
    """
    run.rewrite(folder, device=device)
    return _tell(folder)


def evaluate(folder: Positional[Path], labels: str) -> int:
    """ACC, NMI, ARI and purity of a run against labels; they were not used before.

    Args:
        folder: The run folder.
        labels: A CSV file with the columns file and label, or the word folders: each image is
            labelled by the folder it lies in.
    """
    for name, value in run.evaluate(folder, labels).items():
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
    """How many clusters? A sweep of k-means on fixed features, and how sure it is.

    Args:
        data: A folder of images, the name of a set, or a run folder, whose features are taken.
        encoder: A network that already sees, such as resnet50; without one the pixels speak.
        size: Side in pixels to which images are brought.
        split: Part of a set that has parts.
        limit: So many images at most, chosen at random; 0: all.
        most: The largest number that is tried.
        seed: Of the resampling.
        device: auto, cpu, cuda.
    """
    choice = run.choose(data, encoder, size, split, limit, most, seed, device)
    print(f"{'k':>4} {'score':>6} {'stability':>10} {'silhouette':>11} {'bend':>6} {'balance':>8}")
    for row in choice.table:
        print(
            f"{row.k:>4} {row.score:>6.2f} {row.stability:>10.3f} {row.silhouette:>11.3f} "
            f"{row.bend:>6.2f} {row.balance:>8.2f}"
        )
    print(choice.sentence)
    return OK


def methods() -> int:
    """The methods, and the recipes of each."""
    for name, module in publish.methods().items():
        print(f"{name:<12} {(module.__doc__ or '').splitlines()[0]}")
        print(f"{'':<12} profiles: {', '.join(module.PROFILES)}")
    return OK


COMMANDS: dict[str, Callable[..., int]] = {
    "list": methods,
    "predict": predict,
    "report": report,
    "evaluate": evaluate,
    "resume": resume,
    "choose-k": choose_k,
}


def main(args: Sequence[str] | None = None) -> int:
    """The command `dcl`; returns the exit code."""
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(__doc__)
        return OK if args else IMPOSSIBLE
    name, rest = args[0], args[1:]
    try:
        with dist.processes(_peek(rest, "--device", "auto")):
            if name == "fit":
                return fit(rest)
            if name not in COMMANDS:
                raise ValueError(f"command must be one of fit, {', '.join(COMMANDS)}; got {name!r}")
            return tyro.cli(COMMANDS[name], args=rest, prog=f"dcl {name}")
    except (ValueError, TypeError, FileNotFoundError, FloatingPointError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "run_dir" not in str(error):
            raise
        _say(f"{error}")
        return IMPOSSIBLE
    except KeyboardInterrupt:
        return INTERRUPTED


def _say(text: str) -> None:
    if dist.rank() == 0:
        print(f"dcl: {text}", file=sys.stderr, flush=True)
