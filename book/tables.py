"""The tables of recorded results in README.md and results.md, written from book/results/*.json."""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "book" / "results"
PLACES = [ROOT / "README.md", ROOT / "book" / "results.md"]
START, END = "<!-- results: start -->", "<!-- results: end -->"
METRICS = ("ACC", "NMI", "ARI")


def table(folder: Path = RESULTS) -> str:
    """Return a Markdown table: one row per method, data, split and profile, over all seeds."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        key = tuple(str(row[name]) for name in ("method", "data", "split", "profile"))
        groups.setdefault(key, []).append(row)
    if not groups:
        return "No results are recorded yet."
    lines = [
        "| method | data | split | profile | n | " + " | ".join(METRICS) + " |",
        "|" + "---|" * 5 + "---|" * len(METRICS),
    ]
    for key, rows in sorted(groups.items(), key=lambda item: (item[0][1], item[0][3], item[0][0])):
        cells = [*key, str(len(rows)), *(_cell(rows, name) for name in METRICS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: list[dict], name: str) -> str:
    values = [row["metrics"][name] for row in rows if row["metrics"].get(name) is not None]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


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


def chapter_line(name: str, seconds: float, folder: Path) -> str:
    """Return what `make book` says about a chapter that just ran: time, metrics, baselines."""
    line = f"{name:<16} {seconds:5.0f} s"
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        label = f"{row['method']} on {row['data']}"
        line += f"\n    {label:<34}{_numbers(row['metrics'])}"
        for baseline, metrics in (row.get("baselines") or {}).items():
            line += f"\n      {baseline:<32}{_numbers(metrics)}"
    return line


def _numbers(metrics: dict) -> str:
    return "  ".join(f"{k} {metrics[k]:.3f}" for k in METRICS if metrics.get(k) is not None)
