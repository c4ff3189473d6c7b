"""Draw the landing page's before and after: python book/before_after.py (about a minute)."""

import argparse
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image
from sklearn.cluster import KMeans

from dcl.app.clusters import Clusters
from dcl.data import load
from dcl.measure import plots
from dcl.measure.metrics import accuracy, match

ROOT = Path(__file__).resolve().parent.parent
CARD = "#F7F7F5"  # the ground of the drawings: text on it reads on a light and on a dark page


def plane(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N,D) on the plane by t-SNE (seeded), (N,2), scaled to 0..1."""
    at = plots.plane(vectors)
    return (at - at.min(0)) / np.ptp(at, axis=0)


def apart(at: np.ndarray, distance: float) -> list[int]:
    """Rows of places (N,2), each at least `distance` from those before it."""
    kept: list[int] = []
    for i, place in enumerate(at):
        if not kept or np.linalg.norm(at[kept] - place, axis=1).min() >= distance:
            kept.append(i)
    return kept


def draw(name: str) -> plt.Figure:
    """Digits by their pixels and by a published network's embedding, in their clusters' colours.

    An image whose place is taken is left out. The true labels only give the two numbers.
    """
    data = load("digits")
    pixels = data.images.flatten(1).numpy() / 255
    found = Clusters.load(name).assign(data.images)
    after = found.clusters.numpy()
    before = KMeans(10, n_init=10, random_state=0).fit_predict(pixels)
    # each cluster of k-means takes the colour of the cluster that shares most images with it
    order = match(after, before)
    method = name.split("-")[0].upper()
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 4.1), facecolor=CARD, layout="constrained")
    for ax, vectors, clusters, title in (
        (axes[0], pixels, np.array([order[k] for k in before]), "k-means on the pixels"),
        (axes[1], found.vectors.numpy(), after, f"{method}, without labels"),
    ):
        at, half = plane(vectors), 0.024
        for i in apart(at, distance=1.3 * half):
            ink = np.empty((16, 16, 4))
            ink[..., :3], ink[..., 3] = (
                to_rgb(plots.COLOURS[clusters[i]]),
                pixels[i].reshape(16, 16),
            )
            x, y = at[i]
            ax.imshow(ink, extent=(x - half, x + half, y - half, y + half), aspect="auto")
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_axis_off()
        score = accuracy(data.labels, clusters)
        ax.set_title(f"{title}\naccuracy {score:.2f}".replace("0.", "."), fontsize=15)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="scan-digits-quick-seed0")
    parser.add_argument("--out", type=Path, default=ROOT / "book" / "assets" / "before-after.png")
    chosen = parser.parse_args()
    buffer = io.BytesIO()
    draw(chosen.weights).savefig(buffer, dpi=200)
    Image.open(buffer).convert("RGB").quantize(128).save(chosen.out, optimize=True)
