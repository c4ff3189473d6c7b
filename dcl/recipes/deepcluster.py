"""DeepCluster's settings by data set."""

from dcl.config import TrainConfig
from dcl.methods.deepcluster import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, View

# half of the views are negatives: a shape is light on dark as often as dark on light
_SHAPE = View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5)
_PHOTO = View(scale=(0.2, 1), flip=0.5)

smoke = Config(
    n_clusters=6,
    n_pseudo=30,
    encoder="small_cnn",
    width=8,
    fc=128,
    view=_SHAPE,
    reassign=2,
    train=TrainConfig(2, 64, lr=0.1, weight_decay=1e-5),
)

# reassign every other epoch: one has thirty steps, too few for a new top layer to become useful
shapes = Config(
    n_clusters=6,
    n_pseudo=30,
    encoder="small_cnn",
    fc=128,
    view=_SHAPE,
    reassign=2,
    train=TrainConfig(20, 64, lr=0.1, weight_decay=1e-5),
)

digits = Config(
    n_clusters=10,
    n_pseudo=30,
    encoder="small_cnn",
    fc=128,
    sobel=False,  # digits have no colour to hide
    view=DIGIT_VIEW,
    reassign=2,
    train=TrainConfig(20, 64, lr=0.1, weight_decay=1e-5),
)

photos = Config(
    n_clusters=10,
    n_pseudo=60,
    encoder="small_cnn",
    fc=128,
    view=_PHOTO,
    reassign=2,
    train=TrainConfig(20, 64, lr=0.1, weight_decay=1e-5),
)

mnist = Config(
    n_clusters=10,
    n_pseudo=30,
    encoder="small_cnn",
    width=16,
    fc=128,
    sobel=False,
    view=HAND_VIEW,
    train=TrainConfig(6, 64, lr=0.1, weight_decay=1e-5),
)

cifar10 = Config(
    n_clusters=10,
    n_pseudo=200,
    encoder="resnet18",
    fc=512,
    view=_PHOTO,
    train=TrainConfig(200, 256, lr=0.05, weight_decay=1e-5),
)

paper = Config()
