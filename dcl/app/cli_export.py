"""`dcl export RUN`: the clusters as folders of links or copies, and a table."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dcl.app.cli_fit import OK
from dcl.app.export import TABLE, export
from dcl.runtime import dist


def export_folders(
    folder: Positional[Path],
    to: Path,
    data: str = "",
    copy: bool = False,
    names: Path | None = None,
    also: tuple[Literal["fiftyone", "parquet"], ...] = (),
) -> int:
    """A folder for each cluster, with links to its images, and everything known in one table.

    Nothing is overwritten, and the same command goes on after an interruption. The table,
    export.csv, also has near-duplicates and outliers.

    Args:
        folder: The run folder; or, with --data, a consensus or a CSV file, such as predict writes.
        to: The folder in which they are put.
        data: Where the images are: of a run, only if they were moved.
        copy: Copies in place of links.
        names: The clusters.csv that was saved from the report; the folders carry these names.
        also: fiftyone (JSON, see the chapter), parquet (needs pyarrow).
    """
    if dist.rank():
        return OK
    found = export(folder, to, data, copies=copy, cluster_names=names, also=also)
    what = "copies" if copy else "links"
    print(
        f"{found.images} images in {found.clusters} folders of {to}: {found.made} new {what}; "
        f"the table is {to / TABLE}"
    )
    return OK
