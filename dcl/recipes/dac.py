"""DAC's settings by data set.

`until` is the cosine of (1/2, 1/2) with (1, 0): below it an image torn between two clusters would
be called similar to both, and the clusters would merge.
"""

from dcl.config import TrainConfig
from dcl.methods.dac import Config
from dcl.views import HAND_VIEW, View

_TORN = 0.5**0.5
# the released code's for CIFAR-10, as far as `View` supports it
_PHOTO = View(rotate=20, translate=0.18, zoom=(0.85, 1.15), flip=0.5)

smoke = Config(
    width=8,
    depth=2,
    until=_TORN,
    view=HAND_VIEW,
    train=TrainConfig(3, 64, "rmsprop", 2e-3),
)

# a data set this small has few batches in an epoch: hence smaller batches, a higher learning rate,
# and three starts, since later pairs never undo what a network settles on in its first steps
digits = Config(
    width=16,
    depth=2,
    until=_TORN,
    n_init=3,
    view=HAND_VIEW,
    train=TrainConfig(25, 64, "rmsprop", 2e-3),
)

shapes = Config(
    n_clusters=6,
    width=16,
    depth=2,
    until=_TORN,
    n_init=3,
    view=HAND_VIEW,
    train=TrainConfig(25, 64, "rmsprop", 2e-3),
)

photos = Config(
    width=16,
    depth=2,
    eta=0.0045,
    until=_TORN,
    view=_PHOTO,
    train=TrainConfig(50, 64, "rmsprop", 1e-3),
)

mnist = Config(
    width=16,
    depth=2,
    until=_TORN,
    view=HAND_VIEW,
    train=TrainConfig(46, 128, "rmsprop", 1e-3),
)

mnist_10k = mnist  # as in the recorded runs, although an epoch is shorter

cifar10 = Config(view=_PHOTO)

paper = Config()
