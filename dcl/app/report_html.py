"""What the report is made of: a page that loads nothing, its pictures, and safe texts."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dcl.measure import plots

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
"""What the page may load: nothing but what is written in it."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d2125; --soft: #59636e; --line: #d5dae0;
  --box: #f5f7f9; --link: #1a65a3; --good: #00724f; --bad: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --text: #e4e7ea; --soft: #a4adb6;
  --line: #353c44; --box: #1e2328; --link: #79bdf2; --good: #3ecf9d; --bad: #ff9c57; } }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
article { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .2rem 0 .6rem; } h2 { margin: 2.6rem 0 .6rem; }
h3 { margin: 0; } p { margin: .5rem 0; max-width: 44rem; } a { color: var(--link); }
.soft, figcaption { color: var(--soft); font-size: .9rem; } img { max-width: 100%; height: auto; }
.light { border-left: .3rem solid var(--good); background: var(--box); padding: .6rem 1rem;
  margin: .6rem 0; } .light b { color: var(--good); }
.on { border-color: var(--bad); } .on b { color: var(--bad); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 1.5rem; } figure { margin: 1rem 0; min-width: 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; } td { vertical-align: top;
  padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
td:last-child { overflow-wrap: anywhere; padding-right: 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; } nav a { padding: .15rem .6rem; background:
  var(--box); border: 1px solid var(--line); border-radius: 1rem; text-decoration: none; }
section { border-top: 1px solid var(--line); padding: 1rem 0; margin-top: 1rem; }
.cluster { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .cluster figure { margin: .5rem 0; }
.pixels { image-rendering: pixelated; } summary { cursor: pointer; padding: .3rem 0; }
.names { columns: 16rem; padding-left: 3rem; font-size: .85rem; } code { font-size: .9em; }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page around `body`, which is HTML; `title` is any text."""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{text(title)}</title><style>{STYLE}</style></head><body><article>
{body}
</article></body></html>
"""


def text(value: object) -> str:
    """Any text as HTML that shows it: escaped, with what cannot be printed written out."""
    joiners = "\u200c\u200d"  # part of correct spelling in several scripts
    seen = (
        c if c.isprintable() or c in joiners else c.encode("unicode_escape").decode()
        for c in str(value)
    )
    return html.escape("".join(seen))


def contact_sheet(
    images: Tensor, rows: Sequence[int], columns: int, show: int, most: int = 64
) -> str:
    """Rows of images uint8 (N,C,H,W) as one picture, an <img> with the picture inside.

    Each is kept at its size, or made smaller until its longer side has `most` pixels; on the page
    it is `show` pixels wide. Grey sets become PNG, colours JPEG.
    """
    from PIL import Image

    high, wide = images.shape[2:]
    shrink = min(1.0, most / max(high, wide))
    size = max(1, round(wide * shrink)), max(1, round(high * shrink))
    mode, kind, how = ("L", "png", {}) if images.shape[1] == 1 else ("RGB", "jpeg", {"quality": 80})
    columns = min(columns, len(rows))
    gap = max(1, size[0] // 24)
    across, down = size[0] + gap, size[1] + gap
    area = columns * across - gap, -(-len(rows) // columns) * down - gap
    sheet = Image.new(mode, area, (128,) * len(mode) if mode == "RGB" else 128)
    for k, row in enumerate(rows):
        a = images[row].cpu().numpy()
        tile = Image.fromarray(a[0] if len(a) == 1 else a.transpose(1, 2, 0))
        if tile.size != size:
            tile = tile.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(tile, (k % columns * across, k // columns * down))
    data = io.BytesIO()
    sheet.save(data, kind, optimize=True, **how)
    shown = round(area[0] * show / size[0])
    css = ' class="pixels"' if mode == "L" and show > 2 * size[0] else ""
    alt = f"{len(rows)} images, {columns} in a row"
    return f'<img{css} width="{shown}" alt="{alt}" src="{_uri(data, kind)}">'


def _uri(data: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def figure(drawing: Any, alt: str, caption: str, size: tuple[float, float] | None = None) -> str:
    """A matplotlib figure as one picture, then closed; `caption` is HTML, `alt` any text."""
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    if size:  # of the chapters' figures, so that words stay large on a telephone
        drawing.set_size_inches(*size)
    drawing.savefig(data, format="png", dpi=150)
    wide = round(drawing.get_figwidth() * 100)
    plt.close(drawing)
    image = f'<img width="{wide}" alt="{text(alt)}" src="{_uri(data, "png")}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def confidence_histogram(probabilities: Tensor) -> Any:
    """How sure each image's assignment is: a histogram of the largest of its (N,K) numbers."""
    p = probabilities.float().numpy()
    drawing, axes = plots.canvas(1, 1, (6.0, 2.4))
    ax = axes[0, 0]
    counts, edges = np.histogram(p.max(1), bins=25, range=(0, 1))
    ax.bar(edges[:-1], counts, 0.036, align="edge", color=plots.COLOURS[0])
    ax.axvline(1 / p.shape[1], color=plots.COLOURS[5], linestyle="--", linewidth=1.2)
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"largest probability (dashed: 1/{p.shape[1]}, a guess)")
    ax.set_ylabel("images")
    return drawing


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of any texts as an HTML table, which scrolls when it is too wide."""
    cells = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table>{lines}</table></div>'
