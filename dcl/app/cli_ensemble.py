"""`dcl ensemble RUN RUN ...`: several clusterings of the same images become one."""

from pathlib import Path

from tyro.conf import Positional

from dcl.app import ensemble as work
from dcl.app.cli_fit import OK, WARNING, say
from dcl.app.monitors import Reading
from dcl.app.report_ensemble import write
from dcl.app.source import apart
from dcl.config import check_whole
from dcl.runtime import dist
from dcl.runtime.files import check_writable
from dcl.runtime.versions import versions


def ensemble(
    members: Positional[list[Path]],
    out: Path,
    data: str = "",
    clusters: int = 0,
    method: str = "evidence",
    split: str = "",
    seed: int = 0,
) -> int:
    """One clustering out of several of the same images, and how far they agree on each image.

    For runs with other seeds or methods, or anybody's assignments. The confidence of an image is
    the share of the members that put it where the consensus does: the lowest are worth a look.

    Args:
        members: Run folders, or CSV files with the columns file and cluster; two or more.
        out: The folder for assignments.csv and report.html.
        data: Where the images are, to be shown; of runs, only if they were moved.
        clusters: How many; 0: as many as the members have, if they have the same number.
        method: evidence (which images are often together), spectral, majority (a vote).
        split: With --data: of a data set that has several.
        seed: Of spectral: the same seed gives the same clusters.
    """
    out = out.expanduser()
    check_writable(out, "out")
    check_whole("clusters", clusters, 0)
    check_whole("seed", seed, 0)
    if method not in work.METHODS:
        raise ValueError(f"method must be one of {', '.join(work.METHODS)}; got {method!r}")
    if data:
        apart(out, "out", data)
    if (out / "config.json").exists() or out.resolve() in {p.resolve() for p in members}:
        raise ValueError(f"out must be a folder of its own; {str(out)!r} holds a run or a member")
    found = work.read(members, data, split, Reading(), say)
    k = clusters or work.of_all(found.n_clusters, "clusters")
    made = work.ensemble(found.labels, k, method, seed)
    if dist.rank():
        return OK
    about = {"members": len(members), "method": method, "clusters": k, **versions()}
    about |= {"seed": seed} if method == "spectral" else {}
    lights = write(out, found, made, about)
    whole = float((made.agreement == 1).float().mean())
    print(
        f"{len(found.files)} {found.noun}s in {len(made.clusters.unique())} clusters; all "
        f"{len(members)} members agree on {whole:.1%}"
    )
    for warning in lights:
        print(f"warning: {warning}")
    print(f"look at {out / 'report.html'}")
    return WARNING if lights else OK
