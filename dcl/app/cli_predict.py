"""`dcl predict RUN DATA`: the clusters of new images."""

import sys
from pathlib import Path

from tyro.conf import Positional

from dcl.app import assignments, run
from dcl.app.cli_fit import OK, say
from dcl.app.source import Source
from dcl.data.arrays import is_vectors
from dcl.runtime import dist
from dcl.runtime.device import pick_device
from dcl.runtime.files import check_writable, write_atomic


def predict(
    folder: Positional[Path],
    data: Positional[str],
    out: Path | None = None,
    split: str = "",
    device: str = "auto",
) -> int:
    """The clusters of new images, as CSV: file, cluster, confidence, distance to the prototype.

    A large distance means: unlike anything in the training set, however high the confidence.

    Args:
        folder: The run folder, or a network in the package (dcl list names them).
        data: A folder of images, the name of a data set, or a .npy file, as in training.
        out: The file to write; by default the lines go to standard output.
        split: Of a data set that has several: train, test, train+test.
        device: auto, cpu, cuda.
    """
    if out:
        check_writable(out, "out", file=True)
    clusters = run.clusters(folder, device=device)
    if clusters.vectors != is_vectors(data):
        kind = "a .npy file of vectors (N,d)" if clusters.vectors else "images"
        raise ValueError(f"data must be {kind}, as in training; got {data!r}")
    *_, height, width = 0, *clusters.shape  # (d,) for vectors, which have no side
    new = Source(data, split, height if height == width else 0).load(scale=clusters.scale, tell=say)
    if not clusters.vectors and new.channels != clusters.shape[0]:
        say(f"read as {'grey' if clusters.shape[0] == 1 else 'colour'} images, as in training")
    found = clusters.assign(new.images.to(pick_device(device)))
    lines = assignments.table(assignments.names(new), found)
    if out and dist.rank() == 0:
        write_atomic(out.resolve(), lines)  # follows a link instead of replacing it
    elif not out:
        sys.stdout.buffer.write(lines)
        sys.stdout.flush()
    return OK
