"""Arrays in, matplotlib figure out. matplotlib is imported when a plot is drawn, not before.

Figures are transparent with mid-grey text, which is legible on white and near-black pages, and use
colours after Okabe & Ito, safe for colour-blind readers. The notebook calls `plt.show()`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

GREY = "#808080"
# fmt: off
COLOURS = ["#2F86C9", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
           "#D55E00", "#B8A900", "#9467BD", "#8C8C8C", "#17BECF"]
# fmt: on


def canvas(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.4)) -> Any:
    """A transparent figure and its axes (rows, columns), with grey ticks, spines and labels."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.patch.set_alpha(0)
    for ax in axes.flat:
        ax.patch.set_alpha(0)
        ax.tick_params(colors=GREY, labelsize=9)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GREY)
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
            text.set_color(GREY)
    return figure, axes


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _show(ax: Any, image: np.ndarray) -> None:
    # one image (C,H,W), uint8 or float in [0,1]
    a = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    a, top = (a, 255) if a.dtype == np.uint8 else (a.clip(0, 1), 1)
    ax.imshow(a, cmap="gray", vmin=0, vmax=top, interpolation="nearest")


def _legend(ax: Any, **kw: Any) -> None:
    ax.legend(frameon=False, labelcolor=GREY, fontsize=9, **kw)


def grid(
    images: Any, titles: Sequence[object] | None = None, columns: int = 8, scale: float = 0.9
) -> Any:
    """Images (N,C,H,W), uint8 or float in [0,1], C of 1 or 3, side by side; a title over each."""
    a = _array(images)
    if a.ndim != 4 or a.shape[1] not in (1, 3) or len(a) == 0:
        raise ValueError(f"images must be (N,1,H,W) or (N,3,H,W); got {a.shape}")
    columns = min(columns, len(a))
    rows = -(-len(a) // columns)
    high = scale * (1.3 if titles is not None else 1.0)
    figure, axes = canvas(rows, columns, (scale * columns, high * rows))
    for k, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if k >= len(a):
            continue
        _show(ax, a[k])
        if titles is not None and k < len(titles):
            ax.set_title(str(titles[k]), fontsize=9, color=GREY, pad=3)
    return figure


def loss_curve(
    history: Sequence[Mapping[str, Any]],
    keys: Sequence[str] | None = None,
    chance: float | None = None,
) -> Any:
    """Losses over epochs from `train`'s history; `chance` draws a dashed line, such as ln K.

    history: one mapping per epoch, which it counts from 0 and the axis from 1, as a log does;
    without `keys`, every number in it whose name contains "loss" or, if there is none, every
    number except epoch and time.
    """
    if not history:
        raise ValueError("history must hold one entry per epoch or more; got none")
    numbers = [k for k, v in history[-1].items() if isinstance(v, int | float)]
    keys = keys or [k for k in numbers if "loss" in k.lower()]
    keys = keys or [k for k in numbers if k not in ("epoch", "seconds", "lr")]
    figure, axes = canvas()
    ax = axes[0, 0]
    for n, key in enumerate(keys):
        points = [(h.get("epoch", i) + 1, h[key]) for i, h in enumerate(history) if key in h]
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=COLOURS[n % 10], label=key, marker="o" if len(x) < 3 else None)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if chance is not None:
        ax.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"chance {chance:.2f}")
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    _legend(ax)
    return figure


def health_panel(health: Any) -> Any:
    """Cluster sizes on the left, the measures of `dcl.measure.health.health` on the right."""
    figure, axes = canvas(1, 2, (6.8, 2.9))
    left, right = axes[0]
    sizes = np.sort(np.asarray(health.sizes))[::-1]
    left.bar(np.arange(len(sizes)), sizes, width=0.9 if len(sizes) < 60 else 1.0, color=COLOURS[0])
    left.axhline(sizes.sum() / len(sizes), color=COLOURS[5], linestyle="--", linewidth=1.2)
    left.set_xlabel("clusters, largest first (dashed: equal sizes)")
    left.set_ylabel("images")
    lines = [
        ("clusters used", f"{health.used} of {health.n_clusters}"),
        ("largest cluster", f"{health.largest:.1%}"),
        ("loss (ln K)", _number(health.loss, health.chance)),
        ("mean confidence", _number(health.confidence)),
        ("entropy of the mean (ln K)", _number(health.balance, health.chance)),
        ("mean entropy (ln K)", _number(health.entropy, health.chance)),
        ("feature rank", _number(health.feature_rank)),
    ]
    right.set_axis_off()
    for n, (name, value) in enumerate(x for x in lines if x[1] != "-"):
        right.text(0, 1 - 0.115 * n, name, color=GREY, fontsize=10, va="top")
        right.text(1, 1 - 0.115 * n, value, color=GREY, fontsize=10, va="top", ha="right")
    bad = "\n".join("! " + w.split(":")[0] for w in health.warnings)
    colour = COLOURS[5] if bad else COLOURS[2]
    right.text(0, 0.13, bad or "no warning", va="top", weight="bold", color=colour)
    return figure


def _number(value: float | None, reference: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if reference is None else f" ({reference:.2f})")


