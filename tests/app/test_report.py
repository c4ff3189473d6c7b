"""The page about a run: what it shows, and that it asks for nothing."""

import base64
import io
import math
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcl.app import report, report_clusters
from dcl.app.report import confidence_histogram
from dcl.app.report_clusters import contact_sheet
from dcl.app.report_map import POINTS
from dcl.measure.baselines import prototypes
from dcl.measure.cleaning import NEAR, cleaning
from dcl.measure.health import ADVICE, health
from dcl.train import seeded

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
SCRIPT = "<script>alert(2)</script>.jpg"
NAMES = {
    HOSTILE: "&lt;img src=x onerror=alert(1)&gt;.jpg",
    SCRIPT: "&lt;script&gt;alert(2)&lt;/script&gt;.jpg",
    '"><a href=//x onclick=alert(3)>': "&#34;&gt;&lt;a href=//x onclick=alert(3)&gt;",
    "caf\udce9.jpg": r"caf\udce9.jpg",
    "a\u202egpj.exe\nb\x1b": r"a\u202egpj.exe\nb\x1b",
    "\u0645\u06cc\u200c\u062e \U0001f600": "\u0645\u06cc\u200c\u062e \U0001f600",
}
"""Names that a folder may hold, and how they stand in the page."""
LOG = [
    *({"stage": "scan", "epoch": e, "loss": -9.0, "consistency": 1.2 / (e + 1), "entropy": 1.3}
      for e in range(3)),
    *({"stage": "selflabel", "epoch": e, "loss": 0.2, "confident": 0.9, "seconds": 2.0}
      for e in range(2)),
]  # fmt: skip


def case(n=60, k=4, channels=3, size=12):
    """Images that tell their row: the top left pixel of image i is i."""
    with seeded(0):
        labels = torch.arange(n) % k
        p = (4.0 * torch.eye(k)[labels] + torch.randn(n, k)).softmax(1)
        z = torch.eye(k)[labels] + 0.3 * torch.randn(n, k)
        images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)
    images[:, :, 0, 0] = torch.arange(n)[:, None]
    return images, p, z


def page(tmp_path, *arrays, **also):
    return report.report(tmp_path / "report.html", *(arrays or case()), **also).read_text("utf-8")


