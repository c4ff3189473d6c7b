"""Arrows point down, files stay small, a method is three files."""

import ast
import io
import textwrap
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dcl"

LEVELS = [
    {"dist", "augment", "nets", "data", "metrics", "kmeans", "neighbors", "pairs"},
    {"sinkhorn", "optim", "health", "checkpoint", "device", "randomness"},
    {"train"},
    {"evaluate", "pretrained", "features", "choose"},
    {"methods"},
    {"plots", "show", "results", "publish"},
    {"report", "progress", "assignments", "source"},
    {"run"},
    {"estimator", "cli"},
]
"""A file imports from levels above it, or from files that it is made of (PARTS)."""

PARTS = {
    "nets": {"coders"},
    "augment": {"warp", "color", "randaugment", "ricap"},
    "report": {"report_clusters"},
    "cli": {"cli_fit"},
    "data": {"shapes", "folder", "download", "cache", "listing", "vectors"},
}
"""Files split off so that each fits on its page: they belong to the level of their file."""

CORE = [path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
METHODS = [path for path in (PACKAGE / "methods").glob("*.py") if path.stem != "__init__"]


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def level(name: str) -> int:
    for owner, parts in PARTS.items():
        if name in parts:
            name = owner
    places = [k for k, names in enumerate(LEVELS) if name in names]
    assert places, f"dcl/{name}.py has no level: enter it in tests/test_layout.py"
    return places[0]


def imported(tree: ast.AST) -> set[str]:
    """The modules of dcl that a file names anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dcl")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcl"):
            inside = node.module in ("dcl", "dcl.methods")
            found |= {f"{node.module}.{a.name}" if inside else node.module for a in node.names}
    return {name for name in found if name != "dcl"}


def arrows(source: str, own: str) -> list[str]:
    """The imports of dcl.`own` that point up."""
    found = sorted(imported(ast.parse(source)))
    return [f"{own} imports {name}" for name in found if level(name.split(".")[1]) > level(own)]


def code_lines(source: str) -> int:
    """Lines of code: docstrings, comments and blank lines do not count."""
    tree = ast.parse(source)
    texts = set()
    for node in ast.walk(tree):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str):
            texts |= set(range(node.lineno, node.end_lineno + 1))
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skip and token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def without_recipes(source: str) -> str:
    """The source without PROFILES and the constants that they are made of: these are data."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_arrows_point_down(path):
    assert not arrows(path.read_text(), path.stem)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_method_arrows_point_down(path):
    assert not arrows(path.read_text(), "methods")


def in_order(needs: dict[str, set[str]]) -> bool:
    """Whether the files can be put in an order in which each needs only earlier ones."""
    done: set[str] = set()
    while free := {name for name in needs if name not in done and needs[name] <= done}:
        done |= free
    return len(done) == len(needs)


def test_no_file_needs_itself_on_a_detour():
    names = {f"dcl.{p.stem}": p for p in CORE} | {f"dcl.methods.{p.stem}": p for p in METHODS}
    assert in_order({n: imported(ast.parse(p.read_text())) for n, p in names.items()})
    assert not in_order({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_the_arrow_test_can_fail():
    assert arrows("from dcl.train import train", "kmeans") == ["kmeans imports dcl.train"]
    assert arrows("def f():\n    import dcl.methods.scan", "train")
    assert not arrows("from dcl import kmeans\nfrom dcl.dist import all_sum", "train")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_file_fits(path):
    assert code_lines(path.read_text()) <= 200


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_method_file_fits(path):
    assert code_lines(without_recipes(path.read_text())) <= 150


def test_lines_of_code_are_counted_without_words():
    assert (
        code_lines(
            '"""a\nb"""\n\n# c\nx = 1  # d\n\n\ndef f():\n    """g"""\n    return (\n        x)\n'
        )
        == 4
    )


def length(path: Path, function: ast.FunctionDef) -> int:
    source = ast.get_source_segment(path.read_text(), function, padded=True) or ""
    return code_lines(textwrap.dedent(source))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_loss_fits_in_twenty_lines(path):
    losses = [f for f in functions(path) if f.name.endswith("loss")]
    assert {f.name: length(path, f) for f in losses if length(path, f) > 20} == {}


def test_the_loop_fits_on_a_screen():
    path = PACKAGE / "train.py"
    (train,) = [f for f in functions(path) if f.name == "train"]
    assert length(path, train) <= 60


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_three_files(path):
    assert (ROOT / "tests" / "methods" / f"test_{path.stem}.py").exists()
    if path.stem in ("simclr", "rotnet", "autoencoder"):
        return  # pretexts: explained in the chapters that need them
    chapters = list((ROOT / "book" / "chapters").glob(f"[0-9][0-9]-{path.stem}.ipynb"))
    assert len(chapters) == 1
    assert (ROOT / "tests" / "methods" / f"sabotage_{path.stem}.json").exists()


def names_defined(tree: ast.Module) -> set[str]:
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_file_has_its_parts(path):
    tree = ast.parse(path.read_text())
    assert {"Config", "fit", "PROFILES"} <= names_defined(tree)
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_labels_never_enter_fit(path):
    (fit,) = [f for f in functions(path) if f.name == "fit"]
    arguments = [a.arg for a in [*fit.args.args, *fit.args.kwonlyargs]]
    assert arguments[:2] == ["images", "config"]
    assert not {"labels", "y", "data", "targets"} & set(arguments)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_each_core_file_has_a_test(path):
    parts = {part: owner for owner, names in PARTS.items() for part in names}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests").glob("test_*.py")}
    assert {path.stem, parts.get(path.stem)} & tests


def test_api_page_lists_every_module():
    page = (ROOT / "book" / "api.md").read_text()
    wanted = [f"dcl.{p.stem}" for p in CORE] + [f"dcl.methods.{p.stem}" for p in METHODS]
    missing = [name for name in wanted if f".. automodule:: {name}\n" not in page]
    assert not missing
