"""The clusters of a run as folders of links or copies, and one table of everything known.

The folder that is written::

    03 cats/IMG_0007.jpg    a link to the image, or a copy; the name only if one was given
    export.csv              file, cluster, name, confidence, distance, duplicate, outlier, exported
    fiftyone.json           for FiftyOne, if asked for
    export.parquet          the same table, if asked for

Nothing that is there is overwritten but these tables, and they only if an export wrote them. The
table is written first, so that an interrupted export goes on under the same names.
"""

import filecmp
import importlib.util
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dcl.app.assignments import assigned, csv_bytes, names, read_csv
from dcl.app.ensemble import table_of
from dcl.app.export_tables import HEAD, fiftyone, parquet
from dcl.app.settings import located
from dcl.app.source import apart
from dcl.data.files import listed, named, printable
from dcl.runtime.files import check_writable, write_atomic

TABLE, LABELS, PARQUET = "export.csv", "fiftyone.json", "export.parquet"
LONGEST = 200  # bytes of a file name, of which most systems allow 255


@dataclass(frozen=True)
class Exported:
    """What an export has done."""

    images: int
    clusters: int
    made: int  # links or copies that were not there before


def export(
    place: str | Path,
    to: str | Path,
    data: str = "",
    *,
    copies: bool = False,
    cluster_names: str | Path | None = None,
    also: Sequence[str] = (),
) -> Exported:
    """Put the images of a run into a folder for each cluster, as links, and write a table.

    place: a run folder, whose images are checked by content, as in `dcl.app.settings.located`; or,
    with data, the folder of a consensus or a CSV file with file and cluster, as `dcl predict`
    writes it. data: where the images are, if they were moved. copies: in place of links.
    cluster_names: a CSV file with cluster and name, as the report saves it. also: fiftyone,
    parquet. Raises FileNotFoundError and ValueError
    before anything is written: no such images, a folder that holds another export or, under a name
    that is needed, a file of somebody else. Chapter: your-images.
    """
    to = named("to", to)
    check_writable(to, "to")
    if "parquet" in also and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("pyarrow must be installed for parquet: pip install pyarrow")
    table, top, files = _images(place, data)
    apart(to, "to", str(top))
    if top.resolve() in to.resolve().parents:  # the next run would read its links as images
        raise ValueError(f"to must lie outside the images' folder, {str(top)!r}; got {str(to)!r}")
    rows = _rows(table, files, cluster_names)
    kept = _kept(to)
    _name(rows, kept)
    paths = _paths(top, files)
    wanted = [(paths[row["file"]], to / row["exported"]) for row in rows]
    ours = {to / row["exported"] for row in kept.values()}
    todo = [(source, target) for source, target in wanted if not _there(source, target, copies)]
    for source, target in todo:
        if os.path.lexists(target) and not (target in ours and _replaceable(source, target)):
            raise ValueError(
                f"to must have no other file where {str(source)!r} is to be put; there is "
                f"{str(target)!r}"
            )
    every = [*rows, *(row for file, row in kept.items() if file not in paths)]
    write_atomic(to / TABLE, csv_bytes(HEAD, ([row[key] for key in HEAD] for row in every)))
    for source, target in todo:
        _put(source, target, copies)
    if "fiftyone" in also:
        write_atomic(to / LABELS, fiftyone(every))
    if "parquet" in also:
        write_atomic(to / PARQUET, parquet(every))
    return Exported(len(rows), len({row["cluster"] for row in rows}), len(todo))


# ---------------------------------------------------------------- what is exported


def _images(place: str | Path, data: str) -> tuple[Path, Path, list[str]]:
    """The table of assignments, the folder of the images, and their files, in order."""
    table = table_of(place)
    run = table.parent if Path(place).is_dir() else None
    if run and (run / "config.json").is_file():
        settings, images = located(run, data)
        top, files = Path(settings.source.data.removeprefix("folder:")), names(images)
        if images.files is None:
            raise ValueError(
                f"run must be of a folder of images, whose files can be linked; {str(place)!r} is "
                f"of {settings.source.data}: its clusters are in {table}"
            )
        return table, top, files
    if not data:
        raise ValueError(f"data must say where the images of {str(place)!r} are")
    top = named("data", data.removeprefix("folder:"))
    if not top.is_dir():
        raise ValueError(f"data must be an existing folder of images; got {data!r}")
    return table, top, [file for (file,) in read_csv(table, "file")]