def pictures(html):
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def rows_of(picture, count, columns, size, gap=1):
    """The rows that are drawn in a sheet of grey images."""
    pixels = np.asarray(picture)
    step = size + gap
    return [int(pixels[i // columns * step, i % columns * step]) for i in range(count)]


def test_the_page_in_order(tmp_path):
    html = page(tmp_path, title="My photos", log=LOG, about={"seed": 7, "command": "dcl fit"})
    at = [
        html.index(words)
        for words in (
            "<title>My photos</title>",
            "<h1>60 images in 4 clusters</h1>",
            "<b>No warning.</b>",
            '<section id="c1"',  # 16 images
            '<section id="c0"',  # 15
            '<section id="c3"',  # 15
            '<section id="c2"',  # 14
            "<h2>Closest clusters</h2>",
            '<h2 id="duplicates">Near-duplicates</h2>',
            "<h2>Map</h2>",
            '<h2 id="health">Health</h2>',
            "<b>scan</b>, 3 epochs",
            "<b>selflabel</b>, 2 epochs",
            "<h2>Facts</h2>",
            "<td>seed</td><td>7</td>",
        )
    ]
    assert at == sorted(at)
    assert "15 images (25.0%), mean confidence" in html
    assert "<td>training</td><td>5 epochs, 4 seconds</td>" in html
    # each cluster's prototype, nearest, farthest, sheet; pairs of both kinds; outliers; thumbnails
    # of the map; sizes, confidence, two stages
    found = cleaning(case()[2])
    twins = [p for p in found.closest if p.distance < NEAR * found.usual] or found.closest[:4]
    assert len(pictures(html)) == 4 * 4 + 3 * 2 + len(twins) + bool(found.far) + 1 + 4
    assert "Files beside this page" not in html
    for name in ("config.json", "assignments.csv"):
        (tmp_path / name).write_text("")
    again = page(tmp_path, log=LOG)
    assert re.findall(r'<td><a href="(.*?)">', again) == ["assignments.csv", "config.json"]
    assert list(tmp_path.glob("*.partial")) == list(tmp_path.glob(".*")) == []


def test_photographs_are_large_and_copies_and_outliers_shown(tmp_path):
    images, p, z = case(size=112)
    z = F.one_hot(torch.arange(60) % 4, 16) + 0.05 * torch.randn(60, 16)
    images[9], z[9], z[13] = images[5], z[5], -torch.eye(16)[9]
    names, found = [f"f{row}.jpg" for row in range(60)], cleaning(z, images)
    html = page(tmp_path, images, p, z, files=names, found=found)
    sizes = [i.size for i in pictures(html)]
    assert (112, 112) in sizes and (4 * 112 + 3 * 4, 2 * 112 + 4) in sizes
    assert "1 image is the same as another, pixel by pixel" in html
    assert "<bdi>f5.jpg</bdi>, <bdi>f9.jpg</bdi>" in html
    odd = html[html.index('id="outliers"') : html.index("<h2>Map</h2>")]
    assert "like no other" in odd and re.findall("<li><bdi>(.*?)</bdi>", odd)[0] == "f13.jpg"
    assert 'id="pictures" aria-pressed="true"' in html and '"pictures": true' in html
    assert '"pictures": false' in page(tmp_path)


def test_each_reading_stands_once(tmp_path):
    images, p, z = case()
    html = re.sub(r'"data:.*?"', "", page(tmp_path, images, p, z, log=LOG, title="a"))
    html = html[: html.index('<script type="application/json"')]
    h = health(p, z)
    readings = (f"{h.confidence:.2f}", f"{h.feature_rank:.1f}", f"{h.feature_spread:.3f}",
                f"{max(h.sizes) / min(h.sizes):.1f}")  # fmt: skip
    for said in (*(f"<td>{r}</td>" for r in readings), "60 images"):
        assert html.count(said) == 1, said


def test_the_pictures_are_the_right_rows(tmp_path):
    images, p, z = case(channels=1)
    confidence, cluster = p.max(1)
    shown = [i for i in pictures(page(tmp_path, images, p, z)) if i.mode == "L"]
    standing = prototypes(z, p).tolist()
    unit = F.normalize(z, dim=1)
    for place, k in enumerate((1, 0, 3, 2)):  # by size
        mine = shown[4 * place : 4 * place + 4]
        members = sorted((cluster == k).nonzero()[:, 0].tolist(), key=lambda i: -confidence[i])
        others = sorted(members, key=lambda i: -float(unit[i] @ unit[standing[k]]))
        others.remove(standing[k])
        assert rows_of(mine[0], 1, 1, 12) == [standing[k]]
        assert rows_of(mine[1], 8, 8, 12) == others[:8]
        far = others[8:][::-1][:8]
        assert rows_of(mine[2], len(far), len(far), 12) == far
        assert rows_of(mine[3], len(members), 10, 12) == members


def test_names_stand_in_the_order_of_the_sheet(tmp_path):
    images, p, z = case()
    html = page(tmp_path, images, p, z, files=[f"dir/{i}.jpg" for i in range(60)])
    confidence, cluster = p.max(1)
    members = sorted((cluster == 0).nonzero()[:, 0].tolist(), key=lambda i: -confidence[i])
    section = html[html.index('id="c0"') : html.index('id="c3"')]
    names = re.findall(r"<bdi>dir/(\d+).jpg</bdi> <span class=\"soft\">(\S+)</span>", section)
    assert [int(i) for i, _ in names][-len(members) :] == members
    assert names[-1][1] == f"{confidence[members[-1]]:.2f}"
    assert "<bdi>image 7</bdi>" in page(tmp_path, images, p, z)


def test_contact_sheet():
    images, _, _ = case(channels=1, size=100)
    (sheet,) = pictures(f'src="{contact_sheet(images, list(range(7)), 5, 32).uri}"')
    assert sheet.size == (5 * 64 + 4 * 2, 2 * 64 + 2)  # made smaller, with a gap of 2
    assert np.asarray(sheet)[-1, -1] == 128, "nothing in the eighth place"
    (small,) = pictures(f'src="{contact_sheet(images[:, :, :10], [3], 5, 32).uri}"')
    assert small.size == (64, 6), "the shape is kept"


def test_only_what_is_drawn_is_read(tmp_path):
    n = 5000
    with seeded(0):
        p = (4.0 * torch.eye(2)[torch.arange(n) % 2] + torch.randn(n, 2)).softmax(1)
        z = p + 0.1 * torch.randn(n, 2)
    images = torch.zeros(1, dtype=torch.uint8).expand(n, 3, 8, 8)

    class Counted(torch.Tensor):
        read = 0

        def __getitem__(self, row):
            assert isinstance(row, int)
            Counted.read += 1
            return torch.Tensor(super().__getitem__(row).numpy()).byte()

    page(tmp_path, images.as_subclass(Counted), p, z)
    assert 200 <= Counted.read <= 2 * (100 + 8 + 8 + 1) + 2 * 8 + 2 * 12 + 12 + POINTS


NINE = {"chances": {"loss": math.log(9)}}
FAILED = {
    "collapse": lambda p, z: (torch.eye(4)[torch.zeros(60, dtype=torch.long)], z, []),
    "giant cluster": lambda p, z: (p.index_fill(0, torch.arange(40), 0) + torch.eye(4)[0].where(
        torch.arange(60)[:, None] < 40, torch.tensor(0.0)), z, []),
    "nothing is confident": lambda p, z: ((0.05 * p).softmax(1), z, []),
    "collapsed features": lambda p, z: (p, torch.ones_like(z), []),
    "features are not finite": lambda p, z: (p, z.index_fill(0, torch.tensor([3]), math.nan), []),
    "loss": lambda p, z: (p, z, [{"stage": "scan", "epoch": 0, "loss": math.nan}]),
    "stuck": lambda p, z: (p, z, [{"stage": "a", "epoch": 0, "loss": math.log(9), **NINE}]),
    "diverged": lambda p, z: (p, z, [{"stage": "a", "epoch": 0, "loss": 9.0, **NINE}]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILED)
def test_each_light_comes_with_its_advice(tmp_path, kind):
    images, p, z = case()
    p, z, log = FAILED[kind](p, z)
    html = page(tmp_path, images, p, z, log=log)
    (light,) = re.findall(r'<div class="light on"><b>(.*?)</b><br>(.*?)</div>', html)
    assert light[0].startswith(kind) and unescape(light[1]) == ADVICE[kind]
    assert f"<b>Warning:</b> {light[0].split(':')[0]}." in html and "No warning" not in html


def test_an_empty_cluster_and_one_image(tmp_path):
    p = torch.eye(3)[torch.tensor([0, 0, 0, 0, 2])]
    images, _, z = case(n=5)
    html = page(tmp_path, images, p, z)
    assert 'id="c1"' not in html and "No pictures shown for: 1 (0)" in html
    assert "1 images (20.0%)" not in html and "1 image (20.0%)" in html
    assert "No map" in html


def test_many_clusters_stay_moderate(tmp_path):
    k = report_clusters.SECTIONS + 20
    labels = torch.cat([torch.arange(k), torch.arange(report_clusters.SECTIONS)])
    images, _, _ = case(n=len(labels))
    z = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))
    html = page(tmp_path, images, torch.eye(k)[labels], z)
    assert html.count("<section") == report_clusters.SECTIONS
    assert f"{k - 1} (1)" in html


def hostile(tmp_path):
    """A page all of whose texts come from names."""
    log = [{"stage": name, "epoch": 0, "loss": 1.0} for name in NAMES]
    about = {name: name for name in NAMES}
    return page(tmp_path, files=[*NAMES] * 10, title=" ".join(NAMES), log=log, about=about)


def test_any_name_is_shown_and_not_run(tmp_path):
    html = hostile(tmp_path)
    for name, shown in NAMES.items():
        # twice in title, facts and curve; and in lists of names
        assert html.count(shown) >= 2 + 2 + 2 + 10, shown
        assert name == shown or name not in html


def test_nothing_foreign_is_asked_for(tmp_path):
    found = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.append((tag, dict(attributes)))

    html = hostile(tmp_path)
    Elements().feed(html)
    assert "default-src 'none'" in html and "url(" not in html
    scripts = [own for tag, own in found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    asked = [own.get("src") or own["href"] for _, own in found if own.keys() & {"src", "href"}]
    assert len(asked) > 20 and all(address.startswith(("data:", "#")) for address in asked)
    assert all(own.get("alt") or "hidden" in own for tag, own in found if tag == "img")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"images": torch.zeros(60, 3, 4, 4)}, "images must be uint8"),
        ({"images": torch.zeros(60, 2, 4, 4, dtype=torch.uint8)}, "images must be uint8"),
        ({"probabilities": torch.full((59, 4), 0.25)}, r"probabilities must be \(60, K\)"),
        ({"probabilities": torch.ones(60, 4)}, "rows that sum to 1"),
        ({"features": torch.zeros(59, 4)}, r"features must be \(60"),
        ({"files": ["a"]}, "files must name all 60 images; got 1"),
    ],
)
def test_bad_input(tmp_path, change, words):
    names = dict(zip(("images", "probabilities", "features"), case(), strict=True))
    with pytest.raises(ValueError, match=words):
        report.report(tmp_path / "report.html", **{**names, **change})
    assert list(tmp_path.iterdir()) == []


def test_confidence_counts_the_largest_probability():
    import matplotlib.pyplot as plt

    p = torch.tensor([[0.5, 0.5], [0.98, 0.02], [0.01, 0.99], [1.0, 0.0]])
    figure = confidence_histogram(p)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert sum(heights) == 4 and heights[-1] == 3 and heights[12] == 1
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.5
    plt.close(figure)


def test_figures_are_closed(tmp_path):
    import matplotlib.pyplot as plt

    plt.close("all")  # what an earlier test of this process has left open
    page(tmp_path, log=LOG)
    assert plt.get_fignums() == []
