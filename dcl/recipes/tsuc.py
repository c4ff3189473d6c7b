"""TSUC's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.tsuc import Config
from dcl.recipes import simclr, superand
from dcl.views import DIGIT_VIEW

smoke = Config(
    heads=3,
    view=DIGIT_VIEW,
    pretext=simclr.smoke,
    train=TrainConfig(2, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# For hundreds of steps instead of 100,000. The consistency loss, at the paper's weight of 1, keeps
# apart what the heads want together. Ten heads, not five, are more draws to choose from, and the
# released normalisation, which makes them sharper, is the better one here.
digits = Config(
    heads=10,
    normalize="feature",
    consistency_weight=0.3,
    view=DIGIT_VIEW,
    pretext=simclr.digits,
    train=TrainConfig(12, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = replace(digits, view=simclr.photos.view, pretext=simclr.photos)

mnist = replace(
    digits,
    view=simclr.mnist.view,
    pretext=simclr.mnist,
    train=replace(digits.train, epochs=2),
)

mnist_10k = replace(mnist, pretext=simclr.mnist_10k, train=replace(mnist.train, epochs=6))

cifar10 = Config(pretext=superand.cifar10, train=replace(Config().train, epochs=60))

paper = Config()
