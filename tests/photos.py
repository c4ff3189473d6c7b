"""A folder of small colour pictures, as a practitioner might have it, and a fit of them."""

from PIL import Image

from dcl.app.cli import main
from dcl.data import load


def photos_in(folder):
    """120 digits as colour pictures of 20 px, by class, with one that can not be read."""
    data = load("digits", size=20).subset(120)
    for k, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        place = folder / f"class {label}"
        place.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"Ziffer-é{k}.png")
    (folder / "class 3" / "broken.jpg").write_bytes(b"not an image")
    return folder


def fit(photos, out, *more):
    asked = ["--data", str(photos), "--out", str(out), "--recipe", "smoke", "--clusters", "5"]
    return main(["fit", "scan", *asked, *more])
