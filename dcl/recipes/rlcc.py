"""RLCC's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.rlcc import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, View

_SHAPE = View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5)

smoke = Config(
    n_clusters=10,
    clusters="kmeans",
    n_pseudo=20,
    encoder="small_cnn",
    width=8,
    view=DIGIT_VIEW,
    temperature=0.1,
    train=TrainConfig(3, 64, "adam", 3e-3),
)

# from random weights a temperature of .04 makes the first, poor clusters too certain
digits = Config(
    n_clusters=10,
    clusters="kmeans",
    n_pseudo=30,
    encoder="small_cnn",
    width=16,
    view=DIGIT_VIEW,
    temperature=0.1,
    train=TrainConfig(35, 128, "adam", 3e-3, schedule="cosine"),
)

shapes = replace(
    digits,
    n_clusters=6,
    width=None,
    view=_SHAPE,
    train=replace(digits.train, epochs=20, batch_size=64),
)

# the stripes tell what is worn above from what is worn below; colours change with the camera
people = Config(
    n_clusters=40,
    clusters="density",
    eps=0.5,
    encoder="striped_cnn",
    width=16,
    view=View(pad=2, flip=0.5, jitter=(0.3, 0.3, 0.4, 0.06)),
    temperature=0.1,
    train=TrainConfig(9, 64, "adam", 3e-3, weight_decay=5e-4, schedule="cosine"),
)

photos = replace(
    digits, n_pseudo=60, width=None, view=PHOTO_VIEW, train=replace(digits.train, epochs=20)
)

mnist = replace(digits, view=HAND_VIEW, train=replace(digits.train, epochs=8))

mnist_10k = replace(mnist, train=replace(mnist.train, epochs=12))

cifar10 = replace(
    digits,
    n_pseudo=200,
    encoder="resnet18",
    width=None,
    view=PHOTO_VIEW,
    train=replace(digits.train, epochs=200, batch_size=256, lr=1e-3),
)

paper = Config()
