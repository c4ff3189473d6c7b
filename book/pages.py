"""The pages with results or module lists: the text between their marks comes from files alone.

The marks are comments, `<!-- ablations: scan-digits start -->` and the same with `end`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import ablations
import timings
from tables import counted, reproduced, summary, tables

ROOT = Path(__file__).resolve().parent.parent


def modules(room: str) -> str:
    """Return a section for each module of `dcl.<room>`, filled by Sphinx."""
    stems = sorted(path.stem for path in (ROOT / "dcl" / room).glob("[!_]*.py"))
    block = "### {0}\n\n```{{eval-rst}}\n.. automodule:: dcl.{0}\n   :members:\n```"
    return "\n\n".join(block.format(f"{room}.{stem}") for stem in stems)


PAGES: dict[Path, tuple[str, Callable[[str], str]]] = {
    ROOT / "README.md": ("results", lambda _: summary()),
    ROOT / "book" / "results.md": ("results", lambda _: tables(whole=True)),
    ROOT / "book" / "reproduced.md": (
        "published",
        lambda name: reproduced(name) if name else counted(),
    ),
    ROOT / "book" / "ablations.md": ("ablations", ablations.content),
    ROOT / "book" / "speed.md": ("timings", timings.content),
    ROOT / "book" / "api.md": ("modules", modules),
}
"""For each page, the kind of its marks and a function from a mark's name to the text inside."""


def filled(text: str, kind: str, content: Callable[[str], str]) -> str:
    """Return the text with the parts between marks of a kind replaced by `content(name)`."""

    def part(match: re.Match[str]) -> str:
        mark, name = match[1], match[2] or ""
        return f"<!-- {mark} start -->\n\n{content(name)}\n\n<!-- {mark} end -->"

    between = rf"<!-- ({kind}:(?: (\S+))?) start -->\n.*?<!-- \1 end -->"
    return re.sub(between, part, text, flags=re.DOTALL)


def current(path: Path) -> str:
    """Return a page as it should be."""
    return filled(path.read_text(), *PAGES[path])


def write() -> None:
    """Bring all pages up to date."""
    for path in PAGES:
        path.write_text(current(path))


def stale() -> list[str]:
    """Return the names of the pages whose tables differ from the files."""
    return [path.name for path in PAGES if current(path) != path.read_text()]