def confusion(matrix: Any, classes: Sequence[str] | None = None) -> Any:
    """Counts (classes, clusters) as a heat map, coloured by fraction of the class.

    The columns have no numbers: in the order of the classes they are not those of the clusters.
    """
    m = _array(matrix).astype(float)
    if m.ndim != 2:
        raise ValueError(f"matrix must be (classes, clusters); got {m.shape}")
    share = m / np.maximum(m.sum(1, keepdims=True), 1)
    figure, axes = canvas(1, 1, (1.6 + 0.42 * m.shape[1], 1.2 + 0.42 * m.shape[0]))
    ax = axes[0, 0]
    ax.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    if m.size <= 400:
        for i, j in np.argwhere(m > 0):
            colour = "black" if share[i, j] > 0.55 else "white"
            ax.text(j, i, f"{m[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_yticks(range(len(m)), [str(c) for c in classes] if classes else None)
    ax.set_xticks([])
    ax.set_xlabel("clusters")
    ax.tick_params(length=0)
    ax.set_ylabel("class")
    return figure


def plane(z: Any, method: str = "t-sne") -> np.ndarray:
    """Features (N,D) on the plane, (N,2) float: "pca", or "t-sne" (seeded).

    Distances between distant groups of a t-SNE map mean nothing.
    """
    from sklearn.decomposition import PCA

    z = _array(z).astype(np.float32)
    if z.ndim != 2 or method not in ("pca", "t-sne"):
        raise ValueError(f"plane takes (N,D) and pca or t-sne; got {z.shape} and {method!r}")
    at = PCA(min(2 if method == "pca" else 30, *z.shape), random_state=0).fit_transform(z)
    # of a single point t-SNE divides by the spread, and ends the process
    if method == "t-sne" and at.std(0).max() > 1e-6 * np.abs(z).max():
        from sklearn.manifold import TSNE

        near = min(30, (len(at) - 1) / 3)
        sne = TSNE(perplexity=near, init="pca", random_state=0, max_iter=500, n_jobs=1)
        at = sne.fit_transform(at)
    return np.pad(at[:, :2], ((0, 0), (0, max(0, 2 - at.shape[1]))))


def embedding(
    z: Any,
    labels: Any = None,
    classes: Sequence[str] | None = None,
    method: str = "t-sne",
    points: int = 2000,
) -> Any:
    """At most `points` features (N,D), evenly spaced, on the `plane`; coloured by labels (N,)."""
    rows = np.linspace(0, len(z) - 1, min(points, len(z))).astype(int)
    at = plane(_array(z)[rows], method)
    figure, axes = canvas(1, 1, (5.4, 4.4))
    ax = axes[0, 0]
    ax.set_axis_off()
    y = _array(labels)[rows] if labels is not None else np.zeros(len(at), int)
    for n, c in enumerate(np.unique(y)):
        here = at[y == c]
        name = classes[c] if classes is not None else str(c)
        marker = "o^sDv"[n // 10 % 5]
        ax.scatter(*here.T, s=7, color=COLOURS[n % 10], marker=marker, linewidths=0, label=name)
        if labels is not None:
            # a white word on a dark box reads on any page
            box = {"facecolor": "#303030", "edgecolor": "none", "pad": 1.5, "alpha": 0.75}
            ax.text(*np.median(here, 0), name, color="white", fontsize=9, bbox=box)
    return figure


def prototypes(images: Any, clusters: Any, confidence: Any, each: int = 8, rows: int = 12) -> Any:
    """The most confident images of each cluster: one row per cluster, in falling confidence.

    images (N,C,H,W), clusters (N,) int, confidence (N,) float (any number that orders images).
    """
    a, c, s = _array(images), _array(clusters), _array(confidence)
    if not len(a) == len(c) == len(s):
        raise ValueError(
            "images, clusters and confidence must be equally long; "
            f"got {len(a)}, {len(c)}, {len(s)}"
        )
    used = np.unique(c)[:rows]
    figure, axes = canvas(len(used), each, (0.62 * each + 0.4, 0.62 * len(used)))
    for k, row in zip(used, axes):
        best = np.flatnonzero(c == k)
        best = best[np.argsort(-s[best], kind="stable")]
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(str(k), rotation=0, ha="right", va="center", fontsize=10)
        for ax, image in zip(row, a[best[:each]]):
            _show(ax, image)
    return figure


def bars(values: Mapping[str, float] | Mapping[str, Mapping[str, float]], ylabel: str = "") -> Any:
    """Grouped bars: {name: value} or {name: {measure: value}}."""
    groups = {k: v if isinstance(v, Mapping) else {"": v} for k, v in values.items()}
    measures = list(next(iter(groups.values())))
    figure, axes = canvas(1, 1, (max(4.0, 0.9 + 0.42 * len(groups) * (len(measures) + 1)), 3.2))
    ax = axes[0, 0]
    width = 0.8 / len(measures)
    for n, measure in enumerate(measures):
        x = np.arange(len(groups)) + (n - (len(measures) - 1) / 2) * width
        y = [float(v[measure]) for v in groups.values()]
        drawn = ax.bar(x, y, 0.92 * width, color=COLOURS[n % 10], label=measure)
        ax.bar_label(drawn, fmt="%.2f", fontsize=8, color=GREY)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set_ylabel(ylabel)
    if measures != [""]:
        _legend(ax, ncols=len(measures), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
