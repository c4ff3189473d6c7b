"""`dcl refine RUN`: a finished clustering with honest confidences, as a run of its own."""

from dataclasses import replace
from pathlib import Path

from tyro.conf import Positional

from dcl import recipes
from dcl.app import refine as work
from dcl.app.cli_fit import follow, say
from dcl.app.monitors import Reading
from dcl.app.source import apart
from dcl.config import changed, check_whole, with_rows
from dcl.runtime.device import pick_device
from dcl.runtime.files import check_writable


def refine(
    folder: Positional[Path],
    out: Path,
    data: str = "",
    labels: str = "",
    clusters: int = 0,
    encoder: str = "",
    recipe: str = "auto",
    epochs: int = 0,
    size: int = 0,
    split: str = "",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Teach two networks with the labels of a finished clustering, as labels that may be wrong.

    The clusters keep their numbers; confidences that were too high come closer to what they are
    worth. The report shows before and after. Method: RUC (dcl fit ruc --help has its settings).

    Args:
        folder: The run folder; or, with --data, a CSV file: file, cluster, perhaps confidence.
        out: The new run folder. The same command continues an interrupted one.
        data: Where the images are: of a run, only if they were moved.
        labels: Only for the report: a CSV file, a .npy file or the word folders, as in evaluate.
        clusters: How many there are, if not as many as the CSV file names.
        encoder: For a CSV file: a pretrained network, such as resnet50; empty: trained here.
        recipe: The recipe of ruc from which the settings come.
        epochs: Of the two networks; 0: the recipe's.
        size: For a CSV file: images are resized to this many pixels a side, as in dcl fit.
        split: For a CSV file: of a data set that has several.
        seed: The same seed on the same machine gives the same clusters.
        device: auto, cpu, cuda.
    """
    out = out.expanduser()
    check_writable(out, "out")
    check_whole("seed", seed, 0)
    check_whole("epochs", epochs, 0)
    place = pick_device(device).type
    if data:
        apart(out, "out", data)
    given = work.read(folder, data, clusters, encoder, size, split, device, Reading(), say)
    if out.resolve() == folder.resolve():
        raise ValueError(f"out must be another folder than the run's; got {str(out)!r}")
    auto = recipes.choose("ruc", given.source.data, device=place)
    config = recipes.recipe("ruc", auto if recipe == "auto" else recipe)
    config = replace(config, n_clusters=given.n_clusters, seed=seed)
    if epochs:
        config = replace(config, train=replace(config.train, epochs=epochs))
    fewer = with_rows(config, len(given.data))
    if less := changed(config, fewer):
        say(f"to fit {len(given.data)} images: {less}")
    return follow(
        out, fewer, False, lambda bar: work.refine(given, fewer, out, labels, device, bar)
    )
