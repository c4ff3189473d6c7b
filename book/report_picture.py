"""Take the pictures of a report in the chapter your-images: python book/report_picture.py"""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page

from dcl.app.report import report
from dcl.app.run import clusters
from dcl.data import load
from picture import chromium

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "scan-digits-quick-seed0"
WIDTH = 900  # from here on the prototype stands beside the others


def shot(page: Page, first: str, last: str) -> Image.Image:
    """The page from the top of one element to the bottom of another."""
    top, bottom = page.locator(first).first.bounding_box(), page.locator(last).first.bounding_box()
    high = bottom["y"] + bottom["height"] - top["y"]
    area = {"x": 0, "y": top["y"] - 6, "width": WIDTH, "height": high + 12}
    return Image.open(io.BytesIO(page.screenshot(clip=area, full_page=True))).convert("RGB")


def draw() -> dict[str, Image.Image]:
    """Of a report on the digits, the head with the largest cluster, and the map."""
    data = load("digits")
    found = clusters(NETWORK).assign(data.images)
    with TemporaryDirectory() as folder, chromium() as browser:
        path = Path(folder, "report.html")
        report(path, data.images, found.probabilities, found.vectors, title="scan on digits")
        window = {"width": WIDTH, "height": 900}
        page = browser.new_page(viewport=window, color_scheme="light", device_scale_factor=1.5)
        page.goto(path.as_uri())
        head = shot(page, "article > p", "section .cluster")
        below = shot(page, "#how + .row", "#map")
    return {"report": head, "report-map": below}


if __name__ == "__main__":
    for name, drawn in draw().items():
        drawn.quantize(64).save(ROOT / "book" / "assets" / f"{name}.png", optimize=True)
