"""Arrows point down, files stay small, a method is three files."""

import ast
import io
import textwrap
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dcl"

FLOORS = [
    {"config", "runtime"},
    {"data", "views"},
    {"cluster", "optim", "train"},
    {"nets", "measure", "algorithm"},
    {"methods"},
    {"recipes"},
    {"notebook"},
    {"app"},
]
"""The rooms of dcl, files and folders: one imports from its own floor and from those above."""

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.stem.startswith("__")]
METHODS = [path for path in FILES if path.parent.name == "methods"]
CORE = [path for path in FILES if path.parent.name not in ("methods", "recipes")]
IN_PACKAGE = {"data.load", "views.view"}
"""Files whose names their package hands on, documented there."""


def name_of(path: Path) -> str:
    """data.load of dcl/data/load.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def floor(name: str) -> int:
    room = name.split(".")[0]
    places = [k for k, rooms in enumerate(FLOORS) if room in rooms]
    assert places, f"dcl/{room} has no floor: enter it in tests/test_layout.py"
    return places[0]


def imported(tree: ast.AST) -> set[str]:
    """The modules of dcl that a file names anywhere, also inside functions, without "dcl."."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("dcl.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dcl":
            for alias in node.names:  # a file of the package, or a name in it
                inner = f"{node.module}.{alias.name}"
                place = PACKAGE.joinpath(*inner.split(".")[1:])
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                found.add(inner if is_module else node.module)
    return {name.removeprefix("dcl.") for name in found if name != "dcl"}


def arrows(source: str, own: str) -> list[str]:
    """The imports of dcl.`own` that point up."""
    found = sorted(imported(ast.parse(source)))
    return [f"{own} imports {name}" for name in found if floor(name) > floor(own)]


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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_point_down(path):
    assert not arrows(path.read_text(), name_of(path))


def in_order(needs: dict[str, set[str]]) -> bool:
    """Whether the files can be put in an order in which each needs only earlier ones."""
    done: set[str] = set()
    while free := {name for name in needs if name not in done and needs[name] <= done}:
        done |= free
    return len(done) == len(needs)


def test_no_file_needs_itself_on_a_detour():
    needs = {name_of(p): imported(ast.parse(p.read_text())) for p in FILES}
    packages = {
        p.parent.name: imported(ast.parse(p.read_text())) for p in PACKAGE.glob("*/__init__.py")
    }
    assert in_order(needs | packages)
    assert not in_order({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_the_arrow_test_can_fail():
    assert arrows("from dcl.train import train", "data.load") == ["data.load imports train"]
    assert arrows("def f():\n    import dcl.methods.scan", "train")
    assert not arrows("from dcl import kmeans\nfrom dcl.runtime.dist import all_sum", "train")


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_file_fits(path):
    assert code_lines(path.read_text()) <= 200


@pytest.mark.parametrize("path", METHODS, ids=name_of)
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


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_loss_fits_in_twenty_lines(path):
    losses = [f for f in functions(path) if f.name.endswith("loss")]
    assert {f.name: length(path, f) for f in losses if length(path, f) > 20} == {}


def test_the_loop_fits_on_a_screen():
    path = PACKAGE / "train.py"
    (train,) = [f for f in functions(path) if f.name == "train"]
    assert length(path, train) <= 60


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_method_is_three_files(path):
    assert (ROOT / "tests" / "methods" / f"test_{path.stem}.py").exists()
    if path.stem in ("simclr", "rotnet", "autoencoder"):
        return  # pretexts: explained in the chapters that need them
    chapters = list((ROOT / "book" / "chapters").glob(f"{path.stem}.ipynb"))
    assert len(chapters) == 1
    assert (ROOT / "tests" / "methods" / f"sabotage_{path.stem}.json").exists()


def names_defined(tree: ast.Module) -> set[str]:
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_a_method_file_has_its_parts(path):
    tree = ast.parse(path.read_text())
    assert {"Config", "fit", "PROFILES"} <= names_defined(tree)
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", METHODS, ids=name_of)
def test_labels_never_enter_fit(path):
    (fit,) = [f for f in functions(path) if f.name == "fit"]
    arguments = [a.arg for a in [*fit.args.args, *fit.args.kwonlyargs]]
    assert arguments[:2] == ["images", "config"]
    assert not {"labels", "y", "data", "targets"} & set(arguments)


def test_api_page_lists_every_module():
    page = (ROOT / "book" / "api.md").read_text()
    wanted = {name_of(path) for path in FILES} - IN_PACKAGE | {
        name.split(".")[0] for name in IN_PACKAGE
    }
    missing = [name for name in wanted if f".. automodule:: dcl.{name}\n" not in page]
    assert not missing
