import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from dcl.measure import plots
from dcl.measure.health import health
from dcl.train import seeded

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def drawn(figure):
    figure.canvas.draw()
    assert figure.patch.get_alpha() == 0  # the page's background shows through
    return figure.axes


def test_matplotlib_is_not_imported_before_a_plot_is_drawn():
    code = "import sys, dcl.measure.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_the_pixels(channels):
    x = torch.randint(0, 256, (5, channels, 6, 4), dtype=torch.uint8)
    axes = drawn(plots.grid(x, titles=list("abcde"), columns=3))
    assert len(axes) == 6
    assert [a.get_title() for a in axes[:5]] == list("abcde")
    shown = np.asarray(axes[1].images[0].get_array())
    expected = x[1, 0] if channels == 1 else x[1].permute(1, 2, 0)
    assert np.array_equal(shown, expected.numpy())
    assert not axes[5].images
    # float in [0,1] looks the same
    again = drawn(plots.grid(x.float() / 255))
    image = again[1].images[0]
    rgba = image.to_rgba(image.get_array())
    first = axes[1].images[0]
    assert np.allclose(
        rgba, first.to_rgba(first.get_array()), atol=0.01 * (1 + 254 * (channels == 3))
    )


def test_grid_refuses():
    with pytest.raises(ValueError, match="images must be"):
        plots.grid(torch.zeros(4, 2, 8, 8))
    with pytest.raises(ValueError, match="images must be"):
        plots.grid(torch.zeros(0, 1, 8, 8))


def test_loss_curve():
    history = [{"epoch": k, "loss": 3.0 - k, "entropy": 1.0, "seconds": 9.0} for k in range(3)]
    (ax,) = drawn(plots.loss_curve(history, chance=2.3))
    assert ax.lines[0].get_ydata().tolist() == [3, 2, 1] and len(ax.lines) == 2
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 3]  # as the log counts
    (ax,) = drawn(plots.loss_curve(history, keys=["loss", "entropy"]))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["loss", "entropy"]
    with pytest.raises(ValueError, match="history"):
        plots.loss_curve([])


def test_health_panel_shows_sizes_and_warnings():
    good = health(torch.arange(100) % 4)
    left, right = drawn(plots.health_panel(good))
    assert [p.get_height() for p in left.patches] == [25] * 4
    assert right.texts[-1].get_text() == "no warning"
    _, right = drawn(plots.health_panel(health(torch.full((100, 5), 0.2), torch.ones(100, 3))))
    assert "collapse" in right.texts[-1].get_text()


def test_confusion_shows_counts():
    (ax,) = drawn(plots.confusion(torch.tensor([[3, 1, 0], [0, 4, 2]]), ["cat", "dog"]))
    assert sorted(t.get_text() for t in ax.texts) == ["1", "2", "3", "4"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog"]
    assert np.allclose(ax.images[0].get_array()[0], [0.75, 0.25, 0])
    with pytest.raises(ValueError, match="matrix"):
        plots.confusion(torch.arange(3))


@pytest.mark.parametrize("method", ["pca", "t-sne"])
def test_embedding_keeps_groups_apart(method):
    with seeded(0):
        y = torch.arange(90) % 3
        z = 20 * torch.eye(3)[y] + torch.randn(90, 3)
    (ax,) = drawn(plots.embedding(z, y, classes=["a", "b", "c"], method=method))
    points = [np.asarray(c.get_offsets()) for c in ax.collections]
    assert [len(p) for p in points] == [30, 30, 30]
    centres = [p.mean(0) for p in points]
    reach = max(np.linalg.norm(p - c, axis=1).max() for p, c in zip(points, centres, strict=True))
    gap = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert gap > reach
    assert (
        len(drawn(plots.embedding(z, method=method, points=20))[0].collections[0].get_offsets())
        == 20
    )


@pytest.mark.parametrize("value", [0.0, 3.3])
def test_features_that_are_all_alike_are_one_point(value):
    """On which scikit-learn's t-SNE divides by nothing, and ends the process."""
    assert plots.plane(torch.full((300, 10), value)).std(0).max() < 1e-6


def test_embedding_refuses():
    with pytest.raises(ValueError, match="plane takes"):
        plots.embedding(torch.randn(10, 3), method="umap")


def test_prototypes_are_the_most_confident():
    x = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 1, 2, 2)
    clusters = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2])
    confidence = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.3, 0.4, 0.8, 0.6])
    axes = drawn(plots.prototypes(x, clusters, confidence, each=2))
    assert [int(a.images[0].get_array()[0, 0]) for a in axes] == [1, 2, 6, 7]
    assert [axes[0].get_ylabel(), axes[2].get_ylabel()] == ["0", "2"]
    with pytest.raises(ValueError, match="equally long"):
        plots.prototypes(x, clusters[:3], confidence)


def test_bars():
    values = {"pixels": {"ACC": 0.8, "NMI": 0.7}, "network": {"ACC": 0.4, "NMI": 0.3}}
    (ax,) = drawn(plots.bars(values))
    assert [p.get_height() for p in ax.patches] == [0.8, 0.4, 0.7, 0.3]
    assert [t.get_text() for t in ax.texts] == ["0.80", "0.40", "0.70", "0.30"]
    (ax,) = drawn(plots.bars({"a": 1.0, "b": 2.0}, ylabel="seconds"))
    assert ax.get_legend() is None and ax.get_ylabel() == "seconds"


def contrast(a, b):
    # WCAG 2 relative luminance
    def light(colour):
        rgb = np.asarray(matplotlib.colors.to_rgb(colour))
        rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return rgb @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_read_on_light_and_dark_pages():
    for page in ("#ffffff", "#121212"):
        assert contrast(plots.GREY, page) > 3.9
        for colour in plots.COLOURS:
            assert contrast(colour, page) > 1.9
    assert len(set(plots.COLOURS)) == 10
