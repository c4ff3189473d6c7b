"""RUC's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.ruc import Config
from dcl.recipes import scan, simclr

smoke = Config(
    n_neighbors=20,
    normalize=True,
    weak=scan.smoke.scan_view,
    strong=scan.smoke.strong,
    base=scan.smoke,
    train=TrainConfig(2, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

# As SCAN's: a BatchNorm before each head, for hundreds of steps. Twenty vote, as SCAN mines twenty.
# The published smoothing, .5, leaves too little confidence where one label in twenty is wrong.
digits = replace(
    smoke,
    smoothing=0.3,
    strong=scan.digits.strong,
    base=scan.digits,
    train=TrainConfig(8, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

shapes = replace(
    digits,
    n_clusters=6,
    weak=simclr.shapes.view,
    strong=scan.shapes.strong,
    base=scan.shapes,
)

photos = replace(
    digits,
    weak=simclr.photos.view,
    strong=replace(simclr.photos.view, randaugment=2, erase=16),
    base=scan.photos,
    train=replace(digits.train, epochs=16),
)

mnist = replace(
    digits,
    weak=scan.mnist.scan_view,
    strong=scan.mnist.strong,
    base=scan.mnist,
    train=replace(digits.train, epochs=2),
)

mnist_10k = replace(
    mnist,
    base=replace(
        scan.mnist,
        pretext=simclr.mnist_10k,
        scan=replace(scan.mnist.scan, epochs=8),
        selflabel=replace(scan.mnist.selflabel, epochs=3),
    ),
    train=replace(digits.train, epochs=4),
)

cifar10 = Config(base=scan.cifar10)

paper = Config()
