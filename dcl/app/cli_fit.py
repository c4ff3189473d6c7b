"""`dcl fit [METHOD]`: the arguments, every setting of the method, and the summary at the end."""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from dcl import methods
from dcl.algorithm import trains_pretext
from dcl.app import defaults, run
from dcl.app.monitors import Bar, Reading, all_of, read_log, tensorboard
from dcl.app.source import Source, apart, side
from dcl.config import changed, check_rows, check_whole, epochs_of, with_epochs, with_rows
from dcl.data.arrays import is_vectors
from dcl.nets.pretrained import check_name
from dcl.recipes import choose, recipe
from dcl.runtime import dist
from dcl.runtime.device import pick_device
from dcl.runtime.files import check_writable

OK, IMPOSSIBLE, WARNING, INTERRUPTED = 0, 2, 3, 130


@dataclass
class Fit:
    """What every `dcl fit` takes, whatever the method."""

    data: str
    """A folder of images, of any depth and with files of any kind, the name of a set, or a .npy
    file with one array: images (uint8, or floats in 0..1) or, for some methods (dcl list), vectors,
    floats (N,d)."""
    out: Path
    """The run folder: settings, log, checkpoint, weights, assignments, report."""
    clusters: int = 0
    """The number of clusters; 0: the recipe's, or, without a method, what dcl choose-k proposes."""
    recipe: str = "auto"
    """The recipe from which the settings below start. auto: the one for the data set, or for the
    most similar one; with an encoder "frozen", where the method has it; for photographs "cifar10"
    on a GPU and "photos", a small network, on a CPU."""
    encoder: str = ""
    """A pretrained network: resnet50, timm/NAME (dcl encoders lists them), either with weights in a
    file, resnet50:weights.pth, or your own module:function; several with commas between them. A few
    hundred or thousand photographs are too few to train from scratch. It is fine-tuned, unless the
    recipe is frozen: then only heads are trained, on its features."""
    size: int = 0
    """Images are resized to this many pixels a side. 0: the encoder's own size, 32 without one; a
    named data set keeps its own size."""
    split: str = ""
    """Of a set or folder that has several: train, test, train+test; all: of a folder, everything
    below it."""
    limit: int = 0
    """Use at most this many images, chosen at random; 0: all."""
    epochs: int = 0
    """Epochs of every stage; 0: the recipe's."""
    seed: int = 0
    """The same seed on the same machine gives the same clusters."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    tensorboard: bool = False
    """Also write curves for TensorBoard into the run folder."""


def fit(args: Sequence[str]) -> int:
    """Cluster images: dcl fit METHOD --data ./photos --clusters 20 --out runs/photos."""
    known = methods.methods()
    if not args or args[0] in ("-h", "--help"):
        print(fit.__doc__, f"\nMETHOD is one of {', '.join(known)}; dcl list describes them,")
        print("dcl fit METHOD --help shows every setting. Without METHOD it is chosen, as are a")
        print("pretrained encoder and the number of clusters: dcl fit --data ./photos --out runs/p")
        return OK if args else IMPOSSIBLE
    name, rest = args[0], [*args[1:]]
    if unnamed := name.startswith("-"):
        name, rest = _default(list(args))
    module = methods.method(name)
    chosen, words = peek(rest, "--recipe", "auto"), peek(rest, "--data")
    if is_vectors(words):
        methods.for_vectors(name)
    if chosen == "auto":
        place = pick_device(peek(rest, "--device", "auto")).type
        chosen = choose(name, words, encoder=bool(peek(rest, "--encoder")), device=place)
    asked, config = _settings(name, module, chosen, rest)
    said = {"n_clusters": asked.clusters, "seed": asked.seed}
    config = replace(config, **{k: v for k, v in said.items() if v})
    if asked.epochs:
        config = with_epochs(config, asked.epochs)
    out = asked.out.expanduser()
    check_writable(out, "out")
    apart(out, "out", asked.data)
    check_whole("seed", asked.seed, 0)
    pick_device(asked.device)
    if asked.encoder:
        check_name(asked.encoder)
    if config.n_clusters < 2:
        raise ValueError(f"clusters must be at least 2; got {config.n_clusters}")
    size = side(asked.data, asked.size, asked.encoder)
    source = Source(asked.data, asked.split, size, asked.limit)
    data = source.load(Reading(), tell=say)
    counts = unnamed and not asked.clusters
    if len(data) < (2 if counts else max(2, config.n_clusters)):
        raise ValueError(
            f"data must have at least as many {data.noun}s as clusters, {config.n_clusters}; "
            f"got {len(data)}"
        )
    if counts:
        k = defaults.clusters(
            data, asked.encoder, with_rows(config, len(data)), out, asked.device, say
        )
        config, rest = replace(config, n_clusters=k), [*rest, "--clusters", str(k)]
    if unnamed:
        say(f"the same: {shlex.join(['dcl', 'fit', name, *rest])}")
    n, before = len(data), config
    config = with_rows(config, n, typed := _typed(rest))
    learns = trains_pretext(config, data.vectors, bool(asked.encoder))
    check_rows(config, n, data.noun, pretext=learns, typed=typed)
    board = tensorboard(out / "tensorboard") if asked.tensorboard else None
    say(f"{name}, recipe {chosen}")
    if less := changed(before, config):
        say(f"to fit {n} {data.noun}s: {less}")
    if n < defaults.FEW * config.n_clusters:
        hint = "" if data.vectors or asked.encoder else ", and try --encoder resnet50"
        say(f"{n} {data.noun}s are few for {config.n_clusters} clusters: expect little{hint}")
    return follow(
        out,
        config,
        learns,
        lambda bar: run.fit(
            name,
            data,
            config,
            out,
            source=source,
            encoder=asked.encoder,
            device=asked.device,
            monitor=all_of(bar, board),
        ),
    )


def _default(args: list[str]) -> tuple[str, list[str]]:
    """The method for arguments that name none, and these with what else is chosen."""
    name = defaults.METHOD  # for a mistake in the arguments to be found before any work
    asked, _ = _settings(name, methods.method(name), choose(name, peek(args, "--data")), args)
    check_writable(out := asked.out.expanduser(), "out")
    name, more = defaults.method(asked.data, asked.encoder, asked.clusters, out, say)
    return name, args + more


def peek(args: Sequence[str], flag: str, default: str = "") -> str:
    """The value of a flag on which the defaults of the others depend."""
    found = default
    for arg, after in zip(args, [*args[1:], default]):
        if arg.startswith(flag + "="):
            found = arg.removeprefix(flag + "=")
        elif arg == flag:
            found = after
    return found


def _typed(args: Sequence[str]) -> dict[str, str]:
    """The settings that the command line names, with the flag of each."""
    flags = [arg.partition("=")[0] for arg in args if arg.startswith("--config.")]
    return {f.removeprefix("--config.").replace("-", "_"): f for f in flags}


def _settings(name: str, module: Any, chosen: str, args: Sequence[str]) -> tuple[Fit, Any]:
    """The common arguments, and the method's Config with what the command line changes."""
    import tyro

    config = recipe(name, chosen)
    settings = ("config", module.Config, field(default_factory=lambda: config))
    whole = make_dataclass("Fit", [settings], bases=(Fit,), kw_only=True)
    title = (module.__doc__ or "").split("\n")[0]
    text = f"{title}\n\nThe method's settings begin with --config; defaults: recipe {chosen!r}."
    # a pretext that may be of two kinds (RotNet or SimCLR) keeps the recipe's kind
    keep = (tyro.conf.AvoidSubcommands,)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate subcommand name")
        found: Any = tyro.cli(
            whole,
            args=args,
            prog=f"dcl fit {name}",
            description=text,
            config=keep,
            console_outputs=dist.rank() == 0,
        )
    return found, found.config


def follow(out: Path, config: Any, pretext: bool, work: Callable[[Bar], object]) -> int:
    """Do the work of a run, with a progress bar; returns the exit code."""
    bar = Bar(epochs_of(config, pretext))
    before = len(read_log(out / "log.jsonl"))
    bar.skip(before)
    try:
        work(bar)
    except KeyboardInterrupt:
        bar.close()
        say(f"interrupted; to continue: {run.command('resume', out)}")
        return INTERRUPTED
    finally:
        bar.close()
    if before and len(read_log(out / "log.jsonl")) == before:
        say("all epochs were done before; the results are written again")
    return tell(out)


def tell(out: Path) -> int:
    """Print the cluster sizes and warning lights of a finished run; returns the exit code."""
    if dist.rank():
        return OK
    lines, lights = run.summary(out)
    print(*lines, sep="\n")
    for warning in lights:
        print(f"warning: {warning}")
    print(f"look at {out / 'report.html'}")
    return WARNING if lights else OK


def say(text: str) -> None:
    """A line on stderr, from the first process."""
    if dist.rank() == 0:
        print(f"dcl: {text}", file=sys.stderr, flush=True)


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Show warnings as `warning: ...`, without the place in the program that Python adds."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if dist.rank() == 0:
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
