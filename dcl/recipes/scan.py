"""SCAN's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.scan import Config
from dcl.recipes import simclr
from dcl.views import DIGIT_VIEW, View

smoke = Config(
    heads=2,
    normalize=True,
    threshold=0.9,
    scan_view=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    pretext=simclr.smoke,
    scan=TrainConfig(1, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
    selflabel=TrainConfig(1, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

# Hundreds of steps instead of thousands: hence a BatchNorm before each head and a high learning
# rate. Ten heads are insurance: one that starts with two classes in a cluster rarely parts them.
digits = Config(
    heads=10,
    normalize=True,
    threshold=0.9,
    scan_view=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    pretext=simclr.digits,
    scan=TrainConfig(12, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
    selflabel=TrainConfig(6, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    heads=10,
    normalize=True,
    threshold=0.9,
    scan_view=simclr.shapes.view,
    strong=simclr.shapes.view,
    pretext=simclr.shapes,
    scan=TrainConfig(12, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
    selflabel=TrainConfig(6, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

# with a frozen encoder the heads are trained on its features, in seconds
frozen = Config(
    heads=10,
    normalize=True,
    freeze_encoder=True,
    scan_view=View(),
    pretext=simclr.photos,
    scan=TrainConfig(50, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
    selflabel=TrainConfig(0, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

# a neighbour is seldom pure there, so many are asked; a few hundred large steps are enough
photographs = replace(
    frozen,
    n_neighbors=50,
    scan=TrainConfig(20, 512, "adam", 2e-2, weight_decay=1e-4, schedule="cosine"),
)

photos = frozen  # on a CPU: only the pretext trains on pixels

mnist = Config(
    heads=10,
    normalize=True,
    threshold=0.9,
    scan_view=simclr.mnist.view,
    strong=replace(simclr.mnist.view, rotate=20, translate=0.12, erase=8),
    pretext=simclr.mnist,
    scan=TrainConfig(2, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
    selflabel=TrainConfig(2, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

cifar10 = Config(
    pretext=simclr.cifar10,
    selflabel=TrainConfig(100, 1000, "adam", 1e-4, weight_decay=1e-4),
)

paper = Config()
