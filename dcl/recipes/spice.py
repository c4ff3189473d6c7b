"""SPICE's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.spice import Config
from dcl.recipes import simclr
from dcl.views import CROP_FLIP, DIGIT_VIEW, View

smoke = Config(
    projected=True,
    heads=2,
    view=View(),
    n_neighbors=10,
    agree=0.5,
    sure=0.1,
    fresh=False,
    threshold=0.8,
    weak=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    ema_decay=0.9,
    pretext=simclr.smoke,
    spice=TrainConfig(2, 64, "adam", 1e-2, schedule="cosine"),
    fixmatch=TrainConfig(1, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

# Of the release, views in step 2, the encoder's features and a new network for FixMatch are left
# out: heads on the embedding take seconds. A pool of a third draws other prototypes each round.
digits = Config(
    projected=True,
    pool=600,
    passes=3,
    view=View(),
    n_neighbors=50,
    agree=0.95,
    sure=0.95,
    fresh=False,
    weak=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    ema_decay=0.98,
    pretext=simclr.digits,
    spice=TrainConfig(60, 256, "adam", 5e-3, schedule="cosine"),
    fixmatch=TrainConfig(12, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# heads on the features of an encoder, or on vectors, without FixMatch: in seconds
frozen = replace(digits, projected=False, fixmatch=replace(digits.fixmatch, epochs=0))

photos = replace(
    digits,
    weak=CROP_FLIP,
    strong=simclr.photos.view,
    pretext=simclr.photos,
)

mnist = replace(
    digits,
    pool=3000,
    n_neighbors=100,
    weak=simclr.mnist.view,
    strong=replace(simclr.mnist.view, rotate=20, translate=0.12, erase=8),
    ema_decay=0.99,
    pretext=simclr.mnist,
    spice=replace(digits.spice, epochs=30),
    fixmatch=replace(digits.fixmatch, epochs=1),
)

mnist_10k = replace(mnist, pretext=simclr.mnist_10k, fixmatch=replace(mnist.fixmatch, epochs=5))

cifar10 = Config(
    pretext=simclr.cifar10,
    fixmatch=replace(Config().fixmatch, epochs=400),  # a twentieth of the release's
)

paper = Config()