def _rows(
    table: Path, files: Sequence[str], cluster_names: str | Path | None
) -> list[dict[str, Any]]:
    """A row of the table for each file; "exported" is its folder yet."""
    clusters, confidence = assigned(table, files)
    away = _column(table, "distance")
    pairs = read_csv(cluster_names, "cluster", "name") if cluster_names else []
    called = {cluster: name for cluster, name in pairs}  # noqa: C416
    if strange := [k for k in called if not k.isdecimal()]:
        raise ValueError(f"{cluster_names}: cluster must be a whole number; got {strange[0]!r}")
    own = table.name == "assignments.csv"  # in a run folder; predictions may lie there, too
    twins = _column(table.with_name("duplicates.csv"), "other") if own else {}
    odd = _column(table.with_name("outliers.csv"), "times") if own else {}
    rows = []
    for file, k, sure in zip(files, clusters.tolist(), confidence.tolist(), strict=True):
        name = called.get(str(k), "").strip()
        safe = "".join(c if c.isalnum() or c in " -_.,()&+" else "_" for c in name)[:60]
        rows.append({
            "file": file,
            "cluster": str(k),
            "name": name,
            "confidence": f"{sure:.4f}",
            "distance": away.get(file, ""),
            "duplicate": twins.get(file, ""),
            "outlier": odd.get(file, ""),
            "exported": f"{k:02d} {safe}".rstrip(" ."),
        })  # fmt: skip
    return rows


def _column(path: Path, name: str) -> dict[str, str]:
    """A column of a CSV file, by file; of several rows the first. Empty if it is not there."""
    try:
        return {f: v for f, v in reversed(read_csv(path, "file", name))}  # noqa: C416
    except (FileNotFoundError, ValueError):
        return {}


def _paths(top: Path, files: Sequence[str]) -> dict[str, Path]:
    """Where the files are. Names that are not valid text are looked up as `printable` has them."""
    top = Path(os.path.abspath(top))
    found = {file: top / file for file in files}
    if any(not path.is_file() for path in found.values()):
        known = {printable(file.name): top / file.name for file in listed(top, [""])[0]}
        found = {f: p if p.is_file() else known.get(f, p) for f, p in found.items()}
        if lacking := [file for file, path in found.items() if not path.is_file()]:
            raise FileNotFoundError(
                f"data must hold the {len(files)} images that are to be exported; {str(top)!r} "
                f"lacks {len(lacking)}, such as {lacking[0]!r}"
            )
    return found


# ---------------------------------------------------------------- where it goes


def _kept(to: Path) -> dict[str, dict[str, str]]:
    """The rows of an earlier export in the same folder, by file."""
    path = to / TABLE
    for name in (LABELS, PARQUET):
        if (to / name).exists() and not path.exists():
            raise ValueError(f"to must be a new folder or hold an export; there is another {name}")
    if not path.exists():
        return {}
    rows = [dict(zip(HEAD, row, strict=True)) for row in read_csv(path, *HEAD)]
    return {row["file"]: row for row in rows}


def _name(rows: list[dict[str, Any]], kept: Mapping[str, Mapping[str, str]]) -> None:
    """Give each row its place below the folder, other than all others without their endings.

    The file's own name if it is the only one in its cluster, else its path. Raises ValueError when
    an earlier export has put an image into another folder.
    """
    stems = Counter(_stem(f"{row['exported']}/{PurePosixPath(row['file']).name}") for row in rows)
    taken = {_stem(row["exported"]) for row in kept.values()}
    for row in rows:
        folder, path = row["exported"], PurePosixPath(row["file"])
        if row["file"] in kept:
            place = kept[row["file"]]["exported"]
            if place.partition("/")[0] != folder:
                raise ValueError(
                    f"to must be a new folder, or hold an export of the same clusters; there "
                    f"{row['file']!r} is in {place.partition('/')[0]!r}, now in {folder!r}"
                )
        else:
            place = f"{folder}/{path.name}"
            if stems[_stem(place)] > 1 or _stem(place) in taken:
                place = f"{folder}/{'__'.join(path.parts)}"
            if _stem(place) in taken or len(os.fsencode(place)) - len(folder) > LONGEST:
                short = path.stem.encode()[: LONGEST // 2].decode("utf-8", "ignore")
                place = f"{folder}/{short}~{zlib.crc32(row['file'].encode()):08x}{path.suffix}"
            taken.add(_stem(place))
        row["exported"] = place


def _stem(place: str) -> str:
    # FiftyOne knows images by their path without the ending; some systems by no capitals
    return str(PurePosixPath(place).with_suffix("")).casefold()


def _there(source: Path, target: Path, copies: bool) -> bool:
    """Whether an earlier export has put an image there, and nobody has changed it."""
    if copies:
        return target.is_file() and not target.is_symlink() and filecmp.cmp(source, target)
    return target.is_symlink() and os.readlink(target) == str(source)


def _replaceable(source: Path, target: Path) -> bool:
    """Whether a link of ours leads to the same image, of which a copy is wanted, or nowhere."""
    return target.is_symlink() and (not target.exists() or os.readlink(target) == str(source))


def _put(source: Path, target: Path, copies: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        if copies:
            shutil.copy2(source, partial)
        else:
            os.symlink(source, partial)
        os.replace(partial, target)
    except OSError as error:
        hint = "" if copies else "; if this place takes no links, --copy makes copies"
        text = f"could not put {str(source)!r} at {str(target)!r}: {error.strerror or error}{hint}"
        raise OSError(error.errno, text) from error
    finally:
        partial.unlink(missing_ok=True)
