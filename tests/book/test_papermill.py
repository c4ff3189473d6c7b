"""papermill runs each chapter as the README types it, and mistakes are refused before training."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

from dcl.data.arrays import is_vectors
from dcl.methods import chapter_of, methods
from sabotage import METHODS, tags

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.ipynb"))
EXPLAIN = {chapter_of(method) for method in METHODS}
PAPERMILL = Path(sys.executable).parent / "papermill"


def papermill(chapter: Path, out: Path, *parameters: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [PAPERMILL, chapter, out, "--no-progress-bar"]
    for name, value in zip(parameters[::2], parameters[1::2], strict=True):
        command += ["-p", name, value]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_smoke(chapter, tmp_path):
    """With a seed and a place for the results: from elsewhere, and once as the README types it."""
    out, results = tmp_path / "out.ipynb", tmp_path / "results"
    parameters = ["profile", "smoke", "seed", "1", "results_dir"]
    if chapter.stem == "scan":
        typed = chapter.relative_to(ROOT)
        done = papermill(typed, out, *parameters, str(results), cwd=ROOT)
    else:
        done = papermill(chapter, out, *parameters, "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = code(out)
    (injected,) = [c for c in cells if "injected-parameters" in tags(c)]
    assert 'profile = "smoke"' in injected.source and "seed = 1" in injected.source
    for cell in cells:
        if "verdict" in tags(cell):
            text = "".join(output.get("text", "") for output in cell.outputs)
            assert text.startswith("not claimed in this run: ")
    if chapter.stem in EXPLAIN:
        rows = {path.name: json.loads(path.read_text()) for path in results.glob("*.json")}
        expected = {name for name in methods() if chapter_of(name) == chapter.stem}
        assert expected <= {row["method"] for row in rows.values()}
        for name, row in rows.items():
            assert name == f"{row['method']}-{row['data']}-smoke-seed1.json"
            assert {"ACC", "NMI", "ARI"} <= set(row["metrics"])
            names = {"k-means on pixels", "k-means on PCA", "untrained network"}
            if chapter.stem == "agae":  # whose network is nothing without its graph
                names -= {"untrained network"}
            elif is_vectors(row["data"]):
                names = {"k-means on vectors"}
            assert names <= set(row["baselines"])


@pytest.mark.parametrize("chapter, classes", [("dac", [""]), ("metrics", ["a", "b"])])
def test_smoke_of_a_folder_of_110_images_in_two_sizes(chapter, classes, tmp_path):
    """Without labels, and with the images of a class one after the other."""
    for k, pixels in enumerate(torch.randint(256, (110, 24, 24, 3)).byte().numpy()):
        place = tmp_path / "photos" / classes[k * len(classes) // 110]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[k % 2 :]).save(place / f"{k}.png")
    out = tmp_path / "out.ipynb"
    asked = ["profile", "smoke", "dataset", "folder:photos"]
    done = papermill(CHAPTERS[0].with_stem(chapter), out, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [o.get("text", "") for cell in code(out) for o in cell.outputs]
    assert any("resized to 32 x 32" in text for text in said)
    assert ("no labels, no scores\n" in said) == (classes == [""])


def test_mistakes_are_refused_before_anything_trains(tmp_path):
    out = tmp_path / "out.ipynb"
    done = papermill(CHAPTERS[-1], out, "epoch", "3", cwd=tmp_path)
    assert done.returncode != 0
    assert "epoch is not a parameter of this chapter" in done.stderr
    (failed,) = [c for c in code(out) if any(o.output_type == "error" for o in c.outputs)]
    assert "check" in failed.metadata.tags
