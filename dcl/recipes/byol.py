"""BYOL's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.byol import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, View

_SHAPE = View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5)

smoke = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=8,
    hidden=32,
    dim=32,
    view=DIGIT_VIEW,
    momentum=0.9,
    predictor_rate=1,
    train=TrainConfig(2, 64, "adam", 3e-3, schedule="cosine"),
)

# An epoch has only 28 steps: so the target follows fast. BatchNorm behind the projector keeps
# projections from shrinking to a few directions. With Adam the predictor needs no higher rate.
digits = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=16,
    hidden=128,
    dim=128,
    standardize=True,
    view=DIGIT_VIEW,
    momentum=0.9,
    rises=False,
    predictor_rate=1,
    starts=50,
    train=TrainConfig(8, 64, "adam", 3e-3, schedule="cosine"),
)

shapes = replace(
    digits, n_clusters=6, width=None, view=_SHAPE, train=replace(digits.train, epochs=16)
)

photos = replace(
    digits, width=None, view=PHOTO_VIEW, train=replace(digits.train, epochs=30, batch_size=128)
)

mnist = replace(digits, view=HAND_VIEW, train=replace(digits.train, epochs=4, batch_size=128))

mnist_10k = replace(mnist, train=replace(mnist.train, epochs=12))

cifar10 = Config(  # the released recipe, a fifth as long
    train=TrainConfig(
        200, 512, lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=10, final_lr=0.0006
    ),
)

paper = Config()
