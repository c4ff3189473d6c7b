"""RotNet's settings by data set: the pretext of LSD-C's authors."""

from dcl.config import TrainConfig
from dcl.methods.rotnet import Config
from dcl.views import DIGIT_VIEW, View

smoke = Config("small_cnn", 8, view=DIGIT_VIEW, train=TrainConfig(1, 64, "adam", 1e-3))

digits = Config(
    "small_cnn",
    16,
    view=DIGIT_VIEW,
    train=TrainConfig(6, 128, "adam", 3e-3, schedule="cosine"),
)

shapes = Config(
    "small_cnn",
    16,
    view=View(pad=2, flip=0.5, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5),
    train=TrainConfig(6, 128, "adam", 3e-3, schedule="cosine"),
)

cifar10 = Config(  # a shorter version of the paper's
    train=TrainConfig(30, 128, lr=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine"),
)

paper = Config()
