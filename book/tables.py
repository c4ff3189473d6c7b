"""The tables of recorded results in README.md and results.md, written from book/results/*.json."""

import json
from pathlib import Path

from dcl import results

ROOT = Path(__file__).resolve().parent.parent
PLACES = [ROOT / "README.md", ROOT / "book" / "results.md"]
START, END = "<!-- results: start -->", "<!-- results: end -->"
METRICS = ("ACC", "NMI", "ARI")


def table(folder: Path = results.COMMITTED) -> str:
    """Return the Markdown table of the results in a folder, with their baselines."""
    rows = results.load(folder)
    return results.table(rows + results.baselines(rows)) if rows else "No results are recorded yet."


def filled(text: str, content: str) -> str:
    """Return the text with the part between the two marks replaced."""
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    return f"{head}{START}\n\n{content}\n\n{END}{tail}"


def stale_tables() -> list[str]:
    """Return the names of the files whose table is not that of book/results."""
    content = table()
    return [p.name for p in PLACES if filled(p.read_text(), content) != p.read_text()]


def write_tables() -> None:
    """Bring the tables up to date."""
    content = table()
    for path in PLACES:
        path.write_text(filled(path.read_text(), content))


def chapter_lines(name: str, seconds: float, folder: Path) -> str:
    """Return what `make book` says about a chapter that just ran: time, metrics, baselines."""
    text = f"{name:<16} {seconds:5.0f} s"
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        text += f"\n    {row['method'] + ' on ' + row['data']:<26}{_numbers(row['metrics'])}"
        for baseline, metrics in row["baselines"].items():
            text += f"\n    {'  ' + baseline:<26}{_numbers(metrics)}"
    return text


def _numbers(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {metrics[name]:.3f}" for name in METRICS if name in metrics)
