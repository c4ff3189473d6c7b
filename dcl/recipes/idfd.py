"""IDFD's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.idfd import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

_ADAM = TrainConfig(45, 128, "adam", 3e-3, schedule="cosine")

smoke = Config(
    encoder="small_cnn",
    width=8,
    dim=32,
    view=DIGIT_VIEW,
    decorrelation=4,
    train=TrainConfig(2, 128, "adam", 3e-3, schedule="cosine"),
)

# With the paper's weight of 1 so short a schedule does not get the features apart, and clusters
# suffer: chapter idfd.
digits = Config(
    encoder="small_cnn",
    width=16,
    dim=64,
    view=DIGIT_VIEW,
    decorrelation=4,
    train=_ADAM,
)

photos = replace(digits, width=32, view=PHOTO_VIEW, train=replace(_ADAM, epochs=40))

mnist = replace(digits, view=HAND_VIEW, train=replace(_ADAM, epochs=6))

mnist_10k = replace(mnist, decorrelation=10, train=replace(_ADAM, epochs=45))

cifar10 = Config(  # the released recipe, a tenth as long
    train=TrainConfig(
        200, 128, lr=0.03, weight_decay=5e-4, schedule="step", milestones=(60, 95, 130, 165)
    )
)

paper = Config()
