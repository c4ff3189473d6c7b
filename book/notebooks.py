"""Stamp, run and check the chapters: committed notebooks change in no other way.

python book/notebooks.py stamp              write the set-up cell and the metadata
python book/notebooks.py run [NAMES]        execute from a fresh kernel and normalise, in place
    --out DIR                               or write the executed chapters there
    --profile P --results DIR               with these parameters
python book/notebooks.py check              are stamps, tables and recorded results up to date?
python book/notebooks.py results            write the tables of recorded results: README.md,
                                            results.md, ablations.md, speed.md, and outputs
                                            in the chapters
"""

import argparse
import copy
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from dcl.runtime.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}
BADGE = "colab-badge"

SHOWN = "mystnb"
"""The metadata in which a figure's caption, name and alt text stand, for the site."""

FOLDED = {
    "setup": "Set-up in Colab",
    "parameters": "Parameters",
    "check": "Check of the parameters",
    "imports": "Imports",
}
"""Cells that the site folds away, by tag, and what stands on the fold."""

SETUP = """\
# Outside Colab this cell does nothing. In Colab it finds or fetches the
# book and installs tyro, which dcl needs and Colab lacks. Mount your Drive
# before, and long runs are kept in it.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    name = "{folder}"
    places = [Path("/content"), Path("/content/drive/MyDrive")]
    known = [place / name for place in places if (place / name).exists()]
    book = (known or [places[0] / name])[0]
    if not known:
        {fetch}
    sys.path.insert(0, str(book))
    os.environ["PYTHONPATH"] = str(book)  # for !python -m dcl
    if importlib.util.find_spec("tyro") is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "tyro"]
        subprocess.run(pip, check=True)"""

FETCH = """\
get = ["git", "clone", "--quiet", "--depth", "1"]
        url = "{url}"
        subprocess.run([*get, "--branch", "{branch}", url, book], check=True)"""

ASK = """\
raise SystemExit(
            "This copy of the chapter does not know where its book is: "
            f"put the folder of the book, {name}, into your Drive, mount "
            "the Drive, and run this cell again."
        )"""


def address() -> dict[str, str]:
    """Return the public repository from _config.yml; the url is empty while unknown."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    return {"url": config["url"].rstrip("/"), "branch": config["branch"]}


def setup_source(url: str, branch: str) -> str:
    """Return the source of the set-up cell."""
    folder = url.split("/")[-1].removesuffix(".git") or "deep-clustering-book"
    fetch = FETCH.format(url=url, branch=branch) if url else ASK
    return SETUP.replace("{folder}", folder).replace("{fetch}", fetch)


def badge(name: str, url: str, branch: str) -> str:
    """Return the line with the Colab badge, or nothing while the address is unknown."""
    if not url.startswith("https://github.com/"):
        return ""
    repository = url.removeprefix("https://github.com/").removesuffix(".git")
    link = "https://colab.research.google.com/github/"
    link += f"{repository}/blob/{branch}/book/chapters/{name}.ipynb"
    # the book has a launch button of its own: this line is for readers of the bare notebook, and a
    # badge image would make a request to another server when the page opens
    return f'<a class="{BADGE}" href="{link}">Open this chapter in Colab</a>'


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def chapters(book: Path = CHAPTERS.parent) -> dict[str, Path]:
    """The notebooks by name, in the order of the table of contents."""
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    pages = [page["file"] for part in toc.get("parts", [toc]) for page in part["chapters"]]
    return {Path(p).name: book / f"{p}.ipynb" for p in pages if p.startswith("chapters/")}


def paths(names: list[str]) -> list[Path]:
    """Return the chapters with these names (by default all), in order."""
    known = chapters()
    names = [Path(name).stem for name in names] or list(known)
    for name in names:
        if name not in known:
            sys.exit(f"there is no chapter {name!r}; there are {', '.join(known) or 'none yet'}")
    return [known[name] for name in names]


def read(path: Path) -> NotebookNode:
    """Read a notebook as format 4."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook: a reader sees the old one or the new one, never half."""
    write_atomic(path, nbformat.writes(notebook).encode())


