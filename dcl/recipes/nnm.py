"""NNM's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.nnm import Config
from dcl.recipes import simclr
from dcl.views import DIGIT_VIEW

smoke = Config(
    heads=2,
    normalize=True,
    view=DIGIT_VIEW,
    pretext=simclr.smoke,
    train=TrainConfig(2, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

# As SCAN's: a BatchNorm before each of ten heads and a high learning rate, for hundreds of steps.
# The bank waits for the last quarter, since what it holds is answered back to the image: early on,
# two classes in one cluster would stay there.
digits = Config(
    heads=10,
    normalize=True,
    bank_from=12,
    view=DIGIT_VIEW,
    pretext=simclr.digits,
    train=TrainConfig(16, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = Config(
    heads=10,
    normalize=True,
    bank_from=12,
    view=simclr.photos.view,
    pretext=simclr.photos,
    train=TrainConfig(16, 128, "adam", 2e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist = Config(
    heads=10,
    normalize=True,
    bank_from=2,
    view=simclr.mnist.view,
    pretext=simclr.mnist,
    train=TrainConfig(3, 128, "adam", 5e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist_10k = replace(
    mnist, pretext=simclr.mnist_10k, bank_from=9, train=replace(mnist.train, epochs=12)
)

cifar10 = Config(pretext=simclr.cifar10)

paper = Config()