def stamped(notebook: NotebookNode, name: str, url: str, branch: str) -> NotebookNode:
    """Return a copy with the book's set-up cell, badge and metadata."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",
            "colab": {"gpuType": "T4", "provenance": []},
            "kernelspec": KERNEL,
            "language_info": LANGUAGE,
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    first = notebook.cells[0]
    lines = [line for line in first.source.splitlines() if f'class="{BADGE}"' not in line]
    text = "\n".join(lines).rstrip()
    line = badge(name, url, branch)
    first.source = f"{text}\n\n{line}" if line else text
    for cell in notebook.cells:
        if "setup" in tags(cell):
            cell.source = setup_source(url, branch)
        for tag in FOLDED.keys() & tags(cell):
            cell.metadata.tags = [tag, "hide-cell"]
    return normalised(notebook)


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without what differs from run to run: times, ids, counters, kernel details."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("papermill", None)
    if "language_info" in notebook.metadata:
        notebook.metadata["language_info"] = dict(LANGUAGE)
    count = 0
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        kept, shown = tags(cell), cell.metadata.get(SHOWN, {})
        for tag in FOLDED.keys() & set(kept):
            shown = {"code_prompt_show": FOLDED[tag], "code_prompt_hide": FOLDED[tag]}
        cell.metadata = nbformat.from_dict({"tags": kept} if kept else {})
        if shown:
            cell.metadata[SHOWN] = shown
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type != "code":
            continue
        count += 1
        if cell.execution_count is not None:
            cell.execution_count = count
        for output in cell.outputs:
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if output.output_type == "execute_result":
                output.execution_count = count
    return notebook


def run(path: Path, out: Path | None, values: dict[str, object]) -> float:
    """Execute one chapter, write it normalised, return the seconds it took.

    Raises papermill's PapermillExecutionError when a cell fails; nothing is written then.
    """
    import papermill

    start = time.perf_counter()
    done = papermill.execute_notebook(
        stamped(read(path), path.stem, **address()),
        None,
        values,
        cwd=path.parent,
        kernel_name=KERNEL["name"],
        progress_bar=False,
        coalesce_streams=True,  # where the pieces of a stream break depends on timing
        execution_timeout=1800,
        extra_arguments=["--IPKernelApp.log_level=40"],  # stderr is for errors
    )
    seconds = time.perf_counter() - start
    done.cells = [cell for cell in done.cells if "injected-parameters" not in tags(cell)]
    write(normalised(done), (out or path.parent) / path.name)
    return seconds


def failure(error: Exception) -> str:
    """Say which cell failed and how, short enough to read."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        source = "\n".join(f"    {line}" for line in error.source.splitlines())
        return f"cell {error.cell_index + 1}:\n{source}\n{error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["stamp", "run", "check", "results"])
    parser.add_argument("names", nargs="*", help="chapters, such as swav (default: all)")
    parser.add_argument("--out", type=Path, help="write executed chapters here, not in place")
    parser.add_argument("--profile", help="smoke, quick, gpu or paper")
    parser.add_argument("--results", type=Path, help="the chapters write their results here")
    chosen = parser.parse_args(arguments)
    if chosen.profile and not chosen.out:
        parser.error("--profile needs --out: a committed chapter is run with its own parameters")

    found = paths(chosen.names)
    if chosen.command == "run":
        values: dict[str, object] = {}
        if chosen.profile:
            values["profile"] = chosen.profile
        if chosen.results:
            values["results_dir"] = str(chosen.results.resolve())
        failed = 0
        for path in found:
            try:
                print(f"{path.stem}  {run(path, chosen.out, values):.1f} s", flush=True)
            except Exception as error:
                failed += 1
                print(f"{path.stem} failed in {failure(error)}", file=sys.stderr, flush=True)
        return int(failed > 0)
    if chosen.command == "results":
        import pages
        from tables import retold

        pages.write()
        for path in found:
            write(normalised(retold(read(path))), path)
        return 0
    if chosen.command == "stamp":
        for path in found:
            write(stamped(read(path), path.stem, **address()), path)
        return 0
    faults = [*stale(found)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


def stale(found: list[Path]) -> Iterator[str]:
    """What is not up to date in chapters, pages and recorded results, a line for each fault."""
    import pages
    from ablations import wrong_ablations
    from tables import retold, wrong_results

    yield from wrong_results()
    yield from wrong_ablations()
    for page in pages.stale():
        yield f"{page}: its tables differ from the recorded results; run `make results`"
    for path in found:
        notebook = read(path)
        if stamped(notebook, path.stem, **address()) != notebook:
            yield f"{path.stem}: its stamp is not current; run `make notebooks`"
        if normalised(retold(notebook)) != normalised(notebook):
            yield f"{path.stem}: its tables differ from the recorded results; run `make results`"


if __name__ == "__main__":
    sys.exit(main())
